"""Texts of gRPC errors, cut to what reaches the other side. Invents no words.

They travel percent-encoded in the trailers; longer ones take the whole answer with them.
"""

# Clients take 8 KiB of trailers; other metadata needs a little of it.
BYTES_MOST = 6000


def fitting(text: str, most: int = BYTES_MOST) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    used = 0
    for at, character in enumerate(text):
        for byte in character.encode("utf-8", "replace"):
            used += 1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3
        if used > most:
            return f"{text[:at]}…"
    return text
