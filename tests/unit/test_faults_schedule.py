"""The schedule of random faults: the same for the same seed, within what is promised."""

from itertools import islice

import pytest

from tests.faults.schedule import (
    LONG_AWAY_S,
    OF_THE_CENTRE,
    Fault,
    Kind,
    illnesses,
    stretches,
)

DEVICES = ("a", "b", "c", "d", "e", "f")


def make(seed: int, seconds: float = 600.0) -> list[list[Fault]]:
    return stretches(seed, seconds, DEVICES, ("f",), 120.0)


def test_a_seed_is_played_again_and_another_one_is_another() -> None:
    assert make(7) == make(7)
    assert make(7) != make(8)


@pytest.mark.parametrize("seed", range(50))
def test_faults_stand_in_order_and_never_twice_at_one_place(seed: int) -> None:
    for part in make(seed):
        assert [fault.at_s for fault in part] == sorted(fault.at_s for fault in part)
        over: dict[str, float] = {}
        for fault in part:
            place = "edge" if fault.kind is Kind.EDGE_LINK else fault.device
            assert fault.at_s >= over.get(place, 0.0), f"{fault} while another one is there"
            over[place] = fault.at_s + fault.for_s
            assert (place == "") == (fault.kind in OF_THE_CENTRE)
            assert fault.kind is not Kind.DISK_FULL or fault.device == "f"


@pytest.mark.parametrize("seed", range(50))
def test_a_long_run_has_every_kind_and_a_controller_away_for_a_minute_once(seed: int) -> None:
    faults = [fault for part in make(seed) for fault in part]
    assert {fault.kind for fault in faults} >= set(Kind) - {Kind.EDGE_LINK, Kind.DISK_FULL}
    away = [f for f in faults if f.kind is Kind.CONTROLLER_KILL and f.for_s == LONG_AWAY_S]
    assert len(away) == 1
    assert away[0].at_s + LONG_AWAY_S < 120.0, "a calm point would end it"


@pytest.mark.parametrize("seed", range(50))
def test_ten_versions_have_each_of_five_kinds_once(seed: int) -> None:
    kinds = ["answers NaN", "eats memory", "hangs", "is slow", "raises"]
    dealt = list(islice(illnesses(seed, kinds), 20))
    assert dealt == list(islice(illnesses(seed, kinds), 20))
    for ten in (dealt[:10], dealt[10:]):
        assert sorted(one for one in ten if one) == kinds
    assert all("" in dealt[at : at + 2] for at in range(0, 20, 2)), "a good one of each two"


def test_without_a_disk_to_fill_none_is_filled() -> None:
    found = stretches(3, 600.0, DEVICES, (), 120.0)
    assert all(fault.kind is not Kind.DISK_FULL for part in found for fault in part)
