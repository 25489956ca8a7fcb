"""The identity: a new one replaces the old one only after it worked, whenever power goes."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from agent.domain.ports import Identity
from agent.errors import IdentityError
from agent.store.identity import FileIdentityStore
from agent.store.lines import decode_line, encode_line
from tests.support.disks import LossyDisk, PowerCutError, everything, nothing, some

OLD = Identity(
    device_id="pi5-0042",
    project="default",
    certificate_pem=b"old certificate",
    key_pem=b"old key",
    ca_pem=b"ca",
    signing_keys={"0123456789abcdef": bytes(range(32))},
    grpc_endpoint="fleet.example:7443",
    mqtt_endpoint="fleet.example:8883",
)
NEW = replace(OLD, certificate_pem=b"new certificate", key_pem=b"new key")


def test_nothing_before_enrolment(tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path / "identity")
    assert store.current() is None
    assert store.next() is None
    store.promote()
    with pytest.raises(IdentityError, match="lighterman-agent enroll"):
        store.certificate_path()


def test_the_next_identity_takes_over_only_when_promoted(tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path)
    store.keep_next(OLD)
    assert (store.current(), store.next()) == (None, OLD)
    store.promote()
    assert (store.current(), store.next()) == (OLD, None)
    store.keep_next(NEW)
    again = FileIdentityStore(tmp_path)
    assert (again.current(), again.next()) == (OLD, NEW)
    assert Path(again.key_path()).read_bytes() == b"old key"
    again.promote()
    assert again.current() == NEW
    assert Path(again.certificate_path()).read_bytes() == b"new certificate"
    assert Path(again.key_path()).stat().st_mode & 0o777 == 0o600
    # Old keys are gone.
    assert [p.read_bytes() for p in tmp_path.glob("*/key.pem")] == [b"new key"]


def test_an_identity_of_before_is_read_and_a_changed_one_is_not(tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path)
    store.keep_next(replace(OLD, enroll_endpoint="fleet.example:7444"))
    store.promote()
    known = store.current()
    assert known is not None
    assert known.enroll_endpoint == "fleet.example:7444"
    (file,) = tmp_path.glob("*/identity")
    facts = decode_line(file.read_bytes().rstrip(b"\n"))
    file.write_bytes(encode_line({**facts, "enroll_endpoint": "elsewhere.example:7444"}))
    with pytest.raises(IdentityError, match="do not belong together"):
        store.current()
    # Who enrolled before this was kept has the digest of the other facts alone.
    other = FileIdentityStore(tmp_path / "before")
    other.keep_next(OLD)
    other.promote()
    (file,) = (tmp_path / "before").glob("*/identity")
    facts = decode_line(file.read_bytes().rstrip(b"\n"))
    assert facts.pop("enroll_endpoint") == ""
    file.write_bytes(encode_line(facts))
    assert other.current() == OLD


def test_requests_wait_by_purpose(tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path)
    assert store.request("renewal") is None
    store.keep_request("renewal", b"key", b"csr")
    store.keep_request("token/../x", b"key 2", b"csr 2")
    again = FileIdentityStore(tmp_path)
    assert again.request("renewal") == (b"key", b"csr")
    assert again.request("token/../x") == (b"key 2", b"csr 2")
    again.drop_request("renewal")
    again.drop_request("renewal")
    assert again.request("renewal") is None
    for path in (tmp_path / "requests").iterdir():
        path.write_bytes(b"damaged")
    assert again.request("token/../x") is None


@pytest.mark.parametrize("file", ["certificate.pem", "key.pem", "ca.pem", "identity"])
def test_damaged_files_are_told_and_never_promoted(tmp_path: Path, file: str) -> None:
    store = FileIdentityStore(tmp_path)
    store.keep_next(OLD)
    store.promote()
    store.keep_next(NEW)
    (tmp_path / "2" / file).write_bytes(b"other")
    with pytest.raises(IdentityError):
        store.next()
    with pytest.raises(IdentityError):
        store.promote()
    assert store.current() == OLD
    (tmp_path / "1" / file).unlink()
    with pytest.raises(IdentityError, match="enrol this device again"):
        store.current()


def test_a_damaged_pointer_is_told(tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path)
    store.keep_next(OLD)
    for wrong in (b"", b"garbage\n"):
        (tmp_path / "pointer").write_bytes(wrong)
        with pytest.raises(IdentityError, match="pointer is damaged"):
            store.current()


@pytest.mark.parametrize("survive", [nothing, everything, some(3)], ids=["power", "kill", "some"])
def test_a_renewal_cut_anywhere_leaves_one_that_works(tmp_path: Path, survive: object) -> None:
    for change in count(1):
        root = tmp_path / str(change)
        store = FileIdentityStore(root)
        store.keep_next(OLD)
        store.promote()
        disk = LossyDisk(root, change)
        died = False
        try:
            renewing = FileIdentityStore(root, disk)
            renewing.keep_next(NEW)
            assert FileIdentityStore(root).current() == OLD
            renewing.promote()
        except PowerCutError:
            died = True
            disk.survive(survive)  # type: ignore[arg-type]
        after = FileIdentityStore(root)
        assert after.current() in ((OLD, NEW) if died else (NEW,))
        assert after.next() in (None, NEW)
        after.keep_next(NEW)
        after.promote()
        assert after.current() == NEW
        if not died:
            break
    assert change > 15
