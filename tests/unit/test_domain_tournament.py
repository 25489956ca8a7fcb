"""A ladder of what devices measured: the front, cut to a budget; medians; stale words."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.build import PassedBuild
from controller.domain.device import Capabilities
from controller.domain.ladder import Policy, compose_ladder, parse_policy
from controller.domain.tournament import (
    Budget,
    Candidate,
    Figures,
    Measured,
    combine,
    propose,
    stale,
)
from controller.errors import InvalidError

FREE = Budget()


def one(
    name: str, p95_ms: float, quality: float | None, size: int = 100, position: int = 0
) -> Candidate:
    figures = Figures(p95_ms / 2, p95_ms, rss_bytes=0, devices=1)
    return Candidate(name, f"v{position}", position, name, quality, size, figures)


def rungs(*candidates: Candidate, budget: Budget = FREE) -> list[str]:
    return [found.build_id for found in propose(candidates, budget).rungs]


def test_who_is_beaten_in_all_is_no_rung_and_the_reason_names_the_better_one() -> None:
    good, bad = one("int8", 20, 97.0, size=50), one("slow", 30, 97.0, size=60)
    found = propose([bad, good], FREE)
    assert [c.build_id for c in found.rungs] == ["int8"]
    assert "v0 int8 is as good or better in all" in found.cut[0].reason


def test_rungs_go_from_accurate_to_fast_and_a_hardly_faster_one_is_cut() -> None:
    made = [one("heavy", 100, 98.0), one("almost", 95, 97.0), one("light", 10, 90.0)]
    assert rungs(*made) == ["heavy", "light"]
    assert rungs(*made[:1], one("enough", 90, 97.0)) == ["heavy", "enough"]


def test_smaller_alone_is_on_the_front_and_no_rung() -> None:
    found = propose([one("fast", 10, 98.0, size=900), one("small", 30, 97.0, size=9)], FREE)
    assert [c.build_id for c in found.rungs] == ["fast"]
    assert "not 10 % below" in found.cut[0].reason


def test_the_budget_cuts_before_the_front_is_looked_for() -> None:
    made = [one("heavy", 100, 98.0, size=500), one("light", 10, 90.0)]
    assert rungs(*made, budget=Budget(latency_ms=50)) == ["light"]
    assert rungs(*made, budget=Budget(memory_bytes=300)) == ["light"]
    nothing = propose(made, Budget(latency_ms=5))
    assert nothing.rungs == ()
    assert all("over the budget of 5 ms" in cut.reason for cut in nothing.cut)


def test_without_comparable_accuracy_the_heavier_variant_counts_as_better() -> None:
    made = [one("h", 50, None, position=0), one("h2", 40, None), one("l", 9, None, position=1)]
    assert rungs(*made) == ["h2", "l"], "of one variant the fastest"


candidates = st.lists(
    st.builds(
        one,
        name=st.uuids().map(str),
        p95_ms=st.sampled_from([1.0, 2.0, 5.0, 9.5, 10.0, 50.0]),
        quality=st.sampled_from([90.0, 95.0, 99.0]),
        size=st.sampled_from([10, 100]),
    ),
    max_size=7,
    unique_by=lambda c: c.build_id,
)


@given(candidates)
def test_any_order_gives_the_same_ladder_and_nobody_is_lost(made: list[Candidate]) -> None:
    found = propose(made, FREE)
    assert {c.build_id for c in made} == {
        *(c.build_id for c in found.rungs),
        *(c.candidate.build_id for c in found.cut),
    }
    assert bool(found.rungs) == bool(made)
    for above, below in itertools.pairwise(found.rungs):
        assert below.figures.p95_ms <= 0.9 * above.figures.p95_ms
        assert (below.quality or 0) <= (above.quality or 0)
    assert propose(list(reversed(made)), FREE) == found


def word(p95_ms: float) -> Measured:
    return Measured(
        p50_ms=p95_ms, p95_ms=p95_ms, n=9, os="Debian", runtime="openvino", runtime_version="1"
    )


def test_one_liar_among_three_moves_the_median_no_further_than_the_others() -> None:
    for lie in (0.001, 1e6):
        found = combine([word(10), word(lie), word(12)])
        assert found is not None
        assert 10 <= found.p95_ms <= 12
    assert combine([Measured(reason="no room")]) is None


def test_another_os_or_runtime_makes_a_word_stale() -> None:
    now = Capabilities(os="Debian", runtimes={"openvino": "1"})
    assert stale(word(1), now) == ""
    assert stale(word(1), replace(now, os="Ubuntu")) == "the OS is Ubuntu, it was Debian"
    assert stale(word(1), replace(now, runtimes={"openvino": "2"})) == "openvino is 2, it was 1"
    assert stale(word(1), replace(now, runtimes={})) == "openvino is gone, it was 1"


@pytest.mark.parametrize(
    "figures",
    [
        {"p50_ms": 0.0, "p95_ms": 1.0, "n": 5},
        {"p50_ms": 2.0, "p95_ms": 1.0, "n": 5},
        {"p50_ms": 1.0, "p95_ms": 1e9, "n": 5},
        {"p50_ms": 1.0, "p95_ms": float("nan"), "n": 5},
        {"p50_ms": 1.0, "p95_ms": 1.0, "n": 0},
        {"p50_ms": 1.0, "p95_ms": 1.0, "n": 5, "rss_bytes": 2**52},
        {"p50_ms": 1.0, "p95_ms": 1.0, "n": 5, "energy_mj": -1.0},
        {},
    ],
)
def test_impossible_figures_are_none(figures: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        Measured.from_json(figures)


def build(name: str, variant: str, runtime: str = "onnxruntime", p50_ms: float = 5) -> PassedBuild:
    digest = "sha256:" + name.encode().hex().rjust(64, "0")
    return PassedBuild(name, variant, name, runtime, digest, 9, "application/onnx", p50_ms, 9)


PASSED = [build("a", "heavy"), build("b", "heavy", "openvino", 1), build("c", "light")]


def ladder(chosen: list[str], runtimes: tuple[str, ...], policy: Policy) -> list[tuple[str, str]]:
    found = compose_ladder(("heavy", "light"), PASSED, "pi", policy, runtimes, chosen)
    return [(rung.rung, rung.build.build_id) for rung in found.rungs if rung.build]


def test_a_chosen_ladder_is_what_a_device_gets_as_far_as_it_can() -> None:
    free, both = Policy("p"), ("onnxruntime", "openvino")
    assert ladder([], both, free) == [("heavy", "b"), ("light", "c")]
    assert ladder(["a", "b", "c"], both, free) == [("heavy", "a"), ("heavy-b", "b"), ("light", "c")]
    assert ladder(["a"], both, free) == [("heavy", "a")], "what was cut is not missed"
    assert ladder(["b", "c"], ("onnxruntime",), free) == [("heavy", "a"), ("light", "c")]
    assert ladder(["gone"], both, free) == [("heavy", "b"), ("light", "c")]
    wanted = parse_policy("p", {"rungs": [{"rung": "light"}, {"rung": "off"}]})
    assert ladder(["a", "b"], both, wanted) == [("light", "c")], "a policy's own wish holds"
