"""Devices, boots, events, outbox, labels, samples, tokens, certificates, operators."""

import pytest

from controller.domain.histogram import Histogram
from controller.store import (
    boots,
    certificates,
    devices,
    events,
    labels,
    operators,
    outbox,
    samples,
    tokens,
)
from controller.store.outbox import OutboxKind
from controller.store.samples import SampleRow
from controller.store.session import (
    Connection,
    ConstraintConflictError,
    ConstraintInvariantError,
    Store,
)
from tests.support.stores import NOW, PROJECT, after, digest, seed_device


def test_devices_come_back_in_order(store: Store) -> None:
    with store.write() as conn:
        for name in ("b", "a", "c"):
            seed_device(conn, name)
        assert [row.device_id for row in devices.list_devices(conn, PROJECT)] == ["a", "b", "c"]
        chosen = devices.list_devices(conn, PROJECT, ["c", "a"])
        assert [row.device_id for row in chosen] == ["a", "c"]
        assert devices.get_device(conn, "x") is None
        assert devices.list_devices(conn, "other") == []


def test_a_device_id_is_unique_over_projects(store: Store) -> None:
    with store.write() as conn:
        seed_device(conn, "a")
    with pytest.raises(ConstraintConflictError) as caught, store.write() as conn:
        devices.insert_device(conn, "a", "other", "ACTIVE", "", 1, NOW)
    assert caught.value.constraint == "pk_device"


def test_an_applied_generation_never_goes_down(store: Store) -> None:
    with store.write() as conn:
        seed_device(conn, "a")
        assert devices.raise_applied(conn, "a", 3)
        assert not devices.raise_applied(conn, "a", 3)
        assert not devices.raise_applied(conn, "a", 2)
        row = devices.get_device(conn, "a")
        assert row is not None
        assert row.applied_generation == 3


def test_silent_devices_go_offline(store: Store) -> None:
    with store.write() as conn:
        for name, seen in (("a", NOW), ("b", after(50)), ("c", None)):
            seed_device(conn, name)
            devices.update_device(conn, name, online=True, last_seen_at=seen)
        gone = devices.mark_unseen_offline(conn, after(20))
        assert sorted(row.device_id for row in gone) == ["a", "c"]
        assert devices.mark_unseen_offline(conn, after(20)) == []
        assert devices.count_by_state(conn, PROJECT) == {
            ("ACTIVE", True): 1,
            ("ACTIVE", False): 2,
        }


def test_capabilities_replace_the_ones_before(store: Store) -> None:
    with store.write() as conn:
        seed_device(conn, "a")
        devices.put_capabilities(conn, "a", {"arch": "x86_64"}, NOW)
        devices.put_capabilities(conn, "a", {"arch": "aarch64"}, after(1))
        assert devices.capabilities_of(conn) == {"a": {"arch": "aarch64"}}
        assert devices.capabilities_of(conn, ["b"]) == {}


def test_an_unknown_device_state_is_refused(store: Store) -> None:
    with pytest.raises(ConstraintInvariantError) as caught, store.write() as conn:
        seed_device(conn, "a", "HAPPY")
    assert caught.value.constraint == "ck_device_state"


def _log(conn: Connection, boot: str, seqs: range) -> None:
    for seq in seqs:
        events.append(
            conn, PROJECT, NOW, "report", "a", device_id="a", boot_id=boot, seq=seq, reason=f"{seq}"
        )
        boots.set_last_seqs(conn, {("a", boot): seq})


