"""Policies are read strictly and travel whole; a ladder has its fastest passed builds."""

import json
from dataclasses import replace

import pytest

from agent.domain.manifest import parse_model
from agent.domain.manifest import parse_policy as parse_on_agent
from agent.domain.remote import parse_remote
from controller.domain.build import PassedBuild
from controller.domain.evidence import OnInconclusive, Worse
from controller.domain.ladder import (
    GateLimits,
    Policy,
    RungKind,
    compose_ladder,
    parse_policy,
    pick_policy,
)
from controller.domain.selection import Subject
from controller.domain.selector import parse_selector
from controller.errors import InvalidError

VARIANTS = ("heavy", "light")


def build(variant: str, recipe: str, p50_ms: float | None, **more: object) -> PassedBuild:
    base = PassedBuild(
        build_id=f"b-{variant}-{recipe}",
        variant=variant,
        recipe=f"onnxruntime-{recipe}",
        runtime="onnxruntime",
        digest="sha256:" + f"{hash((variant, recipe)) & 0xFFFF:064x}",
        length=1000,
        media_type="application/onnx",
        p50_ms=p50_ms,
        peak_rss_bytes=50_000_000,
    )
    return replace(base, **more)  # type: ignore[arg-type]


PASSED = [
    build("heavy", "fp32", 74.0),
    build("heavy", "int8", 21.0),
    build("light", "fp32", 9.9),
    build("light", "int8", None),
]


def names(policy: Policy, passed: list[PassedBuild] | None = None) -> list[str]:
    ladder = compose_ladder(VARIANTS, PASSED if passed is None else passed, "pi", policy)
    return [f"{r.rung}/{r.build.recipe if r.build else r.kind}" for r in ladder.rungs]


def test_the_fastest_passed_build_of_each_variant_heavy_to_light() -> None:
    assert names(Policy("p")) == ["heavy/onnxruntime-int8", "light/onnxruntime-fp32"]


def test_rungs_of_the_policy_with_a_remote_one_first_and_off_last() -> None:
    policy = parse_policy(
        "p",
        {
            "rungs": [
                {"rung": "heavy"},
                {"rung": "light"},
                {"rung": "edge", "endpoint": "grpc://127.0.0.1:8001", "position": "first"},
                {"rung": "off"},
            ]
        },
    )
    assert names(policy) == [
        "edge/remote",
        "heavy/onnxruntime-int8",
        "light/onnxruntime-fp32",
        "off/off",
    ]


def test_a_variant_without_a_passed_build_is_missing() -> None:
    ladder = compose_ladder(VARIANTS, PASSED[2:], "pi", Policy("p"))
    assert [rung.rung for rung in ladder.rungs] == ["light"]
    assert ladder.missing == ("heavy",)
    assert compose_ladder(VARIANTS, PASSED, "pi", Policy("p")).missing == ()


def test_what_the_policy_does_not_want_is_not_missing() -> None:
    light = parse_policy("p", {"rungs": [{"rung": "light"}, {"rung": "tiny"}, {"rung": "off"}]})
    ladder = compose_ladder(VARIANTS, PASSED[2:], "pi", light)
    assert [rung.rung for rung in ladder.rungs] == ["light", "off"]
    assert ladder.missing == ()


def test_no_local_rung_is_no_ladder() -> None:
    assert compose_ladder(VARIANTS, [], "pi", Policy("p")).reason == (
        "no passed build for profile pi"
    )
    assert not compose_ladder(VARIANTS, PASSED, "pi", Policy("p"), ["tensorrt"]).rungs
    edge = {"rungs": [{"rung": "heavy"}, {"rung": "edge", "endpoint": "grpc://h:1"}]}
    assert not compose_ladder(VARIANTS, PASSED[2:], "pi", parse_policy("p", edge)).rungs


def test_the_agent_reads_what_is_composed() -> None:
    spec = {
        "rungs": [
            {"rung": "heavy"},
            {"rung": "edge", "endpoint": "grpc://127.0.0.1:8001", "position": "first"},
            {"rung": "off"},
        ]
    }
    policy = parse_policy("photo", spec)
    ladder = compose_ladder(VARIANTS, PASSED, "pi", policy)
    axes = ["batch", 3, 8, 8]
    entry = {
        "model": "photo",
        "version": "1.0.0",
        "rollout": "r-1",
        "activation": "serve",
        "signature": {
            "inputs": [{"name": "image", "dtype": "FP32", "shape": axes}],
            "outputs": [{"name": "scores", "dtype": "FP32", "shape": ["batch", 10]}],
        },
        "labels": ["cat"],
        "params": {},
        "ladder": [rung.to_manifest("pi") for rung in ladder.rungs],
        "policy": policy.to_manifest(),
    }
    read = parse_model(json.loads(json.dumps(entry)))
    assert [rung.name for rung in read.rungs] == ["edge", "heavy", "off"]
    assert read.targets[0].length == 1000
    assert read.policy.slow_threshold_s == 0.1


