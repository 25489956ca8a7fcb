"""One line of a gate's judgement. Judges nothing."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and whether it holds."""

    ok: bool
    text: str

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {"ok": self.ok, "text": self.text}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Finding":
        """Read :meth:`to_json`."""
        return cls(bool(value["ok"]), str(value["text"]))
