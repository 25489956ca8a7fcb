"""What the tests lean on: waiting, ports, PostgreSQL."""

import socket
from pathlib import Path

import pytest
import sqlalchemy

from examples.fleet.ports import free_port, free_ports
from tests.support.wait import wait_for


def test_wait_for_returns_the_first_truthy_value() -> None:
    values = iter([0, None, "ready"])
    assert wait_for(lambda: next(values), 5, "a value") == "ready"


def test_wait_for_names_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match="a pig to fly; last value 0"):
        wait_for(lambda: 0, 0.05, "a pig to fly")


def test_wait_for_tells_the_last_assertion() -> None:
    def fails() -> bool:
        raise AssertionError("three devices are missing")

    with pytest.raises(AssertionError, match="three devices are missing"):
        wait_for(fails, 0.05, "all devices")


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert max(ports) < int(outgoing[0]), "no client's end may take it before it is bound"
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))


@pytest.mark.postgres
def test_each_test_gets_a_database_of_its_own(postgres_url: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table t (a int)"))
        version = connection.execute(sqlalchemy.text("show server_version")).scalar_one()
    engine.dispose()
    assert str(version).split(".")[0].isdigit()
