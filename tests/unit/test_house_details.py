"""Texts of errors reach the other side whole, or cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.details import BYTES_MOST, fitting


def encoded(text: str) -> int:
    plain = sum(0x20 <= byte < 0x7F and byte != 0x25 for byte in text.encode("utf-8", "replace"))
    return plain + 3 * (len(text.encode("utf-8", "replace")) - plain)


@given(st.text(max_size=50), st.integers(min_value=10, max_value=200))
def test_what_fits_stays_and_what_does_not_is_cut(text: str, most: int) -> None:
    cut = fitting(text, most)
    if encoded(text) <= most:
        assert cut == text
    else:
        assert cut.endswith("…")
        assert text.startswith(cut[:-1])
        assert encoded(cut[:-1]) <= most


@pytest.mark.parametrize("text", ["x" * 100_000, "🦆" * 10_000, "%" * 9_000, "\n" * 9_000])
def test_nothing_is_longer_than_a_client_takes(text: str) -> None:
    assert encoded(fitting(text)) <= BYTES_MOST + encoded("…")
