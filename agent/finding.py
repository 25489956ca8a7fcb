"""What `lighterman-agent doctor` says of one thing it looked at. Holds no look of its own."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a look ended; NOTE is nothing wrong but worth knowing."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `todo` says what to do about a problem."""

    what: str
    verdict: Verdict
    text: str
    todo: str = ""
