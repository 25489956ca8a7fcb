"""Seals in a process of their own: the same answers, none of the memory, no belief in nonsense."""

import base64
import json
import subprocess
import sys

import pytest

from agent.link.keys import fits_key, new_key_request
from agent.link.seals import INLINE, Apart
from controller.trust.signing import Signer

SIGNER = Signer.create()
KEY = SIGNER.public_keys()[0].public_key
DATA = b"a manifest" * 1000
GOOD = SIGNER.sign(DATA)[0].signature


def says(answer: str, code: int = 0) -> Apart:
    """One that asks a process which answers this, whatever the question is."""
    program = f"import sys; sys.stdin.read(); sys.stdout.write({answer!r}); sys.exit({code})"
    return Apart((sys.executable, "-c", program))


def test_a_process_apart_tells_good_signatures_from_bad_ones() -> None:
    apart = Apart()
    for signature, data in ((GOOD, DATA), (GOOD, DATA + b" "), (bytes(64), DATA), (b"", DATA)):
        found = apart.is_signed(KEY, signature, data)
        assert found is INLINE.is_signed(KEY, signature, data)
        assert found is (signature == GOOD and data == DATA)


def test_a_key_of_a_process_apart_fits_only_its_own_request() -> None:
    made = Apart().new_key_request("device")
    assert b"BEGIN CERTIFICATE REQUEST" in made.csr_pem
    assert made.key_pem != Apart().new_key_request("device").key_pem
    with pytest.raises(ValueError, match=r"."):
        fits_key(made.csr_pem, made.key_pem)


@pytest.mark.parametrize(
    "apart",
    [
        says('{"is_signed": true}', code=1),
        says("true"),
        says('{"is_signed": "yes"}'),
        says('{"is_signed": 1}'),
        says('{"fits_key": true}'),
        says("{"),
        Apart(("/nowhere/python",)),
    ],
)
def test_what_is_no_answer_is_looked_at_here(apart: Apart) -> None:
    assert apart.is_signed(KEY, GOOD, DATA)
    assert not apart.is_signed(KEY, bytes(64), DATA)


def test_negative_control_an_answer_in_form_is_believed() -> None:
    # So the cases above test that this process looked itself.
    assert says('{"is_signed": true}').is_signed(KEY, bytes(64), DATA)


def test_keys_that_are_none_are_made_here() -> None:
    made = says('{"new_key_request": ["?", 1]}').new_key_request("device")
    assert made.csr_pem.startswith(b"-----BEGIN")
    assert new_key_request("x").key_pem.startswith(b"-----BEGIN")


@pytest.mark.parametrize(("which", "loaded"), [("Apart()", False), ("INLINE", True)])
def test_the_library_stays_out_of_who_asks_apart(which: str, loaded: bool) -> None:
    program = (
        "import base64, json, sys\n"
        "from agent.link.seals import INLINE, Apart\n"
        "key, good, data = map(base64.b64decode, json.load(sys.stdin))\n"
        f"seals = {which}\n"
        "assert seals.is_signed(key, good, data)\n"
        "assert seals.new_key_request('device').key_pem\n"
        "print('cryptography' in sys.modules)\n"
    )
    given = json.dumps([base64.b64encode(one).decode() for one in (KEY, GOOD, DATA)])
    said = subprocess.run(
        [sys.executable, "-c", program], input=given, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == str(loaded)
