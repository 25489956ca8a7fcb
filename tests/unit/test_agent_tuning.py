"""A device's orders: read strictly, followed while it is idle, left at once when it is not."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.domain.desired import Target
from agent.domain.tuning import (
    Activity,
    DeviceOrders,
    Quiet,
    may_measure,
    must_stop,
    parse_orders,
)
from agent.errors import AgentError, FetchError, ManifestError
from agent.host.energy import EnergyMeter
from agent.link.orders import OrdersVerifier, Signed, SignedOrders
from agent.link.trust import ManifestVerifier, Signature, SignedState
from agent.loop_trial import TrialParts
from agent.loop_tuning import Tuner, TunerParts
from agent.runtime.trial import measure, quantile
from controller.trust.signing import Signer
from tests.support.serving import scaled
from tests.support.wait import wait_for

FILE = scaled(2.0)
DIGEST = "sha256:" + sha256(FILE).hexdigest()


def candidate(**changes: Any) -> dict[str, Any]:
    target = {
        "digest": DIGEST, "length": len(FILE), "media_type": "application/onnx", "custom": {},
        "sources": [],
    }  # fmt: skip
    made = {"build": "b-1", "variant": "v", "recipe": "r", "runtime": "onnxruntime"}
    return {**made, "target": target, **changes}


def body(**changes: Any) -> dict[str, Any]:
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    spec = {"name": "x", "dtype": "FP32", "shape": ["batch", 4]}
    order = {
        "id": "m-1", "model": "photo", "version": "1.0.0", "expires_at": until, "warmup_s": 0.02,
        "soak_s": 0.02, "measure_s": 0.05, "heat_limit_c": 85.0,
        "signature": {"inputs": [spec], "outputs": [spec]}, "candidates": [candidate()],
    }  # fmt: skip
    made = {
        "schema": 1, "kind": "orders", "protocol": 1, "project": "default", "device": "dev-1",
        "number": 3, "issued_at": until, "roles": [], "tuning": [order],
    }  # fmt: skip
    return {**made, **changes}


def read(value: Mapping[str, Any]) -> DeviceOrders:
    return parse_orders(json.dumps(value).encode(), "dev-1", "default", 3)


def test_orders_are_for_this_device_this_number_and_this_use() -> None:
    (order,) = read(body()).tuning
    assert (order.model, order.candidates[0].target.digest) == ("photo", DIGEST)
    wrong: tuple[dict[str, Any], ...] = (
        {"device": "dev-2"}, {"project": "other"}, {"number": 2}, {"schema": 2}, {"protocol": 2},
        {"kind": "engine"}, {"tuning": {}}, {"roles": [1]},
        {"tuning": [{**body()["tuning"][0], "soak_s": 1e6}]},
        {"tuning": [{**body()["tuning"][0], "candidates": [candidate(build="../x")]}]},
    )  # fmt: skip
    for changes in wrong:
        with pytest.raises(ManifestError):
            read(body(**changes))
    hot = body(tuning=[{**body()["tuning"][0], "heat_limit_c": 500}])
    assert read(hot).tuning[0].heat_limit_c == 95, "no order makes a device hotter"


def test_what_is_signed_as_one_thing_is_no_other() -> None:
    signer = Signer.create()
    keys = {one.key_id: one.public_key for one in signer.public_keys()}
    data = json.dumps(body()).encode()
    signatures = tuple(Signature(s.key_id, s.signature) for s in signer.sign(data))
    verifier = OrdersVerifier(keys, "dev-1", "default")
    assert verifier.orders(SignedOrders(3, Signed(data, signatures))).number == 3
    with pytest.raises(AgentError):
        ManifestVerifier(keys, "dev-1", "default").verify(SignedState(3, data, signatures), 0)
    foreign = tuple(Signature(s.key_id, s.signature) for s in Signer.create().sign(data))
    for bad in (Signed(data, foreign), Signed(data, ()), Signed(data + b" ", signatures)):
        with pytest.raises(AgentError):
            verifier.orders(SignedOrders(3, bad))


def test_it_is_idle_only_after_a_while_without_requests_settled_and_cool() -> None:
    quiet = Quiet(5, since_s=100.0)
    assert may_measure(quiet, Activity(5), 110.0, 10, 85) == ""
    assert "requests came" in may_measure(quiet, Activity(5), 109.0, 10, 85)
    assert "update" in may_measure(quiet, Activity(5, settled=False), 200, 10, 85)
    assert "begins below 75" in may_measure(quiet, Activity(5, temperature_c=80.0), 200, 10, 85)
    assert quiet.after(Activity(5), 200) is quiet
    assert quiet.after(Activity(6), 200) == Quiet(6, 200)
    assert quiet.after(Activity(5, running=True), 200) == Quiet(5, 200)
    began = Activity(5)
    assert must_stop(began, began, 85) == ""
    for seen in (
        Activity(6),
        Activity(5, True),
        Activity(5, False, False),
        Activity(5, temperature_c=85.0),
    ):
        assert must_stop(began, seen, 85)


def test_sustained_is_what_is_timed_behind_warm_up_and_soak(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FILE)
    ticks = iter(range(10**6))
    told: list[Any] = []
    asked = {
        "runtime": "onnxruntime", "path": str(path), "options": {},
        "inputs": [{"name": "x", "dtype": "FP32", "shape": ["batch", 4]}],
        "warmup_s": 10, "soak_s": 20, "measure_s": 90,
    }  # fmt: skip
    found = measure(asked, told.append, lambda: float(next(ticks)))
    assert [one["phase"] for one in told] == ["load", "warm-up", "soak", "measure", "end"]
    assert found["n"] == 37, "two seconds a call, three behind the twentieth"
    assert found["p50_ms"] == found["p95_ms"] == 1000
    assert found["rss_bytes"] > 10**7
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([3.0, 1.0], 0.95) == 3.0


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def test_energy_is_read_of_rapl_of_a_jetson_or_not_at_all(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path / "none")
    meter.begin(0)
    meter.look(1)
    assert meter.joules is None
    zone = tmp_path / "pc/sys/class/powercap/intel-rapl:0"
    for name, value in (("name", "package-0"), ("max_energy_range_uj", 10_000_000)):
        write(zone / name, value)
    write(zone / "energy_uj", 9_000_000)
    meter = EnergyMeter(tmp_path / "pc")
    meter.begin(0)
    write(zone / "energy_uj", 1_000_000)
    meter.look(1)
    assert meter.joules == pytest.approx(2.0), "the counter began anew"
    chip = tmp_path / "jetson/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for name, value in (("in1_label", "VDD_IN"), ("in1_input", 5000), ("curr1_input", 2000)):
        write(chip / name, value)
    meter = EnergyMeter(tmp_path / "jetson")
    meter.begin(0)
    meter.look(3)
    assert meter.joules == pytest.approx(30.0), "10 W for 3 s"
    (chip / "in1_input").unlink()
    meter.look(4)
    assert meter.joules is None


class Fetch:
    """Gives the file, or what a test puts in its place."""

    data = FILE
    away = False
    asked = 0

    def fetch(self, target: Target, offset: int) -> Iterator[bytes]:
        self.asked += 1
        if not self.data:
            raise FetchError("it is gone", retryable=self.away)
        yield self.data


@dataclass
class Bench:
    """A tuner whose device a test makes busy, hot or idle."""

    folder: Path
    seen: Activity = field(default_factory=Activity)
    told: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    fetch: Fetch = field(default_factory=Fetch)
    stop: threading.Event = field(default_factory=threading.Event)

    def event(self, kind: str, reason: str, **more: Any) -> None:
        """As a Teller."""
        self.told.append((kind, reason, more["details"]))

    def results(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(why, details) for kind, why, details in self.told if kind == "build_measured"]

    def waits(self) -> list[str]:
        return [why for kind, why, _ in self.told if kind == "tuning_waits"]


@contextmanager
def tuner(bench: Bench, program: str = "") -> Iterator[Tuner]:
    """With the real child, or with one of a few lines."""
    parts = TrialParts(SystemClock(), lambda: bench.seen, bench.folder / "root")
    if program:
        parts = TrialParts(parts.clock, parts.activity, parts.host_root, command=("-c", program))
    made = Tuner(
        TunerParts(
            trial=parts,
            teller=bench,  # type: ignore[arg-type]
            fetcher=lambda: bench.fetch,
            facts=lambda: ("Debian", {"onnxruntime": "1.32.0"}),
            folder=bench.folder / "tuning",
            idle_s=0.05,
        )
    )
    made.start()
    try:
        yield made
    finally:
        made.stop()


def test_a_build_is_measured_by_a_child_and_nothing_of_it_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with tuner(bench) as made:
        made.order(read(body()))
        wait_for(bench.results, 60, "a result")
        wait_for(lambda: not list((tmp_path / "tuning").iterdir()), 10, "the file to go")
    ((_, details),) = bench.results()
    assert (details["ok"], details["build"], details["runtime_version"]) == (
        "true",
        "b-1",
        "1.32.0",
    )
    assert 0 < float(details["p50_ms"]) <= float(details["p95_ms"])


SLEEPS = 'import sys, time; sys.stdin.readline(); print(\'{"phase": "soak"}\', flush=True);'


def test_a_request_ends_it_at_once_and_it_is_tried_again(tmp_path: Path) -> None:
    bench, pids = Bench(tmp_path), tmp_path / "pids"
    program = f"import os; open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); {SLEEPS}"
    with tuner(bench, f"{program} time.sleep(600)") as made:
        made.order(read(body()))
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 1, 30, "the child")
        bench.seen = Activity(requests=1)
        first = int(pids.read_text())
        wait_for(lambda: not Path(f"/proc/{first}").exists(), 5, "the child to be gone")
        wait_for(lambda: len(pids.read_text().split()) == 2, 30, "another try")
        made.order(DeviceOrders(number=4))  # withdrawn
        last = int(pids.read_text().split()[-1])
        wait_for(lambda: not Path(f"/proc/{last}").exists(), 5, "the last child to be gone")
    assert bench.results() == []
    assert any("gave way, requests came" in why for why in bench.waits())


def test_heat_ends_it_and_is_its_result(tmp_path: Path) -> None:
    bench, ran = Bench(tmp_path), tmp_path / "ran"
    with tuner(bench, f"open({str(ran)!r}, 'w'); {SLEEPS} time.sleep(600)") as made:
        made.order(read(body()))
        wait_for(ran.exists, 30, "the child")
        bench.seen = Activity(temperature_c=86.0)
        wait_for(bench.results, 10, "a result")
    ((why, details),) = bench.results()
    assert "86.0 °C, the limit is 85: too hot" in why
    assert details["ok"] == "false"


def test_a_controller_that_is_away_is_no_result(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fetch.data, bench.fetch.away = b"", True
    with tuner(bench) as made:
        made.order(read(body()))
        wait_for(lambda: any("did not come: it is gone" in why for why in bench.waits()), 30, "it")
        made.order(DeviceOrders(number=4))
    assert bench.results() == []
    assert bench.fetch.asked == 1, "and is asked again in a while, not at once"


@pytest.mark.parametrize(
    ("data", "program", "reason"),
    [
        (FILE + b"x", "", "not those that were signed"),
        (b"", "", "it is gone"),
        (FILE, "import os; os.kill(os.getpid(), 9)", "its process died at start by signal 9"),
        (FILE, 'print(\'{"failed": "no such operator"}\')', "no such operator"),
    ],
)
def test_what_cannot_be_measured_says_why(
    tmp_path: Path, data: bytes, program: str, reason: str
) -> None:
    bench = Bench(tmp_path)
    bench.fetch.data = data
    with tuner(bench, program) as made:
        made.order(read(body()))
        wait_for(bench.results, 30, "a result")
    ((why, details),) = bench.results()
    assert reason in why
    assert details["ok"] == "false"