def test_the_log_of_each_boot_is_gapless(store: Store) -> None:
    with store.write() as conn:
        seed_device(conn, "a")
        for counter, boot in ((1, "1-x"), (2, "2-y")):
            boots.add_boot(conn, "a", boot, counter, NOW)
            _log(conn, boot, range(1, 5))
    with store.read() as conn:
        stored = events.list_events(conn, PROJECT, device_id="a")
        for counter, boot in ((1, "1-x"), (2, "2-y")):
            row = boots.get_boot(conn, "a", boot)
            assert row is not None
            assert (row.counter, row.last_seq) == (counter, 4)
            assert [e.seq for e in stored if e.boot_id == boot] == [1, 2, 3, 4]
        assert [e.number for e in stored] == sorted(e.number for e in stored)
    with pytest.raises(ConstraintConflictError), store.write() as conn:
        _log(conn, "2-y", range(4, 5))
    with pytest.raises(ConstraintConflictError), store.write() as conn:
        boots.add_boot(conn, "a", "1-x", 1, NOW)
    with store.write() as conn:
        boots.forget_boots(conn, "a")
        assert boots.get_boot(conn, "a", "1-x") is None


def test_numbers_of_events_are_never_used_again(store: Store) -> None:
    numbers = []
    for _ in range(3):
        with store.write() as conn:
            numbers.append(events.append(conn, PROJECT, NOW, "note", "ana"))
    assert len(set(numbers)) == 3
    assert numbers == sorted(numbers)


def test_events_are_filtered(store: Store) -> None:
    with store.write() as conn:
        for number in range(6):
            events.append(
                conn,
                PROJECT,
                after(number),
                "even" if number % 2 == 0 else "odd",
                "ana",
                model="digits" if number < 3 else None,
                rollout_id="r-1" if number > 3 else None,
                details={"n": number},
            )
        seen = events.list_events

        def numbers(rows: list[events.EventRow]) -> list[str]:
            return [row.details["n"] for row in rows]

        assert numbers(seen(conn, PROJECT, kinds=["odd"])) == ["1", "3", "5"]
        assert numbers(seen(conn, PROJECT, model="digits")) == ["0", "1", "2"]
        assert numbers(seen(conn, PROJECT, rollout_id="r-1")) == ["4", "5"]
        assert numbers(seen(conn, PROJECT, since=after(4))) == ["4", "5"]
        assert numbers(seen(conn, PROJECT, limit=2)) == ["4", "5"]
        assert numbers(seen(conn, PROJECT, limit=2, newest=False)) == ["0", "1"]
        last = events.last_number(conn)
        assert numbers(seen(conn, PROJECT, after=last - 1)) == ["5"]
        assert seen(conn, "other") == []


def test_the_outbox_keeps_order_until_told(store: Store) -> None:
    with store.write() as conn:
        for payload in (b"\x00\xff", b"two", b""):
            outbox.append(conn, NOW, OutboxKind.DOORBELL, "t/1", payload, retain=True)
        rows = outbox.take(conn)
        assert [row.payload for row in rows] == [b"\x00\xff", b"two", b""]
        assert rows[0].retain
        outbox.done(conn, [rows[0].number, rows[2].number])
        outbox.done(conn, [])
        assert [row.payload for row in outbox.take(conn)] == [b"two"]
        assert [row.number for row in outbox.take(conn, 1)] == [rows[1].number]
        assert outbox.take(conn, after=rows[1].number) == []
        assert outbox.take(conn, after=rows[0].number)[0].payload == b"two"


def test_labels_are_set_and_removed(store: Store) -> None:
    with store.write() as conn:
        seed_device(conn, "a")
        labels.change_labels(conn, "a", {"site": "berlin", "line": "1"})
        labels.change_labels(conn, "a", {"site": "jena"}, ["line", "none"])
        assert labels.labels_of(conn) == {"a": {"site": "jena"}}
        assert labels.labels_of(conn, ["b"]) == {}


def _sample(count: int, at: float, errors: int = 0) -> SampleRow:
    histogram = Histogram(count=count, sum_s=count * 0.01, buckets={-53: count})
    return SampleRow(
        "a", "digits", "1.0.0", "heavy", NOW, digest("b"), histogram, errors, 0, after(at)
    )


