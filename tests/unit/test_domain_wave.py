"""Waves: the table of DESIGN, and what no entries may do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.wave import DEFAULT_WAVES, first_wave_limit, parse_waves, split_waves
from controller.errors import InvalidError, LightermanError, RefusedError

TABLE = [
    ("1,10%,50%,100%", 212, [1, 22, 106, 212]),
    ("3,10%,50%,100%", 212, [3, 22, 106, 212]),
    ("1,10%,50%,100%", 6, [1, 3, 6]),
    ("1,10%,50%,100%", 1, [1]),
    ("1,10%,50%,100%", 2, [1, 2]),
    ("1%,100%", 1000, [10, 1000]),
    ("0.1%,100%", 1000, [1, 1000]),
    ("0.05%,100%", 1000, [1, 1000]),
    ("1,33.3%,100%", 10, [1, 4, 10]),
    ("1,3,6", 6, [1, 3, 6]),
    ("1,99.9%", 6, [1, 6]),
    ("1,100", 6, [1, 6]),
]


@pytest.mark.parametrize(("text", "total", "caps"), TABLE)
def test_caps(text: str, total: int, caps: list[int]) -> None:
    waves = parse_waves(split_waves(text), total)
    assert [wave.cumulative for wave in waves.waves] == caps
    assert [wave.number for wave in waves.waves] == list(range(1, len(caps) + 1))
    assert sum(wave.devices for wave in waves.waves) == total


def test_an_empty_wave_is_dropped_with_a_note() -> None:
    waves = parse_waves(DEFAULT_WAVES, 6)
    assert waves.notes == ("wave 10% of 6 devices adds none and was dropped",)
    assert [wave.entry for wave in waves.waves] == ["1", "50%", "100%"]


def test_small_fleets_get_one_note_and_none_about_the_last_wave() -> None:
    assert parse_waves(DEFAULT_WAVES, 1).notes == (
        "waves 10%, 50% of 1 device add none and were dropped",
    )
    assert parse_waves(("1", "100%"), 1).notes == ()
    assert parse_waves(("1", "2", "100%"), 2).notes == ()


def test_a_number_above_the_selection_is_cut_with_a_note() -> None:
    waves = parse_waves(("1", "50", "100%"), 6)
    assert [wave.cumulative for wave in waves.waves] == [1, 6]
    assert waves.notes[0] == "wave 50 was cut to 6 devices, there are no more"


@pytest.mark.parametrize(
    ("text", "total", "message"),
    [
        ("10%,1,100%", 100, "the one before is 10"),
        ("1,50%", 100, "reaches 50 of 100"),
        ("1,101%", 100, "more than every device"),
        ("0,100%", 100, "exposes no device"),
        ("0%,100%", 100, "exposes no device"),
        ("1.5,100%", 100, "is no wave"),
        ("-1,100%", 100, "is no wave"),
        ("all", 100, "is no wave"),
        ("", 100, "no waves"),
        ("1,100%", 0, "no device"),
    ],
)
def test_refused(text: str, total: int, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_waves(split_waves(text), total)
    assert message in caught.value.text()


@pytest.mark.parametrize(("total", "limit"), [(1, 1), (99, 1), (100, 1), (101, 2), (212, 3)])
def test_the_first_wave_is_one_percent_at_most(total: int, limit: int) -> None:
    assert first_wave_limit(total) == limit
    parse_waves((str(limit), "100%"), total)
    if limit < total:
        with pytest.raises(RefusedError, match="without a reason"):
            parse_waves((str(limit + 1), "100%"), total)
        with pytest.raises(RefusedError):
            parse_waves((str(limit + 1), "100%"), total, "   ")
        assert parse_waves((str(limit + 1), "100%"), total, "lab").waves[0].devices == limit + 1


@given(
    st.lists(
        st.one_of(
            st.integers(0, 300).map(str),
            st.decimals(0, 120, places=2).map(lambda share: f"{share}%"),
        ),
        max_size=6,
    ),
    st.integers(0, 300),
)
def test_whatever_is_typed_exposes_more_each_time_and_all_in_the_end(
    entries: list[str], total: int
) -> None:
    try:
        waves = parse_waves(entries, total).waves
    except LightermanError:
        return
    caps = [wave.cumulative for wave in waves]
    assert caps == sorted(set(caps))
    assert caps[-1] == total
    assert caps[0] <= first_wave_limit(total)
