"""Profiles are matched by reported facts; sizes and specs are read strictly."""

import pytest

from controller.domain.device import (
    Capabilities,
    Profile,
    host_matches,
    match_profile,
    parse_profile,
)
from controller.domain.spec import parse_size
from controller.errors import InvalidError

PI5 = Capabilities(
    arch="aarch64",
    cpu_model="Cortex-A76",
    device_model="Raspberry Pi 5 Model B Rev 1.0",
    runtimes={"onnxruntime": "1.32.0"},
)
N100 = Capabilities(
    arch="x86_64",
    cpu_model="Intel(R) N100",
    device_model="NUC",
    runtimes={"onnxruntime": "1.32.0"},
    accelerators=("gpu:intel",),
)
PROFILES = [
    Profile("generic-aarch64", arch="aarch64", priority=0),
    Profile("generic-x86-64", arch="x86_64", priority=0),
    Profile("raspberry-pi-5", arch="aarch64", device_model="Raspberry Pi 5*", priority=10),
    Profile("intel-n100", arch="x86_64", cpu_model="*N100*", priority=10),
    Profile("npu", arch="x86_64", accelerators=("npu:*",), priority=20),
]


def name_of(capabilities: Capabilities) -> str | None:
    found = match_profile(capabilities, PROFILES)
    return found.name if found else None


def test_the_most_special_profile_that_fits() -> None:
    assert name_of(PI5) == "raspberry-pi-5"
    assert name_of(N100) == "intel-n100"
    assert name_of(Capabilities(arch="aarch64", runtimes={"onnxruntime": "1"})) == "generic-aarch64"


def test_accelerators_and_runtimes_have_to_be_there() -> None:
    with_npu = Capabilities(
        arch="x86_64", accelerators=("gpu:x", "NPU:intel"), runtimes={"onnxruntime": "1"}
    )
    assert name_of(with_npu) == "npu"
    assert name_of(Capabilities(arch="x86_64", runtimes={"tensorrt": "10"})) is None
    assert name_of(Capabilities(arch="riscv64", runtimes={"onnxruntime": "1"})) is None


def test_equal_priorities_are_settled_by_name() -> None:
    twins = [Profile("b"), Profile("a")]
    found = match_profile(PI5, twins)
    assert found is not None
    assert found.name == "a"


def test_figures_of_a_generic_profile_speak_for_nothing() -> None:
    assert not host_matches(PI5, PROFILES[0])
    assert host_matches(PI5, PROFILES[2])
    assert not host_matches(N100, PROFILES[2])


def test_capabilities_come_back_from_json() -> None:
    assert Capabilities.from_json(N100.to_json()) == N100
    assert Capabilities.from_json({}) == Capabilities()


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * 1024**2), ("1.5 GB", 1_500_000_000), (7, 7), ("10", 10), ("3kb", 3000)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text, "x") == size


@pytest.mark.parametrize("text", ["", "12 apples", -1, None, True, 1.5, "-3MB"])
def test_no_sizes(text: object) -> None:
    with pytest.raises(InvalidError):
        parse_size(text, "x")


def test_a_full_profile_is_read() -> None:
    profile = parse_profile(
        "raspberry-pi-5",
        {
            "description": "8 GB",
            "verified": True,
            "match": {"arch": "aarch64", "device_model": "Raspberry Pi 5*", "cpu_model": "*"},
            "priority": 10,
            "runtimes": ["onnxruntime"],
            "recipes": ["onnxruntime-int8"],
            "memory_budget_bytes": "512MiB",
            "latency_budget_ms": 100,
            "thermal": {"throttle_c": 85},
            "runtime_python": None,
        },
    )
    assert (profile.throttle_c, profile.memory_budget_bytes) == (85.0, 512 * 1024**2)
    assert profile.hosting.runtime_python == ""


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"runtimes": "onnxruntime", "recipes": []},
        {"runtimes": ["onnxruntime"], "recipes": [], "matches": {}},
        {"runtimes": ["onnxruntime"], "recipes": [], "match": {"board": "x"}},
        {"runtimes": ["onnxruntime"], "recipes": [], "latency_budget_ms": "fast"},
    ],
)
def test_a_wrong_profile_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InvalidError, match="Profile x: spec"):
        parse_profile("x", spec)


def test_a_profile_says_how_builds_run() -> None:
    spec = {
        "runtimes": ["onnxruntime"],
        "recipes": [],
        "model_host": "child",
        "runtime_python": "3.10",
        "runtime_options": {"openvino": {"device": "NPU"}, "of-others": {"odd": 1.5}},
    }
    hosting = parse_profile("box", spec).hosting
    child = {"model_host": "child", "runtime_python": "3.10"}
    assert hosting.of("openvino") == {**child, "device": "NPU"}
    assert hosting.of("of-others") == {**child, "odd": 1.5}
    assert parse_profile("box", {"runtimes": [], "recipes": []}).hosting.of("openvino") == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model_host": "moon"}, "model_host is 'moon'"),
        ({"runtime_options": {"openvino": {"devise": "GPU"}}}, "did you mean device"),
        ({"runtime_options": {"openvino": {"device": 1}}}, "a text is needed"),
        ({"runtime_options": {"onnxruntime": {"device_id": True}}}, "a whole number is needed"),
        ({"runtime_options": {"of-others": {"cache_dir": "/etc"}}}, "is the agent's own"),
        ({"runtime_options": {"of-others": {"list": [1]}}}, "a text, number or flag"),
        ({"runtime_options": {"openvino": 3}}, "is not a mapping"),
    ],
)
def test_a_slip_in_how_builds_run_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_profile("box", {"runtimes": ["onnxruntime"], "recipes": [], **wrong})
    assert said in refused.value.text()
