"""What killed jobs had trained so far, kept for their next attempt on this worker.

A job writes `checkpoints/` in its own directory; nothing here opens a file of it. Kept are folders
of few plain files and bounded size, of the newest jobs; a job that ended takes its own along.
Another worker begins anew: checkpoints are never uploaded.
"""

import shutil
from pathlib import Path

MAX_JOBS = 4
MAX_FILES = 16
MAX_BYTES = 4 * 1024**3
_FOLDER = "checkpoints"
_OWNER = "job_id"  # in a job's directory: whose it is, for the case that nobody is left to ask


class Checkpoints:
    """Folders by job, below the worker's own directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def gather(self, jobs: Path) -> None:
        """Take what a worker that was killed left in its jobs' directories."""
        for directory in jobs.glob("job-*"):
            try:
                owner = (directory / _OWNER).read_text(encoding="utf-8")
            except (OSError, ValueError):
                continue
            self.keep(owner, directory)

    def bring(self, job_id: str, directory: Path) -> None:
        """Put what was kept of the job into its new directory, and note whose that is."""
        (directory / _OWNER).write_text(job_id, encoding="utf-8")
        kept = self._of(job_id)
        if kept is not None and kept.is_dir():
            kept.rename(directory / _FOLDER)

    def keep(self, job_id: str, directory: Path) -> None:
        """Take the folder out of a directory that is about to go; not from a hostile job."""
        found, kept = directory / _FOLDER, self._of(job_id)
        if kept is None or found.is_symlink() or not found.is_dir():
            return
        files = list(found.iterdir())
        plain = all(one.is_file() and not one.is_symlink() for one in files)
        if not plain or len(files) > MAX_FILES:
            return
        if sum(one.stat().st_size for one in files) > MAX_BYTES:
            return
        shutil.rmtree(kept, ignore_errors=True)
        found.rename(kept)
        self._forget_old()

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        kept = self._of(job_id)
        if kept is not None:
            shutil.rmtree(kept, ignore_errors=True)

    def _of(self, job_id: str) -> Path | None:
        plain = job_id.replace("-", "").isalnum() and job_id.isascii() and len(job_id) < 64
        return self._folder / job_id if plain else None

    def _forget_old(self) -> None:
        those = sorted(self._folder.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in those[MAX_JOBS:]:
            shutil.rmtree(old, ignore_errors=True)
