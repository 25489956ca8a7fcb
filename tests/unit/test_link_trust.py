"""A manifest is verified as bytes. Whatever is changed on the way, nothing of it is used."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ManifestError
from agent.link.errors import TrustError
from agent.link.trust import ManifestVerifier, Signature, SignedState
from controller.trust.signing import Signer

SIGNER = Signer.create()
KEY = SIGNER.public_keys()[0]


def body(**changes: Any) -> dict[str, Any]:
    made = {
        "schema": 1,
        "protocol": 1,
        "project": "default",
        "device": "dev-1",
        "generation": 7,
        "issued_at": "2026-11-24T09:00:00+00:00",
        "models": [],
    }
    return {**made, **changes}


def signed(manifest: dict[str, Any], generation: int = 7, signer: Signer = SIGNER) -> SignedState:
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    signatures = tuple(Signature(s.key_id, s.signature) for s in signer.sign(data))
    return SignedState(generation, data, signatures)


def verifier() -> ManifestVerifier:
    return ManifestVerifier({KEY.key_id: KEY.public_key}, "dev-1", "default")


def test_what_is_signed_and_meant_for_this_device_is_taken() -> None:
    state = verifier().verify(signed(body()), 7)
    assert (state.generation, state.device) == (7, "dev-1")


@pytest.mark.parametrize(
    ("manifest", "generation", "highest", "story"),
    [
        (body(generation=6), 6, 7, "7 was seen before"),
        (body(generation=8), 7, 7, "came as generation 7"),
        (body(device="dev-2"), 7, 7, "for device 'dev-2'"),
        (body(project="other"), 7, 7, "for project 'other'"),
        (body(protocol=2), 7, 7, "protocol is 2"),
        (body(schema=2), 7, 7, "schema is 2"),
    ],
)
def test_a_signature_alone_is_not_enough(
    manifest: dict[str, Any], generation: int, highest: int, story: str
) -> None:
    with pytest.raises((ManifestError, TrustError), match=story):
        verifier().verify(signed(manifest, generation), highest)


def test_a_foreign_key_is_refused_even_under_a_known_name() -> None:
    foreign = signed(body(), signer=Signer.create())
    with pytest.raises(TrustError, match="not signed by a key this device knows"):
        verifier().verify(foreign, 0)
    renamed = SignedState(
        7, foreign.manifest, (Signature(KEY.key_id, foreign.signatures[0].value),)
    )
    with pytest.raises(TrustError, match="not signed by a key this device knows"):
        verifier().verify(renamed, 0)


def test_no_signature_is_refused() -> None:
    with pytest.raises(TrustError, match="signed by nobody"):
        verifier().verify(SignedState(7, signed(body()).manifest, ()), 0)


def test_one_good_signature_among_others_is_enough() -> None:
    good = signed(body())
    others = (Signature("0" * 16, b"x" * 64), Signature(KEY.key_id, b"y" * 64), *good.signatures)
    assert verifier().verify(SignedState(7, good.manifest, others), 0).generation == 7


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused(at: int, bit: int) -> None:
    good = signed(body())
    data = bytearray(good.manifest)
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(TrustError, match="not signed"):
        verifier().verify(SignedState(7, bytes(data), good.signatures), 0)


def test_equal_json_with_other_bytes_is_refused() -> None:
    good = signed(body())
    spaced = json.dumps(json.loads(good.manifest), indent=1).encode()
    with pytest.raises(TrustError, match="not signed"):
        verifier().verify(SignedState(7, spaced, good.signatures), 0)


def test_a_huge_manifest_is_not_even_checked() -> None:
    with pytest.raises(ManifestError, match="are read"):
        verifier().verify(SignedState(7, b"x" * (8 * 1024 * 1024 + 1), ()), 0)


def test_a_verifier_that_skips_the_signature_would_take_a_forgery() -> None:
    """The negative control: without the check the forged manifest below passes all the rest."""

    class Careless(ManifestVerifier):
        def _signed_by_known(self, data: bytes, signature: Signature) -> bool:
            return True

    forged = SignedState(7, signed(body()).manifest, (Signature("0" * 16, base64.b64decode("")),))
    careless = Careless({KEY.key_id: KEY.public_key}, "dev-1", "default")
    assert careless.verify(forged, 0).generation == 7
    with pytest.raises(TrustError):
        verifier().verify(forged, 0)
