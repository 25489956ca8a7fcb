"""A library's own words: whole into the job's log, of which a reason takes what people understand.

They hold paths of the build host and text for C++ authors: never passed on as a reason.
"""

import re
import sys

MAX_RAW_CHARS = 4000
_LOG = "; the library's own words are in the job's last lines"
# What runtimes say in known cases, and what it means.
_MEANINGS = (
    (re.compile(r"Could not find an implementation for (\w+)\((\d+)\)"), "it has no operator {0}"),
    (re.compile(r"No Op registered for (\w+)"), "it has no operator {0}"),
    (re.compile(r"No conversion rule found for operations: (\w+)"), "it has no operator {0}"),
    (re.compile(r"Fatal error: ([\w.]+:\w+)\S* is not a registered"), "it has no operator {0}"),
    (re.compile(r"[Oo]pset (\d+) is under development"), "its opset {0} is newer than the runtime"),
    (
        re.compile(r"bad_alloc|[Ff]ailed to allocate|MemoryError|out of memory"),
        "it needs more memory than a job may take",
    ),
    (re.compile(r"indices element out of data bounds"), "an index is outside of its table"),
    (
        re.compile(r"INVALID_ARGUMENT.*(?:Got invalid dimensions|Invalid rank)", re.S),
        "the inputs' shape does not fit the graph",
    ),
    (
        re.compile(
            r"cannot be reshaped|[Ss]hape mismatch|invalid expand shape|ShapeInferenceError"
        ),
        "shapes do not fit",
    ),
    (re.compile(r"while running (\w+) node"), "the operator {0} fails"),
)


def keep_raw(error: BaseException) -> None:
    """Write a library's error to stderr, which is the job's log."""
    sys.stderr.write(f"{type(error).__name__}: {str(error).strip()[:MAX_RAW_CHARS]}\n")


def first_words(raw: str) -> str:
    """What the raw text means, in our words, as the end of a sentence; and where it stands."""
    for pattern, meaning in _MEANINGS:
        found = pattern.search(raw)
        if found:
            named = [part[:60] for part in found.groups() if part] or [""]
            return f": {meaning.format(*named)}{_LOG}"
    return _LOG