def test_samples_of_a_minute_are_merged(store: Store) -> None:
    with store.write() as conn:
        samples.add_samples(conn, [_sample(3, 1)])
        samples.add_samples(conn, [_sample(4, 2, errors=1)])
        (row,) = samples.list_samples(conn, device_ids=["a"], model="digits", version="1.0.0")
        assert (row.histogram.count, dict(row.histogram.buckets)) == (7, {-53: 7})
        assert (row.errors, row.last_at) == (1, after(2))
        assert samples.list_samples(conn, since=after(3)) == []
        assert samples.list_samples(conn, device_ids=[]) == []


def _token(conn: Connection, uses: int = 1) -> str:
    tokens.insert_token(
        conn,
        "t-1",
        PROJECT,
        digest("secret"),
        uses=uses,
        hardware_id=None,
        pending=False,
        labels={"site": "jena"},
        expires_at=after(60),
        now=NOW,
        actor="ana",
    )
    return "t-1"


def test_a_token_is_used_up(store: Store) -> None:
    with store.write() as conn:
        token_id = _token(conn, uses=2)
        tokens.use_token(conn, token_id)
        tokens.use_token(conn, token_id)
        found = tokens.find_by_hash(conn, digest("secret"))
        assert found is not None
        assert (found.used, found.labels) == (2, {"site": "jena"})
    with pytest.raises(ConstraintInvariantError) as caught, store.write() as conn:
        tokens.use_token(conn, token_id)
    assert caught.value.constraint == "ck_token_uses"
    with store.write() as conn:
        tokens.revoke_token(conn, token_id)
        row = tokens.get_token(conn, PROJECT, token_id)
        assert row is not None
        assert row.revoked
        assert [one.token_id for one in tokens.list_tokens(conn, PROJECT)] == [token_id]
        assert tokens.find_by_hash(conn, digest("other")) is None


def _certificate(conn: Connection, serial: str, key: str, days: int = 1) -> None:
    certificates.insert_certificate(
        conn,
        serial=serial,
        role="device",
        name="a",
        public_key_digest=digest(key),
        pem=b"-----BEGIN CERTIFICATE-----",
        not_before=NOW,
        not_after=after(days * 86_400),
        now=NOW,
        token_id="t-1",
    )


def test_a_token_gives_a_key_one_certificate(store: Store) -> None:
    with store.write() as conn:
        _token(conn)
        _certificate(conn, "01", "key")
        found = certificates.find_enrolled(conn, "t-1", digest("key"))
        assert found is not None
        assert found.serial == "01"
    with pytest.raises(ConstraintConflictError) as caught, store.write() as conn:
        _certificate(conn, "02", "key")
    assert caught.value.constraint == "uq_certificate_token_id_public_key_digest"


def test_certificates_by_name_and_age(store: Store) -> None:
    with store.write() as conn:
        _certificate(conn, "01", "one", days=1)
        _certificate(conn, "02", "two", days=2)
        valid = certificates.list_valid(conn, "a", after(10))
        assert [row.serial for row in valid] == ["02", "01"]
        assert certificates.role_of(conn, "a") == "device"
        assert certificates.role_of(conn, "b") is None
        assert certificates.newest_end(conn) == {"a": after(2 * 86_400)}
        assert certificates.revoke(conn, "a", after(20), "retired") == 2
        assert certificates.list_valid(conn, "a", after(30)) == []
        revoked = certificates.list_revoked(conn, after(30))
        assert sorted(serial for serial, _ in revoked) == ["01", "02"]
        certificates.drop_expired(conn, "a", after(3 * 86_400))
        assert certificates.get_certificate(conn, "01") is None
        assert certificates.get_certificate(conn, "02") is not None


def test_operators_by_role(store: Store) -> None:
    with store.write() as conn:
        operators.insert_operator(conn, "ana", "operator", NOW)
        operators.insert_operator(conn, "feed", "consumer", NOW)
        assert [row.name for row in operators.list_operators(conn)] == ["ana", "feed"]
        assert [row.name for row in operators.list_operators(conn, "consumer")] == ["feed"]
        assert operators.get_operator(conn, "bo") is None
    with pytest.raises(ConstraintConflictError), store.write() as conn:
        operators.insert_operator(conn, "ana", "consumer", NOW)
