"""Shared engines: only a builder gives, only for its own key; the exact key finds it, or none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError
from agent.link.errors import TrustError
from agent.link.orders import OrdersVerifier, Signed, SignedEngine
from agent.link.trust import Signature
from controller.errors import DeniedError, InvalidError
from controller.services.desired import change_desired
from controller.services.devices import get_device, retire_device
from controller.services.engines import (
    EngineView,
    allowed_digests,
    find_shared,
    list_shared,
    publish_engine,
    set_role,
)
from controller.store.devices import put_capabilities
from controller.trust.signing import Signer
from tests.support.catalogue import World, digest_of, open_world
from tests.support.stores import seed_device

BUILD = digest_of(b"a build")
HOST = {
    "arch": "x86_64", "os": "Debian 12", "cpu_model": "Intel(R) N100",
    "accelerators": ["npu:intel"], "runtimes": {"openvino": "2026.4.1"},
}  # fmt: skip
KEY = {
    "runtime": "openvino", "version": "2026.4.1", "build": BUILD, "arch": "x86_64",
    "os": "Debian 12", "accelerators": "npu:intel", "openvino": "2026.4.1-1-abc",
    "cpu": "model name: Intel(R) N100; flags: avx2; microcode: 0x1", "wanted": "{'STREAMS': 1}",
}  # fmt: skip
BLOB = b"compiled" * 100


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for opened in open_world(tmp_path):
        for name in ("lab", "field"):
            enrol(opened, name)
        set_role(opened.deps, opened.ctx, "lab", "builder", granted=True)
        yield opened


def enrol(world: World, name: str) -> None:
    rung = {"target": {"digest": BUILD}}
    with world.deps.store.write() as conn:
        seed_device(conn, name)
        put_capabilities(conn, name, HOST, world.ctx.now)
        change_desired(conn, world.deps, world.ctx, name, "m", {"ladder": [rung]})


def give(world: World, device: str = "lab", changed: dict[str, str] | None = None) -> EngineView:
    text, blob = json.dumps({**KEY, **(changed or {})}), BLOB
    return publish_engine(world.deps, world.ctx, device, text, digest_of(blob), len(blob), [blob])


def ask(world: World, device: str = "field", **changes: str) -> EngineView | None:
    return find_shared(world.deps, world.ctx, device, json.dumps({**KEY, **changes}))


def test_what_a_builder_gives_reaches_its_like_and_names_it(world: World) -> None:
    assert ask(world) is None
    give(world)
    found = ask(world)
    assert found is not None
    target = verify(world, found)
    assert (target.digest, target.length) == (digest_of(BLOB), len(BLOB))
    assert target.custom["builder"] == "lab"
    assert digest_of(BLOB) in allowed_digests(world.deps, world.ctx, "field", target.digest)
    assert get_device(world.deps, world.ctx, "lab").roles == ("builder",)


def test_a_key_that_differs_in_anything_finds_nothing(world: World) -> None:
    give(world)
    for name in sorted(set(KEY) - {"build"}):
        assert ask(world, **{name: KEY[name] + "x"}) is None
    assert ask(world, more="x") is None


def test_who_is_no_builder_gives_nothing_and_no_byte_of_it_is_read(world: World) -> None:
    def bytes_of_it() -> Iterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    text = json.dumps(KEY)
    with pytest.raises(DeniedError, match="field is no builder"):
        publish_engine(
            world.deps, world.ctx, "field", text, digest_of(BLOB), len(BLOB), bytes_of_it()
        )
    assert list_shared(world.deps, world.ctx) == []
    assert ask(world, "lab") is None


def test_a_key_that_is_not_its_devices_is_refused(world: World) -> None:
    for name, other in (
        ("arch", "aarch64"),
        ("os", "Debian 13"),
        ("version", "2026.5.0"),
        ("runtime", "tensorrt"),
        ("cpu", "model name: Cortex-A76"),
        ("accelerators", "cuda:orin"),
    ):
        with pytest.raises(InvalidError, match="is not its device's"):
            give(world, changed={name: other})


def test_only_builds_of_ones_own_are_given_or_asked_for(world: World) -> None:
    other = digest_of(b"another build")
    with pytest.raises(DeniedError, match="is not part of what lab should run"):
        give(world, changed={"build": other})
    with pytest.raises(DeniedError, match="is not part of what field should run"):
        ask(world, build=other)
    give(world)
    with world.deps.store.write() as conn:
        seed_device(conn, "stranger")
    with pytest.raises(DeniedError):
        ask(world, "stranger")
    assert digest_of(BLOB) not in allowed_digests(
        world.deps, world.ctx, "stranger", digest_of(BLOB)
    )


def test_a_key_that_is_none_is_refused(world: World) -> None:
    no_digest = json.dumps({**KEY, "build": "sha256:x"})
    for text in ("", "[]", '{"build": 1}', no_digest, "{" * 9, "1" * 70_000):
        with pytest.raises(InvalidError):
            publish_engine(world.deps, world.ctx, "lab", text, digest_of(BLOB), len(BLOB), [BLOB])
        with pytest.raises(InvalidError):
            find_shared(world.deps, world.ctx, "lab", text)


def test_a_role_that_is_taken_takes_what_it_gave(world: World) -> None:
    give(world)
    set_role(world.deps, world.ctx, "lab", "builder", granted=False)
    assert ask(world) is None
    with pytest.raises(DeniedError):
        give(world)
    set_role(world.deps, world.ctx, "lab", "builder", granted=True)
    give(world)
    retire_device(world.deps, world.ctx, "lab")
    assert ask(world) is None


def wire(signatures: Any) -> tuple[Signature, ...]:
    return tuple(Signature(one.key_id, one.signature) for one in signatures)


def came(found: EngineView) -> SignedEngine:
    return SignedEngine(
        Signed(found.statement, wire(found.signatures)),
        Signed(found.delegation, wire(found.delegation_signatures)),
    )


def verify(world: World, found: EngineView, **changes: str) -> Any:
    keys = {one.key_id: one.public_key for one in world.deps.signer.public_keys()}
    return OrdersVerifier(keys, "field", "default").engine(came(found), {**KEY, **changes})


def test_a_device_takes_no_engine_that_differs_or_is_signed_otherwise(world: World) -> None:
    found = give(world)
    for name in KEY:
        with pytest.raises(TrustError, match=f"for another key: {name}"):
            verify(world, found, **{name: "other"})
    engines, manifest, foreign = world.deps.engines, world.deps.signer, Signer.create()
    assert engines is not None
    by_manifest_key = came(found)
    statement = Signed(found.statement, wire(manifest.sign(found.statement)))
    delegation = by_manifest_key.delegation
    by_engines = Signed(found.delegation, wire(engines.sign(found.delegation)))
    changed = Signed(found.statement.replace(b'"lab"', b'"bad"'), wire(found.signatures))
    swapped = Signed(found.statement, delegation.signatures)
    text = found.delegation.decode()
    other = text.replace(engines.public_keys()[0].key_id, foreign.public_keys()[0].key_id)
    keys = {one.key_id: one.public_key for one in manifest.public_keys()}
    for bad in (
        SignedEngine(statement, delegation),
        SignedEngine(by_manifest_key.statement, by_engines),
        SignedEngine(changed, delegation),
        SignedEngine(swapped, delegation),
        SignedEngine(delegation, delegation),
        SignedEngine(by_manifest_key.statement, Signed(other.encode(), delegation.signatures)),
        SignedEngine(by_manifest_key.statement, Signed(b"", ())),
    ):
        with pytest.raises(AgentError):
            OrdersVerifier(keys, "field", "default").engine(bad, KEY)
    with pytest.raises(AgentError):
        OrdersVerifier(keys, "field", "elsewhere").engine(came(found), KEY)
