"""fleetctl on a pipe beside a real controller: what fits, what is watched, what is refused."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import pytest

from controller.cli.root import run as fleetctl
from controller.services.builds import start_build
from controller.services.context import Ctx
from controller.services.tokens import create_token
from controller.store import devices
from tests.support.catalogue import World
from tests.support.gateway import Running, running
from tests.support.stores import seed_device

PROFILE = "jetson-orin-nano-jp6"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("screens") / "data") as started:
        world = World(started.deps, started.ctx("ana"))
        world.push("digits:1.0.0")
        world.push_data()
        start_build(
            world.deps, world.ctx, model="digits", version="1.0.0", profiles=[PROFILE, "intel-n100"]
        )
        world.finish_all()
        yield started


def options(home: Running, *words: str) -> list[str]:
    return ["--context", str(home.folder / "operator.json"), *words]


def run(home: Running, *words: str, expect: int = 0) -> str:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = fleetctl(options(home, *words))
    assert code == expect, said.getvalue()
    return said.getvalue()


def add_device(home: Running, device_id: str) -> None:
    with home.deps.store.write() as conn:
        seed_device(conn, device_id)
        devices.update_device(conn, device_id, profile=PROFILE, online=True)


def test_builds_fit_and_show_accuracy_and_latency_with_their_n(home: Running) -> None:
    said = run(home, "build", "list", "digits").splitlines()
    table = [line for line in said if not line.startswith((PROFILE, "intel-n100"))]
    assert max(len(line) for line in table) <= 100
    assert table[1] == "digits:1.0.0  intel-n100  heavy"
    assert table[2].split() == [
        *("onnxruntime-fp32", "passed", "17", "B", "4", "(3.9–4.1)", "5", "200"),
        *("97.0", "−0.5", "(−1.5…+0.5)", "400"),
    ]
    assert any(line.startswith("in brackets: 95 % interval; n: calls timed") for line in said)
    wide = run(home, "build", "list", "digits", "-o", "wide").splitlines()
    assert "eager p50 ms (95 %)" in wide[0]
    assert "20 (20–20)" in wide[1]
    assert len(wide) == 9, wide  # a line each, whatever their width
    assert all(" onnxruntime-" in line for line in wide[1:])


def test_a_build_is_shown_whole_and_explained(home: Running) -> None:
    which = ("digits:1.0.0", "--profile", PROFILE, "--variant", "heavy")
    said = run(home, "build", "show", *which, "--recipe", "onnxruntime-int8")
    assert said.startswith(f"digits:1.0.0  {PROFILE}  heavy  onnxruntime-int8\nstate       passed")
    for line in (
        "            p50         4 ms (3.9–4.1), n=200",
        "            eager p50   20 ms (19.9–20.1), n=31",
        "gate        holds    no NaN or infinity in the answers to 375 rows",
        "            quantization.weight s8",
        "times       asked for  20",
    ):
        assert f"\n{line}" in said
    shown = json.loads(run(home, "build", "show", *which, "-o", "json"))["items"]
    assert [one["recipe"] for one in shown] == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert shown[0]["figures"]["p50_interval_ms"] == {
        "value": 4.0,
        "low": 3.9,
        "high": 4.1,
        "n": 200,
    }
    assert shown[0]["recipe_spec"]["runtime"] == "onnxruntime"
    assert shown[0]["findings"][0]["ok"] is True
    told = run(home, "build", "explain", *which)
    assert f"used        yes: devices of {PROFILE} get it as their rung heavy" in told
    items = json.loads(run(home, "build", "explain", *which, "-o", "json"))
    assert items["kind"] == "build_explanation_list"
    assert {one["topic"] for one in items["items"][0]["facts"]} >= {"state", "gate", "used"}


def test_a_report_compares_the_builds_and_writes_its_page(home: Running, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    said = run(home, "build", "report", "digits:1.0.0", "--html", str(page)).splitlines()
    assert max(len(line) for line in said if str(page) not in line) <= 100
    assert f"written: {page}" in "\n".join(said)
    assert page.read_text(encoding="utf-8").count("<svg") == 2, "one plot a profile"
    document = json.loads(run(home, "build", "report", "digits:1.0.0", "-o", "json"))
    assert document["kind"] == "build_report_list"
    assert {one["on_front"] for one in document["items"]} == {True}, "all of the same figures"
    run(home, "build", "report", "digits:1.0.0", "--html", str(tmp_path / "no" / "x"), expect=1)


def test_names_that_do_not_exist_are_errors_with_what_was_meant(home: Running) -> None:
    for words, said in (
        (("event", "list", "--device", "zzz"), "there is no device zzz"),
        (("event", "list", "--kind", "boott"), "did you mean boot"),
        (("event", "tail", "--kind", "boott"), "did you mean boot"),
        (("build", "show", "digits:1.0.0", "--variant", "heavi"), "did you mean heavy ?"),
        (("build", "explain", "digits:9.9.9"), "digits:9.9.9 does not exist"),
    ):
        assert said in run(home, *words, expect=1)


def test_a_watch_on_a_pipe_prints_what_is_new_and_ends_well(home: Running) -> None:
    add_device(home, "early-1")
    watch = subprocess.Popen(
        [sys.executable, "-m", "controller.cli", *options(home, "device", "list", "--watch")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    try:
        lines = [watch.stdout.readline() for _ in range(2)]
        assert lines[0].split() == ["device", "profile", "state", "seen", "runs", "°C"]
        assert lines[1].startswith("early-1")
        add_device(home, "later-1")
        assert watch.stdout.readline().startswith("later-1")  # and not early-1 again
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 0
        assert watch.stdout.read() == ""
    finally:
        watch.kill()
        watch.wait(20)
        watch.stdout.close()


def test_a_watch_is_for_people(home: Running) -> None:
    assert "--watch is for people" in run(home, "status", "-w", "-o", "json", expect=2)


def test_tokens_say_when_they_are_worth_nothing(home: Running) -> None:
    now = home.ctx()
    past = Ctx(now.now - timedelta(hours=2), now.ids, "ana")
    old = create_token(home.deps, past, ttl_s=3600.0).info.token_id
    fresh = create_token(home.deps, now).info.token_id
    lines = {line.split()[0]: line for line in run(home, "admin", "token", "list").splitlines()}
    assert lines[old].endswith("expired")
    assert "expired" not in lines[fresh]
    # Nobody is asked about a token that is not there.
    missing = run(home, "admin", "token", "revoke", fresh[:-1] + "!", expect=1)
    assert f"did you mean {fresh}" in missing
    assert "to confirm it" in run(home, "admin", "token", "revoke", fresh, expect=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model show digit", "did you mean digits ?"),
        ("rollout plan digits:1.0.1 --to all", "did you mean 1.0.0 ?"),
        ("rollout plan digits:1.0.0 --to all --policy defalt", "did you mean default ?"),
        (
            "rollout plan digits:1.0.0 --to profile=jetson-orin-nano",
            f"did you mean profile={PROFILE}",
        ),
        ("build run digits:1.0.0 --profile intel-n10", "did you mean intel-n100 ?"),
        ("build list digits --profile intel-n10", "did you mean intel-n100 ?"),
        ("build run digits:1.0.0 --recipe onnxruntime-int", "did you mean onnxruntime-int8"),
        ("build run digits:1.0.0 --dataset digts", "did you mean digits ?"),
        ("device show early-2", "did you mean early-1 ?"),
        ("device label -l profile=jetson-orin a=b", f"did you mean profile={PROFILE}"),
        ("admin profile show intel-n10", "did you mean intel-n100 ?"),
        ("admin dataset show digts", "did you mean digits ?"),
        ("admin telemetry tail -l a=b", "no device has the label a"),
        ("rollout show r-1", "none was started yet"),
    ],
)
def test_what_is_unknown_is_answered_by_what_was_meant(
    home: Running, words: str, said: str
) -> None:
    with home.deps.store.read() as conn:
        there = devices.get_device(conn, "early-1")
    if there is None:
        add_device(home, "early-1")
    assert said in run(home, *words.split(), expect=1)


def test_a_run_that_builds_nothing_says_so_and_waits_for_nothing(
    home: Running, tmp_path: Path
) -> None:
    document = tmp_path / "profile.yaml"
    document.write_text(
        "kind: Profile\nname: no-device\nspec:\n  match: {arch: x86_64}\n"
        "  runtimes: [onnxruntime, openvino]\n  recipes: [openvino-fp32]\n"
    )
    run(home, "apply", "-f", str(document))
    said = run(home, "build", "run", "digits:1.0.0", "--profile", "no-device", "--wait", expect=1)
    assert "nothing is built of digits:1.0.0: no device reports a runtime" in said


def test_the_first_variant_is_no_same_signature(home: Running) -> None:
    shown = run(home, "model", "show", "digits").splitlines()
    assert [line.endswith("same signature") for line in shown[1:3]] == [False, True]
    assert run(home, "admin", "dataset", "list").splitlines()[0].split()[:3] == [
        "dataset",
        "rows",
        "shape",
    ]


def test_a_plan_names_the_devices_in_quarantine(home: Running) -> None:
    for name in ("q-1", "q-2"):
        add_device(home, name)
    with home.deps.store.write() as conn:
        runtimes = {"arch": "aarch64", "runtimes": {"onnxruntime": "1.32.0"}}
        devices.put_capabilities(conn, "q-1", runtimes, home.ctx().now)
        devices.update_device(conn, "q-2", state="QUARANTINED")
    plan = ("rollout", "plan", "digits:1.0.0", "--to", "device in (q-1,q-2)")
    said = run(home, *plan)
    assert "1 device will not get it:" in said
    assert "note: 1 device (q-2) is in quarantine (two holders of one identity);" in said
    told = json.loads(run(home, *plan, "-o", "json"))
    assert told["devices"] == 1
    assert [one["device_id"] for one in told["unready"]] == ["q-2"]
    assert "in quarantine" in told["unready"][0]["reason"]
