"""The loop under faults: disks that refuse, broken downloads, orders that overtake each other."""

import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

import agent.loop
import agent.loop_act
from agent.domain.assignment import Phase
from agent.domain.desired import Activation, DesiredModel
from agent.domain.events import Ending
from agent.errors import FetchError
from lighterman.v1 import device_pb2
from tests.support.disks import FailingDisk
from tests.support.loop_world import LoopWorld
from tests.support.serving import make_release, scaled

PROBATION = {"min_inferences": 5, "min_s": 0.05, "max_s": 600}
WAY_UP = ["OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION", "COMMITTED"]

Make = Callable[..., LoopWorld]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(agent.loop, "RETRY_S", 0.05)
    monkeypatch.setattr(agent.loop, "LOOK_S", 0.05)
    monkeypatch.setattr(agent.loop_act, "RETRY_S", 0.05)
    monkeypatch.setattr(agent.loop_act, "FETCH_WAIT_CAP_S", 0.1)
    made: list[LoopWorld] = []

    def make(*args: object, **settings: object) -> LoopWorld:
        made.append(LoopWorld(tmp_path / "state", **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.stop()


def release_of(version: str, factor: float, model: str = "photo", **policy: object) -> DesiredModel:
    changes: dict[str, object] = {"probation": PROBATION, "model": model, **policy}
    return make_release(version, {"heavy": scaled(factor)}, **changes)  # type: ignore[arg-type]


def states(world: LoopWorld, rollout: str) -> list[str]:
    return [state for name, state, _ in world.reports() if name == rollout]


def test_a_version_goes_all_the_way_and_the_last_word_says_applied(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    assert states(here, "r-3") == WAY_UP
    assert [applied for _, _, applied in here.reports()] == [False] * 6 + [True]
    assert here.answer() == 2.0


@pytest.mark.parametrize("call", range(1, 26))
def test_a_journal_that_refuses_once_delays_and_loses_nothing(world: Make, call: int) -> None:
    disk = FailingDisk(error=errno.ENOSPC)
    here = world(journal_disk=disk)
    here.wire.offer(scaled(2.0))
    disk.calls, disk.fail_at = 0, call
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    assert disk.failed, "the fault happened"
    # What could not be recorded at once is told later, so "applied" may come before the last state.
    here.wait(lambda: "COMMITTED" in states(here, "r-3"), "the last state told")
    # The last word may come twice: once without "applied", when just that could not be recorded.
    assert [state for state, _ in groupby(states(here, "r-3"))] == WAY_UP
    assert here.answer() == 2.0


@pytest.mark.parametrize("call", range(1, 12))
def test_a_store_that_refuses_once_is_retried_or_told(world: Make, call: int) -> None:
    disk = FailingDisk(error=errno.EIO)
    here = world(slots_disk=disk)
    here.wire.offer(scaled(2.0), scaled(3.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    disk.calls, disk.fail_at = 0, call
    here.order(4, release_of("1.1.0", 3.0))
    here.wait_applied(4)
    assert disk.failed, "the fault happened"
    assert states(here, "r-4")[-1] in ("COMMITTED", "FAILED")
    assert here.answer() == (3.0 if states(here, "r-4")[-1] == "COMMITTED" else 2.0)


def test_a_download_that_breaks_is_taken_up_again(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.wire.faults = [FetchError(f"broken {i}") for i in range(3)]
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    assert len(here.wire.fetched) == 4
    assert states(here, "r-3") == WAY_UP


def test_a_download_that_is_refused_fails_the_order_and_the_old_one_answers(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.order(4, release_of("1.1.0", 3.0))
    here.wait_applied(4)
    assert states(here, "r-4") == ["OFFERED", "DOWNLOADING", "FAILED"]
    assert here.answer() == 2.0


def test_what_the_version_before_answered_is_no_evidence_of_the_order(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.order(4, release_of("1.1.0", 3.0))
    here.wait_applied(4)
    said = [one.report for one in here.envelopes() if one.WhichOneof("body") == "report"]
    seen = {one.state: one.evidence.inferences for one in said if one.rollout == "r-4"}
    # The version before had answered all the time; the order begins at none.
    assert seen[device_pb2.ASSIGNMENT_STATE_OFFERED] == 0
    assert seen[device_pb2.ASSIGNMENT_STATE_STAGED] == 0
    assert seen[device_pb2.ASSIGNMENT_STATE_COMMITTED] >= PROBATION["min_inferences"]


def test_the_newest_order_overtakes_a_running_download(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    hold = here.wire.hold = threading.Event()
    here.order(3, release_of("1.0.0", 2.0))
    here.wait(lambda: states(here, "r-3")[-1:] == ["DOWNLOADING"], "the download")
    here.wire.hold = None
    here.order(4, release_of("1.1.0", 3.0))
    here.wait(lambda: states(here, "r-3")[-1:] == ["SUPERSEDED"], "superseded")
    hold.set()
    here.wait_applied(4)
    assert states(here, "r-4") == WAY_UP
    assert here.answer() == 3.0


def test_a_generation_is_applied_when_all_of_it_is_settled(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    quick = release_of("1.0.0", 2.0)
    slow = release_of("1.0.0", 3.0, model="other",
                      probation={"min_inferences": 5, "min_s": 1.0, "max_s": 600})  # fmt: skip
    here.order(3, quick, slow)
    here.wait(lambda: here.state().phase is Phase.COMMITTED, "the quick one")
    assert here.loop.generations().applied == 0
    here.wait_applied(3)
    assert here.state("other").phase is Phase.COMMITTED
    assert [applied for _, _, applied in here.reports()].count(True) == 1


def test_a_model_that_is_to_come_keeps_the_generation_open(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    first = release_of("1.0.0", 2.0)
    here.order(3, first)
    here.wait_applied(3)
    told = len(here.reports())
    # The known model settles within its own step, before the new one got its order.
    here.order(4, first, release_of("1.0.0", 3.0, model="zebra"), rollout="r-3")
    here.wait_applied(4)
    later = [(state, applied) for _, state, applied in here.reports()[told:]]
    assert later[0] == ("COMMITTED", False)
    assert later[-1] == ("COMMITTED", True)
    assert [applied for _, applied in later].count(True) == 1


def test_the_same_generation_twice_and_an_older_one_change_nothing(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    here.order(4, release_of("1.0.0", 2.0))
    here.wait_applied(4)
    told = len(here.reports())
    here.order(4, release_of("1.0.0", 2.0))
    here.order(3, release_of("0.9.0", 3.0))
    here.wait(lambda: here.events("manifest_refused"), "the older one to be refused")
    assert len(here.reports()) == told
    assert here.answer() == 2.0
    assert here.loop.generations().seen == 4


def test_a_model_that_is_no_longer_named_goes_back_and_the_generation_is_applied(
    world: Make,
) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.order(4)
    here.wait_applied(4)


def test_handover_and_foreign_runtimes_are_refused_before_a_byte_moves(world: Make) -> None:
    here = world()
    release = release_of("1.0.0", 2.0)
    here.order(3, replace(release, activation=Activation.HANDOVER))
    here.wait_applied(3)
    assert [applied for _, _, applied in here.reports()] == [False, True]
    foreign = replace(release, rungs=(replace(release.rungs[0], runtime="tensorrt"),))
    here.order(4, foreign)
    here.wait_applied(4)
    assert states(here, "r-3") == ["OFFERED", "REFUSED"]
    assert states(here, "r-4") == ["OFFERED", "REFUSED"]
    assert here.wire.fetched == []


def test_what_died_between_journal_and_spool_is_told_after_a_crash(
    world: Make, tmp_path: Path
) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.stop()
    here.spool.ack(here.spool.pending(1)[0].boot_id, 10_000)
    after = world(ending=Ending.CRASHED)
    assert after.reports() == [("r-3", "COMMITTED", True)]
    assert after.answer() == 2.0


def test_telemetry_tells_rungs_models_and_the_applied_generation(world: Make) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.sensors.felt = replace(here.sensors.felt, temperature_c=51.5)

    def newest() -> device_pb2.Telemetry:
        return device_pb2.Envelope.FromString(here.windows[-1]).telemetry

    here.wait(lambda: here.windows and newest().temperature_c == 51.5, "a new window")
    seen = newest()
    assert seen.applied_generation == 3
    assert not seen.HasField("memory_used_pct")
    assert [(m.model, m.version, m.rung, m.phase) for m in seen.models] == [
        ("photo", "1.0.0", "heavy", "COMMITTED")
    ]
    assert seen.samples[0].service.count == sum(seen.samples[0].service.bucket) > 0
    assert seen.samples[0].service.scale == 3


def in_probation(world: Make) -> LoopWorld:
    """Committed 1.0.0, then 1.1.0 answering and not proven; stopped."""
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    forever = {"min_inferences": 1_000_000, "min_s": 600, "max_s": 6000}
    here.order(4, release_of("1.1.0", 3.0, probation=forever))
    here.wait(lambda: states(here, "r-4")[-1:] == ["PROBATION"], "probation")
    here.stop()
    return here


def test_a_crash_in_probation_goes_back_before_anybody_is_asked(world: Make) -> None:
    in_probation(world)
    after = world(ending=Ending.CRASHED)
    after.wait(lambda: after.events("rolled_back"), "the way back to be told")
    assert after.state().phase is Phase.ROLLED_BACK
    assert after.answer() == 2.0
    assert after.events("rolled_back")[0].details["cause"] == "crash"


def test_a_start_that_takes_a_crash_for_an_end_would_stay_on_the_bad_version(world: Make) -> None:
    """The negative control: only the record of the unclean end makes it go back."""
    in_probation(world)
    after = world(ending=Ending.CLEAN)
    assert after.state().phase is Phase.PROBATION
    assert after.answer() == 3.0


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_a_journal_that_lost_its_end_still_serves_what_was_proven(
    world: Make, tmp_path: Path, share: float
) -> None:
    here = world()
    here.wire.offer(scaled(2.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.stop()
    journal = tmp_path / "state" / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: int(len(whole) * share)])
    after = world()
    assert after.answer() == 2.0, "it serves when the boot ends, before anything is worked on"


def test_what_a_start_found_damaged_is_ordered_anew_however_often_it_starts(
    world: Make, tmp_path: Path
) -> None:
    """The second start sees the repaired state alone, and must know that it waits for an order."""
    here = world()
    here.wire.offer(scaled(2.0), scaled(3.0))
    here.order(3, release_of("1.0.0", 2.0))
    here.wait_applied(3)
    here.order(4, release_of("1.1.0", 3.0))
    here.wait_applied(4)
    here.stop()
    current, _, _ = here.store.slots("photo")
    assert current is not None
    Path(here.store.path(current.release.targets[0].digest)).unlink()
    for _ in range(2):
        after = world()
        assert after.answer() == 2.0, "the spare answers"
        assert after.loop.generations().taken == 0, "nothing is known to be under way"
        after.stop()
    last = world()
    last.wire.offer(scaled(3.0))
    last.order(4, release_of("1.1.0", 3.0))
    last.wait(lambda: last.state().phase is Phase.COMMITTED, "the repaired version")
    assert last.answer() == 3.0
    assert last.loop.generations().seen == 4
