"""What a killed job had trained: kept for its next attempt, and for no other."""

from pathlib import Path

import pytest

from controller.worker import checkpoints
from controller.worker.checkpoints import Checkpoints


def job(folder: Path, name: str, content: bytes = b"") -> Path:
    directory = folder / f"job-{name}"
    directory.mkdir(parents=True)
    if content:
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "passes-0-0.pt").write_bytes(content)
    return directory


def test_a_killed_workers_job_finds_what_it_had(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    killed = job(jobs, "a")
    Checkpoints(tmp_path / "kept").bring("j-1", killed)  # it is claimed,
    (killed / "checkpoints").mkdir()  # trains, and its worker is killed
    (killed / "checkpoints" / "passes-0-0.pt").write_bytes(b"weights")
    again = Checkpoints(tmp_path / "kept")
    again.gather(jobs)
    other, same = job(jobs, "b"), job(jobs, "c")
    again.bring("j-2", other)
    assert not (other / "checkpoints").exists(), "not of this job"
    again.bring("j-1", same)
    assert (same / "checkpoints" / "passes-0-0.pt").read_bytes() == b"weights"
    again.keep("j-1", same)
    again.forget("j-1")
    third = job(jobs, "d")
    again.bring("j-1", third)
    assert not (third / "checkpoints").exists()


def test_only_plain_folders_of_bounded_size_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, jobs = Checkpoints(tmp_path / "kept"), tmp_path / "jobs"
    linked = job(jobs, "a")
    (linked / "checkpoints").symlink_to(tmp_path)
    kept.keep("j-1", linked)
    inside = job(jobs, "b", b"x")
    (inside / "checkpoints" / "link").symlink_to("/etc/passwd")
    kept.keep("j-2", inside)
    kept.keep("../j-3", job(jobs, "c", b"x"))
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 10)
    kept.keep("j-4", job(jobs, "d", bytes(11)))
    assert list((tmp_path / "kept").iterdir()) == []
    for number in range(checkpoints.MAX_JOBS + 2):
        kept.keep(f"j-{number}", job(jobs, f"e{number}", b"x"))
    assert len(list((tmp_path / "kept").iterdir())) == checkpoints.MAX_JOBS
