"""Makes foreign words safe for a terminal: names, reasons and files may hold escape sequences.

Says nothing about meaning; what cannot be printed is shown as it would be typed (``\\x1b``).
"""

import re

# What moves the cursor, colours, renames the window or turns the order of letters round; not the
# line break, which our own texts use, and not the spaces that merely are no ASCII.
_FOREIGN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """The text with everything visible that would steer a terminal; line breaks stay."""
    return _FOREIGN.sub(lambda found: _escaped(found[0]), text)


def one_line(text: str) -> str:
    """The same for what stands in a line with others."""
    return printable(text).replace("\n", "\\n")


def printable_json(text: str) -> str:
    """JSON text that means the same, and steers no terminal."""
    return _FOREIGN.sub(_json_escape, text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
