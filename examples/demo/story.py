"""What the demo says and claims, with what was seen; one missed claim fails the demo."""

import sys
from dataclasses import dataclass, field
from typing import Any

from examples.fleet.clock import monotonic


class Missed(Exception):  # noqa: N818 - a miss is an outcome of the demo, not an error in it
    """A claim did not hold and the rest builds on it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise and what was seen."""

    step: str
    text: str
    seen: str
    ok: bool


@dataclass(slots=True)
class Story:
    """Lines with the time since the start, claims, figures for the JSON file."""

    started_at: float = field(default_factory=monotonic)
    claims: list[Claim] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    step: str = ""

    def elapsed(self) -> float:
        """Seconds since the start."""
        return monotonic() - self.started_at

    def say(self, text: str) -> None:
        """A line with its time."""
        lines = text.rstrip().split("\n")
        sys.stdout.write(f"[{self.elapsed():5.1f} s] {lines[0]}\n")
        for line in lines[1:]:
            sys.stdout.write(f"          {line}\n")
        sys.stdout.flush()

    def begin(self, step: str, text: str) -> None:
        """A new step."""
        self.step = step
        sys.stdout.write("\n")
        self.say(f"{step} · {text}")

    def claim(self, text: str, ok: bool, seen: str) -> None:
        """Check a promise."""
        self.claims.append(Claim(self.step, text, seen, ok))
        self.say(f"{'holds' if ok else 'MISSED'}  {text}: {seen}")

    def need(self, text: str, ok: bool, seen: str) -> None:
        """Check a promise without which the following steps make no sense."""
        self.claim(text, ok, seen)
        if not ok:
            raise Missed(f"nothing further makes sense without this: {text}")

    def table(self) -> bool:
        """The last table; whether every claim held."""
        missed = [claim for claim in self.claims if not claim.ok]
        sys.stdout.write("\n")
        width = max((len(claim.step) for claim in self.claims), default=0)
        for claim in self.claims:
            mark = "holds " if claim.ok else "MISSED"
            sys.stdout.write(f"{claim.step:<{width}}  {mark}  {claim.text}: {claim.seen}\n")
        total = len(self.claims)
        sys.stdout.write(
            f"\n{total - len(missed)} of {total} claims hold, {self.elapsed():.0f} s\n"
        )
        sys.stdout.flush()
        return not missed