@pytest.mark.parametrize(
    ("endpoint", "fits"),
    [
        ("grpc://10.0.0.5:8001", True), ("grpc://[::1]:8001", True),
        ("grpc://triton:8001?1.1.0=1", True), ("grpc://triton:8001?1.1.0=1&1.2.0=", True),
        ("grpcs://edge:8001", False), ("edge:8001", False), ("grpc://edge", False),
        ("grpc://:8001", False), ("grpc://edge:8001?", False), ("grpc://edge:8001?1.1.0", False),
        ("grpc://edge:8001?=1", False), ("grpc://edge:8001?1.0.0=1&1.0.0=2", False),
        ("grpc://edge:8001/photo", False),
    ],
)  # fmt: skip
def test_an_endpoint_is_one_that_devices_can_use(endpoint: str, fits: bool) -> None:
    spec = {"rungs": [{"rung": "heavy"}, {"rung": "edge", "endpoint": endpoint}]}
    if not fits:
        with pytest.raises(InvalidError, match=r"is no grpc://HOST:PORT"):
            parse_policy("p", spec)
        return
    assert parse_policy("p", spec).rungs[1].endpoint == endpoint
    assert parse_remote(endpoint).address in endpoint


def test_defaults_are_what_the_agent_accepts() -> None:
    read = parse_on_agent(json.loads(json.dumps(parse_policy("default", {}).to_manifest())))
    assert (read.slow_count, read.idle_gap_s) == (5, 2.0)


def test_the_policy_of_a_device() -> None:
    cold = Policy("cold", model="photo", selector=parse_selector("site=cold"), priority=5)
    photo = Policy("photo", model="photo")
    default = Policy("default", priority=99)
    every = [default, photo, cold]
    berlin, north = Subject("a"), Subject("b", labels={"site": "cold"})
    assert pick_policy(every, "photo", berlin).name == "photo"
    assert pick_policy(every, "photo", north).name == "cold"
    assert pick_policy(every, "audio", north).name == "default"
    assert pick_policy([], "audio", north) == Policy("default")


@pytest.mark.parametrize(
    "spec",
    [
        {"slow_treshold_ms": 100},
        {"slow_threshold_ms": 0},
        {"slow_count": 0},
        {"slow_count": 2.5},
        {"slow_count": True},
        {"idle_gap_s": -1},
        {"probation": {"min_s": 10, "max_s": 5}},
        {"probation": {"min_inferences": 0}},
        {"ladder": {"temperature_up_c": 90}},
        {"ladder": {"p95_recover_pct": 120}},
        {"ladder": {"temperature": 90}},
        {"selector": "a=b=c"},
        {"rungs": []},
        {"rungs": [{"rung": "off"}]},
        {"rungs": [{"rung": "off"}, {"rung": "heavy"}]},
        {"rungs": [{"rung": "heavy"}, {"rung": "heavy"}]},
        {"rungs": [{"rung": "edge", "endpoint": "http://h:1"}, {"rung": "heavy"}]},
        {"rungs": [{"rung": "heavy", "position": "last"}]},
        {"rungs": "heavy"},
    ],
)
def test_a_wrong_policy_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        parse_policy("x", spec)


def test_kinds_are_those_of_the_manifest() -> None:
    assert [kind.value for kind in RungKind] == ["local", "remote", "off"]


def test_limits_of_the_gate_are_read_strictly_and_stay_with_the_controller() -> None:
    assert parse_policy("p", {}).gate == GateLimits()
    gate = {"slower_pct": 10, "stepped_down_pts": 5, "worse": "hold"}
    policy = parse_policy("p", {"gate": gate})
    assert policy.gate == GateLimits(10.0, 5.0, Worse.HOLD)
    unsure = parse_policy("p", {"gate": {"on_inconclusive": "roll_back"}}).gate
    assert unsure == GateLimits(on_inconclusive=OnInconclusive.ROLL_BACK)
    assert "gate" not in policy.to_manifest()
    for slip, message in (
        ({"slower": 10}, "unknown keys: slower"),
        ({"worse": "pass"}, "known are roll_back, hold"),
        ({"on_inconclusive": "pass"}, "known are pause, roll_back"),
        ({"slower_pct": -1}, "slower_pct is -1"),
    ):
        with pytest.raises(InvalidError) as caught:
            parse_policy("p", {"gate": slip})
        assert message in caught.value.text()
