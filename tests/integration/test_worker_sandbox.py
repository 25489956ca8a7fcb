"""What a job can reach, tried from inside by code that a hostile model would bring."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.clock import SystemClock
from controller.worker import fence
from controller.worker.supervisor import JobLimits, Progress, group_memory_bytes, run_job
from tests.support.digits import digits, job_folder, job_spec
from tests.support.pt2 import hostile_sample
from tests.support.sleepers import is_sleeping
from tests.support.wait import wait_for

LIMITS = JobLimits(4 * 1024**3, 90)
# Tries to get out and writes down what it found, in the folder it stands in.
PROBE = """
import json, os, resource, socket
def connects(family, address):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            probe.connect(address)
        return True
    except OSError:
        return False
def held():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return found
found = {
    "loopback": connects(socket.AF_INET, ("127.0.0.1", PORT)),
    "abstract": connects(socket.AF_UNIX, "\\0" + NAME),
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "files": held(),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "memory": resource.getrlimit(resource.RLIMIT_AS)[1],
    "processor": resource.getrlimit(resource.RLIMIT_CPU)[0],
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if "Cap" in line[:3]],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "oom": open("/proc/self/oom_score_adj").read().strip(),
    "session": int(open("/proc/self/stat").read().rpartition(")")[2].split()[3]),
}
open("probe.json", "w").write(json.dumps(found))
"""


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[str]:
    """The probe with the addresses of two listeners that any process of ours could reach."""
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
    ):
        name = f"lighterman-test-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        port = loopback.getsockname()[1]
        yield PROBE.replace("PORT", str(port)).replace("NAME", repr(name))


def run_hostile(tmp_path: Path, code: str, limits: JobLimits = LIMITS) -> Path:
    """Run a job whose model brings code; what is opened here is not what intake stores."""
    hostile = hostile_sample(digits() / "light.pt2", tmp_path / "hostile.pt2", code)
    spec = job_spec(
        hostile, ("onnxruntime-fp32",), calibration=False, evaluation=False,
        memory_bytes=limits.memory_bytes, time_s=limits.time_s,
    )  # fmt: skip
    folder = job_folder(tmp_path / "job", hostile, spec)
    run_job(folder, limits, Progress(), SystemClock(), lambda: "")
    return folder


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    return found


def test_a_job_has_no_network_environment_or_open_files(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTERMAN_SECRET", "the database's address")
    found = seen(run_hostile(tmp_path, probe))
    assert found["environment"].get("LIGHTERMAN_SECRET") is None
    assert not [key for key in found["environment"] if key.startswith("LIGHTERMAN")]
    assert found["folder"] == str(tmp_path / "job")
    assert not [file for file in found["files"] if file.startswith("socket:")]
    if not _may_unshare():
        pytest.skip("this system permits no network namespace; the rest of the test holds")
    assert (found["loopback"], found["abstract"]) == (False, False)


def _session() -> int:
    """Our session's id, as /proc numbers it: getsid is 0 in a PID namespace without its leader."""
    return int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[3])


def test_a_job_is_limited_and_last_in_line(probe: str, tmp_path: Path) -> None:
    found = seen(run_hostile(tmp_path, probe))
    assert found["nice"] == 10
    assert LIMITS.memory_bytes <= found["memory"] <= LIMITS.memory_bytes + 8 * 1024**3
    assert found["processor"] == int(LIMITS.time_s) * len(os.sched_getaffinity(0))
    assert found["core"] == 0
    # Nothing inherited, permitted, effective, ambient; what may be gained (Bnd) is void without.
    assert [int(value, 16) for i, value in enumerate(found["capabilities"]) if i != 3] == [0] * 4
    assert int(found["oom"]) > 0
    assert found["session"] != _session()


def test_outside_the_sandbox_the_same_code_gets_out(probe: str, tmp_path: Path) -> None:
    """Negative control: it is the sandbox that stops the probe, not the probe itself."""
    subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True, timeout=60)
    found = seen(tmp_path)
    assert (found["loopback"], found["abstract"]) == (True, True)


