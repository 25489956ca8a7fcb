"""Decisions about waves as they are kept: the facts, the rules and the moment of each verdict.

Whoever doubts one makes it again from these, and it comes out the same. PENDING is no decision.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.domain.comparison import Comparison
from controller.domain.evidence import Rules, WaveFacts
from controller.domain.health import Judgement, compared_text, judge
from controller.domain.rollout import Verdict
from controller.store.waves import WaveRow

KEPT = 3  # of a wave, the newest


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict that was stored with all it rests on."""

    at: datetime
    verdict: Verdict
    reason: str
    facts: WaveFacts
    rules: Rules

    def again(self) -> Judgement:
        """The same judge over the same facts."""
        return judge(self.facts, self.rules, self.at)

    @property
    def holds(self) -> bool:
        """Whether it comes out the same once more."""
        found = self.again()
        return (found.verdict, found.reason) == (self.verdict, self.reason)


def keep_decision(
    known: Mapping[str, Any],
    before: Verdict | None,
    facts: WaveFacts,
    rules: Rules,
    found: Judgement,
    now: datetime,
) -> list[Any]:
    """The decisions of a wave's evidence, with this one where the verdict is another."""
    kept = list(known.get("decisions") or ())
    if found.verdict in (Verdict.PENDING, before or Verdict.PENDING):
        return kept
    newest = {
        "at": now.isoformat(),
        "verdict": found.verdict.value,
        "reason": found.reason,
        "facts": facts.to_json(),
        "rules": rules.to_json(),
    }
    return [*kept, newest][-KEPT:]


def decisions_of(evidence: Mapping[str, Any]) -> tuple[Decision, ...]:
    """Those of a wave, oldest first; InvalidError where one cannot be read."""
    return tuple(
        Decision(
            datetime.fromisoformat(one["at"]),
            Verdict(one["verdict"]),
            one["reason"],
            WaveFacts.from_json(one["facts"]),
            Rules.from_json(one["rules"]),
        )
        for one in evidence.get("decisions") or ()
    )


def compared_before(listed: Iterable[WaveRow]) -> list[Comparison]:
    """What the newest decision of each of these waves compared."""
    return [
        Comparison.from_json(found)
        for wave in listed
        for one in (wave.evidence.get("decisions") or ())[-1:]
        for found in one["facts"]["compared"]
    ]


def compared_texts(listed: Iterable[WaveRow]) -> Iterator[str]:
    """What the newest decision of each wave compared, and whether it comes out so once more."""
    for wave in listed:
        for one in decisions_of(wave.evidence)[-1:]:
            told = [compared_text(found) for found in one.facts.compared]
            if told:
                again = "the same" if one.holds else f"{one.again().verdict}, it was {one.verdict}"
                told.append(f"judged again from what was stored: {again}")
                yield f"wave {wave.number}: " + "; ".join(told)
