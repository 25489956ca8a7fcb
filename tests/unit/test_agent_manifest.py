"""The manifest parser: reads what is meant, refuses everything else, never crashes."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.desired import RungKind, check_fits
from agent.domain.manifest import parse_manifest, parse_model
from agent.domain.release_json import model_to_json
from agent.errors import ManifestError
from tests.support.releases import canonical, local_rung, manifest_body, model_body, other_rung

FULL = manifest_body(
    {
        **model_body(),
        "ladder": [
            other_rung("edge", "remote", "grpc://127.0.0.1:8001"),
            local_rung("heavy", b"h"),
            local_rung("light", b"l"),
            other_rung("off", "off"),
        ],
    }
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON document."""
    if at:
        yield at
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from paths(inner, (*at, key))


def with_change(change: Callable[[Any, Any], None], path: tuple[Any, ...]) -> bytes:
    body = copy.deepcopy(FULL)
    holder: Any = body
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return canonical(body)


def test_everything_is_read() -> None:
    state = parse_manifest(canonical(FULL))
    (model,) = state.models
    assert (state.generation, state.device, state.project) == (7, "pi5-0042", "default")
    assert state.issued_at.isoformat() == "2026-11-24T10:00:00+00:00"
    assert [r.kind for r in model.rungs] == [
        RungKind.REMOTE,
        RungKind.LOCAL,
        RungKind.LOCAL,
        RungKind.OFF,
    ]
    assert model.policy.slow_threshold_s == 0.1
    assert model.policy.ladder.link_up_s == 0.08
    assert model.policy.probation.min_inferences == 200
    assert [t.length for t in model.targets] == [1, 1]
    assert [r.name for r in model.local_rungs] == ["heavy", "light"]
    assert model.signature.inputs[0].shape == ("batch", 3, 8, 8)


def test_a_release_survives_being_written_and_read() -> None:
    release = parse_manifest(canonical(FULL)).models[0]
    again = parse_model(json.loads(json.dumps(model_to_json(release))))
    assert again == release
    assert again.slot_id == release.slot_id


def test_slots_are_named_by_content_not_by_rollout() -> None:
    one = parse_model(model_body("1.0.0", "r-1"))
    assert parse_model(model_body("1.0.0", "r-2")).slot_id == one.slot_id
    assert parse_model(model_body("1.0.1", "r-1")).slot_id != one.slot_id
    rebuilt = {**model_body(), "ladder": [local_rung("heavy", b"other")]}
    assert parse_model(rebuilt).slot_id != one.slot_id


@pytest.mark.parametrize("path", list(paths(FULL)), ids=str)
def test_no_key_may_be_missing(path: tuple[Any, ...]) -> None:
    if isinstance(path[-1], int) or path[-1] in ("profile", "build", "threshold"):
        return
    with pytest.raises(ManifestError):
        parse_manifest(with_change(lambda holder, key: holder.pop(key), path))


@pytest.mark.parametrize("wrong", [None, True, -1, 1.5, "\0", [], {}, [None], 1e400])
@pytest.mark.parametrize("path", list(paths(FULL)), ids=str)
def test_a_wrong_type_is_refused_or_means_the_same(path: tuple[Any, ...], wrong: Any) -> None:
    def change(holder: Any, key: Any) -> None:
        holder[key] = wrong

    try:
        state = parse_manifest(with_change(change, path))
    except ManifestError:
        return
    # Accepted: only where the key is free text, optional, a number or an open object.
    assert state.models or path == ("models",)
    for model in state.models:
        assert model.local_rungs
        assert all(t.digest.startswith("sha256:") and t.length > 0 for t in model.targets)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("protocol",), 2, "this agent speaks 1"),
        (("schema",), 0, "this agent speaks 1"),
        (("device",), "../x", "is not a device id"),
        (("models", 0, "model"), "../../etc", "is not a name"),
        (("models", 0, "model"), ".hidden", "is not a name"),
        (("models", 0, "version"), "1/2", "is not a name"),
        (("models", 0, "activation"), "later", "is unknown"),
        (("models", 0, "ladder"), [], "no local rung"),
        (("models", 0, "ladder"), [other_rung("off", "off")], "no local rung"),
        (("models", 0, "ladder", 3, "kind"), "asleep", "is unknown"),
        (("models", 0, "ladder", 0, "endpoint"), None, "endpoint belongs to remote"),
        (("models", 0, "ladder", 1, "target"), None, "needs a target"),
        (("models", 0, "ladder", 1, "runtime"), None, "needs a runtime"),
        (("models", 0, "ladder", 1, "rung"), "light", "names a rung twice"),
        (("models", 0, "ladder", 1, "target", "digest"), "sha256:AB", "is not sha256"),
        (("models", 0, "ladder", 1, "target", "length"), 0, "from 1"),
        (("models", 0, "ladder", 1, "target", "length"), 1 << 50, "beyond"),
        (("models", 0, "signature", "inputs", 0, "dtype"), "FLOAT", "is unknown"),
        (("models", 0, "signature", "inputs", 0, "shape"), [0], "a size or an axis name"),
        (("models", 0, "signature", "outputs"), [], "is empty"),
        (("models", 0, "policy", "slow_count"), 0, "from 1"),
        (("models", 0, "policy", "slow_threshold_ms"), 0, "has to be above"),
        (("models", 0, "policy", "probation", "max_s"), 1, "max_s is below min_s"),
        (("models", 0, "policy", "ladder", "temperature_up_c"), 81, "temperature steps up"),
        (("models", 0, "policy", "ladder", "link_up_ms"), 151, "link steps up"),
        (("issued_at",), "2026-11-24T10:00:00", "no time zone"),
        (("issued_at",), "yesterday", "is not a time"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    def change(holder: Any, key: Any) -> None:
        holder[key] = value

    with pytest.raises(ManifestError) as caught:
        parse_manifest(with_change(change, path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"schema":1,"schema":1}',
        b'{"schema":NaN}',
        b"[" * 100_000,
        b"9" * 100_000,
        b" " * (8 * 1024 * 1024 + 1),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


def test_a_model_is_named_once_and_off_stands_last() -> None:
    with pytest.raises(ManifestError, match="names a model twice"):
        parse_manifest(canonical(manifest_body(model_body(), model_body("2.0.0"))))
    ladder = [other_rung("off", "off"), local_rung("heavy", b"h")]
    with pytest.raises(ManifestError, match="off rung can only be the last"):
        parse_manifest(canonical(manifest_body({**model_body(), "ladder": ladder})))


def test_keys_it_does_not_know_are_left_alone() -> None:
    assert parse_manifest(canonical({**FULL, "new": 1})) == parse_manifest(canonical(FULL))


def test_a_state_for_another_device_or_from_the_past_does_not_fit() -> None:
    state = parse_manifest(canonical(FULL))
    check_fits(state, "pi5-0042", 7)
    with pytest.raises(ManifestError, match="is for device"):
        check_fits(state, "pi5-0043", 0)
    with pytest.raises(ManifestError, match="8 was seen before"):
        check_fits(state, "pi5-0042", 8)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_never_crash_the_parser(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash_the_parser(data: st.DataObject) -> None:
    text = bytearray(canonical(FULL))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_manifest(bytes(text))
    except ManifestError:
        return