# Tries every way to files of others, and to what is its own.
REACH = """
import json, os
def tries(act):
    try:
        act()
        return True
    except OSError as error:
        return False
outside, pid = OUTSIDE, PID
found = {
    "read": tries(lambda: open(f"{outside}/secret").read()),
    "list": tries(lambda: os.listdir(outside)),
    "write": tries(lambda: open(f"{outside}/secret", "a").write("x")),
    "truncate": tries(lambda: os.truncate(f"{outside}/secret", 1)),
    "make": tries(lambda: open(f"{outside}/made", "w").close()),
    "remove": tries(lambda: os.remove(f"{outside}/spare")),
    "by a link": tries(lambda: (os.symlink(f"{outside}/secret", "l"), open("l").read())),
    "by a hard link": tries(lambda: (os.link(f"{outside}/secret", "h"), open("h").read())),
    "environment of the worker": tries(lambda: open(f"/proc/{pid}/environ").read()),
    "passwords": tries(lambda: open("/etc/passwd").read()),
    "temporary": tries(lambda: open("/tmp/lighterman-probe", "w").close()),
    "signal to the worker": tries(lambda: os.kill(pid, 0)),
    "own folder": tries(lambda: (open("mine", "w").close(), os.mkdir("d"), os.remove("mine"))),
    "system's libraries": tries(lambda: os.listdir("/usr/lib")),
    "no device": tries(lambda: open("/dev/null", "w").write("x")),
}
open("reach.json", "w").write(json.dumps(found))
"""
OWN = {"own folder", "system's libraries", "no device"}


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[str]:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("the key")
    (outside / "spare").write_text("")
    yield REACH.replace("OUTSIDE", repr(str(outside))).replace("PID", str(os.getpid()))
    Path("/tmp/lighterman-probe").unlink(missing_ok=True)


def reached(folder: Path) -> set[str]:
    found: dict[str, bool] = json.loads((folder / "reach.json").read_text(encoding="utf-8"))
    return {name for name, worked in found.items() if worked}


def test_a_job_reaches_no_files_but_its_own(reach: str, tmp_path: Path) -> None:
    if not fence.version():
        pytest.skip("this kernel has no Landlock; the worker says so in its log")
    folder = run_hostile(tmp_path, reach)
    assert reached(folder) == OWN
    assert (tmp_path / "outside" / "secret").read_text() == "the key"


def test_without_the_fence_the_same_code_reaches_them(reach: str, tmp_path: Path) -> None:
    """Negative control: it is the fence that stops it."""
    subprocess.run([sys.executable, "-c", reach], cwd=tmp_path, check=True, timeout=60)
    missed = {"by a hard link"} - reached(tmp_path)  # some systems forbid these by themselves
    assert reached(tmp_path) | missed >= OWN | {"read", "list", "write", "make", "passwords"}


def test_a_system_without_landlock_is_said_and_the_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "version", lambda: 0)
    assert fence.fence_files(tmp_path) is False
    (tmp_path / "still").write_text("free")


def test_processor_time_is_limited(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = (
        "from controller.worker.sandbox import set_limits; set_limits(1 << 30, 1)\nwhile True: pass"
    )
    end = run_job(
        folder, LIMITS, Progress(), SystemClock(), lambda: "", (sys.executable, "-I", "-c", code)
    )
    assert end.error == "the job was ended by SIGXCPU: it used more than its processor time"


def test_nothing_of_a_job_outlives_it(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, file=open('pid', 'w'))"
    end = run_job(
        folder, LIMITS, Progress(), SystemClock(), lambda: "", (sys.executable, "-I", "-c", code)
    )
    assert end.error == ""
    pid = int((folder / "pid").read_text())

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_for(gone, 10, "the child's end")


def test_what_a_job_hides_in_another_session_is_gone_with_it(tmp_path: Path) -> None:
    if not _may_unshare():
        pytest.skip("this system permits no process space of its own")
    mark = f"6{os.getpid()}"  # an age to sleep that no other process has
    code = (
        "import os, subprocess\n"
        f"subprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n"
        "open('started', 'w').close()\n"
        "os._exit(0)"
    )
    folder = run_hostile(tmp_path, code)
    assert (folder / "started").exists()
    wait_for(lambda: not is_sleeping(mark), 10, "the hidden child's end")


def test_only_the_last_lines_are_kept_and_none_is_endless(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = (
        "import sys\n"
        "for n in range(500): sys.stderr.write(f'line {n}\\n')\n"
        "sys.stderr.write('x' * 100_000 + '\\n')\n"
        'print(\'no progress at all\'); print(\'{"progress_pct": "NaN", "step": 1}\')\n'
        'print(\'{"progress_pct": 900, "step": "far"}\', flush=True)\n'
        "sys.exit(3)"
    )
    progress = Progress()
    end = run_job(
        folder, LIMITS, progress, SystemClock(), lambda: "", (sys.executable, "-I", "-c", code)
    )
    assert end.error == "the job ended with status 3 while far"
    assert len(end.last_lines) == 40
    assert max(len(line) for line in end.last_lines) <= 500
    assert (progress.progress_pct, progress.step) == (100.0, "far")


def test_memory_of_a_group_is_counted() -> None:
    code = "x = bytearray(b'1' * (200 << 20)); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert 200 * 1024**2 < group_memory_bytes(child.pid) < 400 * 1024**2
        child.communicate(b"\n")


def _may_unshare() -> bool:
    code = (
        "import ctypes, sys; from controller.worker.sandbox import leave_network;"
        "sys.exit(not leave_network(ctypes.CDLL(None)))"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
