"""A job that was killed: memory is blamed only where the kernel or the measurement says so."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from controller.clock import SystemClock
from controller.worker.oom import KillCounts, killed_text, read_kill_counts
from controller.worker.supervisor import JobLimits, Progress, run_job
from tests.support.wait import wait_for

MIB = 1024**2
LIMIT = 1000 * MIB
NONE = KillCounts(0, 0)


@pytest.mark.parametrize(
    ("peak", "after", "says"),
    [
        (120, NONE, "killed by signal 9 from outside; its memory was 120 of at most 1,000 MiB"),
        (120, KillCounts(None, None), "from outside"),
        (120, KillCounts(1, 1), "for want of memory in its control group; its memory was 120"),
        (120, KillCounts(0, 2), "the system killed for want of memory meanwhile"),
        (950, NONE, "near its limit of memory; its memory was 950 of at most 1,000 MiB"),
    ],
)
def test_memory_is_blamed_with_evidence_only(peak: int, after: KillCounts, says: str) -> None:
    text = killed_text(peak * MIB, LIMIT, NONE, after)
    assert says in text
    blamed = "want of memory" in text or "near its limit" in text
    assert blamed != ("from outside" in text)


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/jobs/a\n", "sys/fs/cgroup/jobs/a/memory.events"),
        ("7:cpu,memory:/jobs/a\n0::/x\n", "sys/fs/cgroup/memory/jobs/a/memory.oom_control"),
    ],
)
def test_the_kernel_is_asked_in_both_layouts(cgroup: str, file: str, tmp_path: Path) -> None:
    assert read_kill_counts(tmp_path) == KillCounts(None, None)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    (tmp_path / "proc/vmstat").write_text("nr_free 12\noom_kill 5\n")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("low 0\noom 4\noom_kill 3\n")
    assert read_kill_counts(tmp_path) == KillCounts(3, 5)
    assert read_kill_counts(tmp_path).since(KillCounts(3, 4)) == (0, 1)
    assert read_kill_counts(tmp_path).since(KillCounts(None, 9)) == (0, 0)


def test_a_job_that_somebody_kills_is_not_blamed_on_memory(tmp_path: Path) -> None:
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    ends: list[str] = []

    def work() -> None:
        limits = JobLimits(1024 * MIB, 60)
        command = (sys.executable, "-I", "-c", code)
        ends.append(run_job(tmp_path, limits, Progress(), SystemClock(), lambda: "", command).error)

    thread = threading.Thread(target=work)
    thread.start()
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text().isdigit(), 20, "the job's start")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    thread.join(20)
    assert "signal 9 from outside" in ends[0] or "meanwhile" in ends[0], ends
    assert "of at most 1,024 MiB" in ends[0]


def test_a_job_without_memory_to_go_on_says_so(tmp_path: Path) -> None:
    code = "raise MemoryError"
    end = run_job(
        tmp_path, JobLimits(1024 * MIB, 60), Progress(), SystemClock(), lambda: "",
        (sys.executable, "-I", "-c", code),
    )  # fmt: skip
    assert end.error == "the job ran out of memory, 1.0 GiB are allowed"


def _limited_group() -> Path | None:
    """A fresh control group that holds 64 MiB, where the system lets us make one."""
    root = Path("/sys/fs/cgroup")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in lines if ":memory:" in line), None)
    group = root / "memory" / own.lstrip("/") if own is not None else root
    group = group / f"lighterman-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    for name in ("memory.limit_in_bytes", "memory.max"):
        if (group / name).exists():
            (group / name).write_text(str(64 * MIB))
            return group
    group.rmdir()
    return None


FILLS = """
import os, subprocess, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from controller.worker.oom import read_kill_counts
before = read_kill_counts()
filling = "open('/proc/self/oom_score_adj', 'w').write('1000'); x = bytearray(b'1' * (256 << 20))"
status = subprocess.run([sys.executable, "-c", filling]).returncode
print(status, *read_kill_counts().since(before))
"""


def test_the_kernel_counts_what_it_kills_for_want_of_memory() -> None:
    """The control of it all: a real kill by a real limit is seen."""
    group = _limited_group()
    if group is None:
        pytest.skip("this system lets us make no control group with a limit of memory")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FILLS, str(group)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), 10, "the group to be empty")
        group.rmdir()
    status, in_group, on_machine = done.stdout.split()
    assert status == "-9", done
    assert int(in_group) == 1
    assert int(on_machine) >= 1
