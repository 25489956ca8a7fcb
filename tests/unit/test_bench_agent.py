"""The measuring tools of bench.agent, held against what is known."""

import os
import socket

import pytest

from bench.agent import idle, throughput
from bench.agent.processes import carried, cpu_s, rss_mb, threads, wakeups


def test_bytes_of_a_connection_are_counted_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            other, _ = server.accept()
            with other:
                client.sendall(b"a" * 5000)
                assert len(other.recv(5000, socket.MSG_WAITALL)) == 5000
                other.sendall(b"b" * 300)
                assert len(client.recv(300, socket.MSG_WAITALL)) == 300
                found = carried(os.getpid(), port)
    # The acknowledgement of the last bytes may be under way: it counts when it came.
    assert 5000 <= found.payload_bytes <= 5302
    assert found.wire_bytes > found.payload_bytes


def test_other_ports_and_processes_do_not_count() -> None:
    assert carried(os.getpid(), 1).payload_bytes == 0
    assert carried(os.getppid(), 1).payload_bytes == 0


def test_a_process_is_read() -> None:
    pid = os.getpid()
    assert pid in threads(pid)
    assert 10 < rss_mb(pid) < 100_000
    assert cpu_s(pid) > 0
    assert wakeups(pid) >= 0


def test_a_road_is_watched_beside_other_work_and_ends_by_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            other, _ = server.accept()
            with other:
                client.sendall(b"a" * 900)  # before: does not count
                assert len(other.recv(900, socket.MSG_WAITALL)) == 900
                road = idle.Road(os.getpid(), port, 0.2)
                client.sendall(b"a" * 400)
                assert len(other.recv(400, socket.MSG_WAITALL)) == 400
                found = road.figures()
                client.sendall(b"a" * 700)  # after it: neither
    # As it is seen from the client; the server's own end has another port.
    counted = found["broker_bytes_per_s"] * found["broker_watched_s"]
    assert 0.2 <= found["broker_watched_s"] < 5.0
    assert counted == pytest.approx(400, rel=0.3)


def a_round(share: float, ratio: float, cpu_ratio: float) -> dict[str, float]:
    found = {"share": share}
    for turn in ("8", "bare", "plain", "1"):
        found |= {
            f"{name}_{turn}": 1.0
            for name in ("raw_per_s", "served_per_s", "cpu_ms", "raw_cpu_ms", "p99_ms", "failed")
        }
        found |= {f"ratio_{turn}": ratio, f"cpu_ratio_{turn}": cpu_ratio}
    # As if the bare server were a little better than the agent, by either measure.
    return found | {"of_bare": 0.97, "cpu_of_bare": 0.95}


@pytest.mark.parametrize(("quiet", "expected"), [(3, 0.93), (2, 0.85)])
def test_rates_count_only_where_the_machine_was_quiet(quiet: int, expected: float) -> None:
    rounds = [a_round(0.99, 0.93, 0.85)] * quiet + [a_round(0.3, 3.0, 0.85)] * 4
    said = throughput._medians(rounds)
    assert said["throughput_ratio_8"] == expected
    assert said["throughput_quiet_rounds"] == quiet
    assert said["throughput_of_bare"] == (0.97 if quiet == 3 else 0.95)


def test_a_month_adds_the_broker_questions_and_openings() -> None:
    class Asked:
        questions = 4

        def stop(self) -> tuple[float, float]:
            return 300.0, 900.0

    figures = {
        "broker_bytes_per_s": 4.0, "broker_wire_bytes_per_s": 8.0, "opening_bytes": 10_000,
    }  # fmt: skip
    said = idle.per_month(figures, Asked())  # type: ignore[arg-type]
    # 4 B/s for 30 days, 2,880 questions of 300 bytes, 15 kB of openings.
    assert said["mb_per_month"] == pytest.approx(10.368 + 0.864 + 0.015, abs=0.1)
    assert said["mb_per_month_with_tcp_ip"] == pytest.approx(20.736 + 2.592 + 0.015, abs=0.1)
