"""People and programs: one name, one certificate unless somebody says again; revoked means out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.errors import ConflictError, DeniedError, NotFoundError, RefusedError
from controller.services.certificates import broker_lists, check_certificate, store_issued
from controller.services.operators import issue_identity, list_people, revoke_operator
from controller.store import events
from controller.store.outbox import OutboxKind, take
from controller.trust.names import Role, Subject
from tests.support.gateway import Desk, open_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def test_a_second_certificate_of_one_name_is_refused_unless_said_again(desk: Desk) -> None:
    issue_identity(desk.deps, desk.ctx(), "ana", "operator")
    with pytest.raises(ConflictError) as caught:
        issue_identity(desk.deps, desk.ctx(), "ana", "operator")
    told = caught.value.text()
    assert "operator ana has 1 valid certificate already" in told
    assert "until 2027-11-24T09:00:00Z" in told
    assert "--again" in told
    assert "operator revoke ana" in told
    issue_identity(desk.deps, desk.ctx(), "ana", "operator", again=True)
    assert [(one.name, one.certificates) for one in list_people(desk.deps, desk.ctx())] == [
        ("ana", 2)
    ]


def test_an_expired_certificate_holds_nobody_up(desk: Desk) -> None:
    issue_identity(desk.deps, desk.ctx(), "ana", "operator")
    desk.pass_s(400 * 86400)
    issue_identity(desk.deps, desk.ctx(), "ana", "operator")


def test_revoked_means_every_certificate_the_broker_and_an_event(desk: Desk) -> None:
    made = issue_identity(desk.deps, desk.ctx(), "dash", "consumer")
    issue_identity(desk.deps, desk.ctx(), "dash", "consumer", again=True)
    assert broker_lists(desk.deps, desk.ctx()).consumers == ("dash",)
    gone = revoke_operator(desk.deps, desk.ctx(), "dash", "left the company")
    assert gone.certificates == 2
    with pytest.raises(DeniedError, match="was revoked at 2026-11-24T09:00:00Z") as caught:
        check_certificate(desk.deps, desk.ctx(), "consumer", "dash", made.certificate_pem)
    assert "left the company" in caught.value.text()
    assert broker_lists(desk.deps, desk.ctx()).consumers == ()
    with desk.deps.store.read() as conn:
        kicks = [row.payload for row in take(conn) if row.kind is OutboxKind.KICK]
        (event,) = events.list_events(conn, "default", kinds=["certificate_revoked"])
    assert kicks == [b"dash"]
    assert (event.actor, event.reason) == ("ana", "left the company")
    assert event.details == {"name": "dash", "role": "consumer", "certificates": "2"}
    (row,) = list_people(desk.deps, desk.ctx())
    assert (row.certificates, row.valid_until) == (0, None)
    with pytest.raises(RefusedError, match="revoked already"):
        revoke_operator(desk.deps, desk.ctx(), "dash")


def test_a_revoked_name_comes_back_only_when_that_is_said(desk: Desk) -> None:
    issue_identity(desk.deps, desk.ctx(), "ana", "operator")
    revoke_operator(desk.deps, desk.ctx(), "ana")
    for again in (False, True):
        with pytest.raises(ConflictError, match="was revoked at"):
            issue_identity(desk.deps, desk.ctx(), "ana", "operator", again=again)
    back = issue_identity(desk.deps, desk.ctx(), "ana", "operator", again=True, revived=True)
    check_certificate(desk.deps, desk.ctx(), "operator", "ana", back.certificate_pem)
    assert list_people(desk.deps, desk.ctx())[0].revoked_at is None


def test_who_cannot_be_revoked_here_is_told_where(desk: Desk) -> None:
    issue_identity(desk.deps, desk.ctx(), "ana", "operator")
    with pytest.raises(NotFoundError) as caught:
        revoke_operator(desk.deps, desk.ctx(), "anna")
    assert caught.value.text() == ("no operator, consumer or worker anna\ndid you mean ana ?")
    desk.pass_s(1)
    made = desk.deps.authority.new_identity(Subject(Role.DEVICE, "pi-1"), desk.now, 3600.0)
    with desk.deps.store.write() as conn:
        store_issued(conn, desk.ctx(), made.issued)
    with pytest.raises(NotFoundError, match="pi-1 is a device") as caught:
        revoke_operator(desk.deps, desk.ctx(), "pi-1")
    assert "fleetctl device retire pi-1" in caught.value.text()
