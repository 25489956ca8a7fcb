"""A real Prometheus scrapes a real controller and agent: series, an alert, the dashboard."""

import math
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.domain.desired import DesiredModel
from controller.clock import SystemClock
from controller.domain.rollout import AssignmentState, Phase
from controller.store import rollouts
from controller.store.assignments import NewAssignment, insert_assignments
from controller.store.builds import put_gate
from examples.hosts import set_temperature, write_host
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.prometheus import RULES, Prometheus, promtool, running_prometheus
from tests.support.releases import POLICY
from tests.support.serving import make_release, products_for, scaled, slow
from tests.support.stores import PROJECT, gate_row, rollout_row, seed_version
from tests.support.wait import wait_for
from tools import dashboard

CONFIG = """
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: lighterman-controller
    scheme: https
    tls_config: {{ ca_file: "{ca}" }}
    static_configs: [{{ targets: ["127.0.0.1:{port}"] }}]
  - job_name: lighterman-agent
    static_configs: [{{ targets: ["{agent}"] }}]
"""
PROBATION = {"min_inferences": 10, "min_s": 0.2, "max_s": 60}
# Quick to step down by heat, so that a test need not wait.
LADDER = {**POLICY["ladder"], "dwell_down_s": 0.2, "dwell_up_s": 600}
GOOD, SLOW = "1.0.0", "1.2.0"
COOL_C, HOT_C = 50.0, 84.0
SLOW_ROLLBACKS = (
    f'lighterman_rollbacks_total{{job="lighterman-controller",version="{SLOW}",cause="slow"}}'
)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that runs."""

    controller: ControllerWorld
    agent: AgentProcess
    host: Path
    prometheus: Prometheus


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("metrics")
    host = folder / "host"
    write_host("intel-n100", host)
    set_temperature(host, COOL_C)
    settings = {"sample_flush_s": 0.5, "presence_grace_s": 1.0}
    with running_controller(folder / "controller", **settings) as controller:
        agent = AgentProcess(folder / "agent", LIGHTERMAN_HOST_ROOT=str(host))
        done = agent.enrol(controller.url, controller.token(labels={"site": "berlin"}))
        assert done.returncode == 0, done.stderr
        order_of(controller, GOOD)
        order_of(controller, SLOW)
        agent.start()
        facts = agent.facts()
        assert facts is not None
        config = CONFIG.format(
            rules=RULES, ca=controller.settings.data_dir / "ca.pem",
            port=controller.settings.listen_web, agent=facts.listen_metrics,
        )  # fmt: skip
        try:
            with running_prometheus(folder / "prometheus", config) as prometheus:
                yield World(controller, agent, host, prometheus)
        finally:
            agent.stop()


def order_of(controller: ControllerWorld, version: str) -> None:
    """What a rollout leaves in the database once it has offered; reports drive it from there."""
    at = SystemClock().now()
    with controller.deps.store.write() as conn:
        seed_version(conn, "photo", version, at)
        row = rollout_row(f"r-{version}", version, at)
        rollouts.insert_rollout(
            conn, replace(row, model="photo", phase=Phase.SUCCEEDED, finished_at=at)
        )
        offered = NewAssignment("dev-1", 1, 0, AssignmentState.REFUSED, "", None, 0)
        insert_assignments(conn, row.rollout_id, "photo", version, [offered], at)
        put_gate(conn, PROJECT, gate_row(None, variant=version))


def bring(world: World, release: DesiredModel, files: list[bytes]) -> int:
    return world.controller.publish("dev-1", release, f"r-{release.version}", files)


def value(world: World, query: str) -> float:
    """The only value of a query, 0 while there is none."""
    found = world.prometheus.query(query)
    assert len(found) <= 1, found
    return found[0][1] if found else 0.0


@pytest.fixture(scope="module")
def served(world: World) -> World:
    """The good version answers with its heavy rung."""
    files = [scaled(2.0), scaled(3.0)]
    rungs = dict(zip(("heavy", "light"), files, strict=True))
    bring(world, make_release(GOOD, rungs, probation=PROBATION, ladder=LADDER), files)
    wait_for(lambda: serves(world, 2.0), 60, f"{GOOD} to answer\n{world.agent.tail()}")
    one = f'model="photo",version="{GOOD}",rung="heavy"'
    fleet = f'{one},profile="intel-n100",device="",site="berlin"'
    mine = f'{one},profile="intel-n100",device="dev-1",job="lighterman-agent"'
    with Client(world.agent) as client:
        for query in (
            f"lighterman_inference_duration_seconds_count{{{fleet}}} > 50",
            f"lighterman_inference_duration_seconds_count{{{mine}}} > 50",
            f'lighterman_serving_devices{{model="photo",version="{GOOD}",rung="heavy"}} == 1',
            'lighterman_device_temperature_celsius{profile="intel-n100",statistic="max"} == 50',
            'lighterman_device_temperature_celsius{job="lighterman-agent"} == 50',
            'lighterman_requests_total{model="photo",outcome="ok"} > 50',
            'lighterman_connected{to="broker"} == 1',
        ):
            wait_for(lambda query=query: world.prometheus.query(query), 60, query)  # type: ignore[misc]
    assert client.failures == []
    return world


@pytest.fixture(scope="module")
def hot(served: World) -> World:
    """Heat made the device step down."""
    set_temperature(served.host, HOT_C)
    changes = 'sum(lighterman_rung_changes_total{reason="temperature"})'
    with Client(served.agent):
        wait_for(lambda: value(served, changes) > 0, 60, f"a step down\n{served.agent.tail()}")
    return served


@pytest.fixture(scope="module")
def returned(hot: World) -> World:
    """The slow version was brought and left."""
    set_temperature(hot.host, COOL_C)
    assert "LightermanRolledBackSlow" not in hot.prometheus.firing()
    wait_for(lambda: hot.prometheus.query(f"{SLOW_ROLLBACKS} == 0"), 30, "the nought before it")
    data = slow(5.0, products_for(0.05))
    release = make_release(SLOW, {"heavy": data}, probation=PROBATION, slow_threshold_ms=25)
    bring(hot, release, [data])
    with Client(hot.agent) as client:
        wait_for(lambda: value(hot, SLOW_ROLLBACKS) == 1, 90, f"the way back\n{hot.agent.tail()}")
    assert client.failures == []
    return hot


def test_both_pages_are_sound(served: World) -> None:
    data_dir = served.controller.settings.data_dir
    trust = ssl.create_default_context(cafile=str(data_dir / "ca.pem"))
    facts = served.agent.facts()
    assert facts is not None
    for url, context in (
        (f"https://127.0.0.1:{served.controller.settings.listen_web}/metrics", trust),
        (f"http://{facts.listen_metrics}/metrics", None),
    ):
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            page = answer.read()
        code, said = promtool("check", "metrics", stdin=page)
        assert (code, said) == (0, ""), f"{url}\n{page.decode()}"


def test_both_sides_tell_of_the_same_inferences(served: World) -> None:
    def both() -> bool:
        query = f'sum by (job) (lighterman_inference_duration_seconds_count{{version="{GOOD}"}})'
        counts = [count for _, count in served.prometheus.query(query)]
        return len(counts) == 2 and counts[0] == counts[1] > 0

    wait_for(both, 60, "the same number on both sides once all of them are told")


def test_every_query_of_the_dashboard_has_data(hot: World) -> None:
    with Client(hot.agent):
        for text in dashboard.queries():
            query = text.replace("$__rate_interval", "30s")
            for name in ("model", "profile", "site"):
                query = query.replace(f"${name}", ".*")

            def has_data(query: str = query) -> bool:
                return any(not math.isnan(found) for _, found in hot.prometheus.query(query))

            wait_for(has_data, 60, f"data of {query}")


def test_a_slow_version_raises_its_alert_and_no_other(returned: World) -> None:
    wait_for(
        lambda: "LightermanRolledBackSlow" in returned.prometheus.firing(), 30, "the alert to fire"
    )
    firing = returned.prometheus.firing()
    assert set(firing) == {"LightermanRolledBackSlow"}
    labels = firing["LightermanRolledBackSlow"]
    assert (labels["model"], labels["version"]) == ("photo", SLOW)


def test_a_restart_of_the_controller_takes_no_rollback_back(returned: World) -> None:
    started = value(returned, "lighterman_controller_start_time_seconds")
    returned.controller.stop()
    returned.controller.start()
    wait_for(
        lambda: value(returned, "lighterman_controller_start_time_seconds") > started, 30,
        "a new controller",
    )  # fmt: skip
    assert value(returned, SLOW_ROLLBACKS) == 1
    assert value(returned, f"resets({SLOW_ROLLBACKS}[5m])") == 0


def serves(world: World, factor: float) -> bool:
    import grpc

    try:
        return world.agent.infer(1.0, 1.0, 1.0, 1.0)[0] == factor
    except grpc.RpcError:
        return False
