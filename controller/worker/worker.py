"""One build worker: claims a job, has it run, brings the result. Opens no model, judges nothing."""

import hashlib
import json
import logging
import os
import random
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller.clock import Clock
from controller.domain.device import Capabilities
from controller.errors import InvalidError, LightermanError, RefusedError, UnavailableError
from controller.optimize import torchscript_archive
from controller.optimize.spec import JobSpec, parse_spec
from controller.worker.cache import InputCache
from controller.worker.checkpoints import Checkpoints
from controller.worker.client import BuildClient, ClaimedJob
from controller.worker.supervisor import JobEnd, JobLimits, Progress, run_job

HEARTBEAT_S = 2.0
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 10.0
MAX_RESULT_BYTES = 4 * 1024**2
READ_BYTES = 1024**2
COMPLETE_ATTEMPTS = 6

# Builds that are programs for the devices: looked at here, for a job ran foreign code.
_PROGRAMS = {"torch": torchscript_archive.check}

log = logging.getLogger(__name__)

RunJob = Callable[..., JobEnd]


class Worker:
    """Works until told to stop."""

    def __init__(
        self,
        client: BuildClient,
        host: Capabilities,
        work_dir: Path,
        stop: threading.Event,
        clock: Clock,
        run: RunJob = run_job,
    ) -> None:
        self._client = client
        self._host = host
        self._jobs = work_dir / "jobs"
        self._cache = InputCache(work_dir / "cache")
        self._stop = stop
        self._clock = clock
        self._run = run
        self._checkpoints = Checkpoints(work_dir / "checkpoints")
        # What a worker that was killed left behind.
        self._checkpoints.gather(self._jobs)
        shutil.rmtree(self._jobs, ignore_errors=True)
        self._jobs.mkdir(parents=True)

    def work(self) -> None:
        """Claim and do jobs until the stop event is set."""
        backoff = BACKOFF_FIRST_S
        while not self._stop.is_set():
            try:
                claim = self._client.claim(self._host)
            except LightermanError as error:
                log.warning("claim failed: %s", error.text())
                self._stop.wait(random.uniform(0, backoff))
                backoff = min(BACKOFF_MAX_S, backoff * 2)
                continue
            backoff = BACKOFF_FIRST_S
            if claim.job is None:
                self._stop.wait(max(0.05, claim.retry_after_s))
            else:
                self._do(claim.job)

    def _do(self, job: ClaimedJob) -> None:
        log.info("job %s: claimed", job.job_id)
        directory = Path(tempfile.mkdtemp(dir=self._jobs, prefix="job-"))
        try:
            with _Heartbeat(self._client, job, self._clock, self._stop) as heart:
                try:
                    self._do_in(job, directory, heart)
                except LightermanError as error:
                    log.warning("job %s: %s", job.job_id, error.text())
                    if not heart.reason():
                        self._complete(job, ok=False, error=error.text())
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _do_in(self, job: ClaimedJob, directory: Path, heart: "_Heartbeat") -> None:
        spec = parse_spec(job.spec_json)
        heart.progress.step = "fetching"
        inputs = directory / "inputs"
        inputs.mkdir()
        for item in job.inputs:
            self._cache.bring(item, inputs / _plain_name(item.role), self._client.fetch)
        (directory / "spec.json").write_text(job.spec_json, encoding="utf-8")
        self._checkpoints.bring(job.job_id, directory)
        limits = JobLimits(spec.memory_bytes, spec.time_s)
        end = self._run(directory, limits, heart.progress, self._clock, heart.reason)
        if end.cancelled:
            # Not reported as failed: a job of a worker that stops is somebody's else when the lease
            # runs out, a cancelled one is the controller's own decision.
            log.info("job %s: stopped: %s", job.job_id, end.error)
            self._checkpoints.keep(job.job_id, directory)
            return
        if end.error:
            log.warning("job %s: %s", job.job_id, end.error)
            self._complete(job, ok=False, error=end.error, last_lines=end.last_lines)
            return
        result = read_result(directory / "result.json")
        heart.progress.step = "uploading"
        for digest, path in outputs_of(result, spec, directory / "outputs"):
            self._client.put(job, digest, path)
        self._complete(job, ok=True, result_json=json.dumps(result), last_lines=end.last_lines)
        log.info("job %s: done", job.job_id)

    def _complete(self, job: ClaimedJob, *, ok: bool, **fields: Any) -> None:
        """A controller that restarts in this moment must still learn how the job ended."""
        for attempt in range(COMPLETE_ATTEMPTS):
            try:
                self._client.complete(job, ok=ok, **fields)
                return
            except UnavailableError as error:
                log.warning("job %s: %s", job.job_id, error.text())
                self._stop.wait(BACKOFF_FIRST_S * 2**attempt)
            except RefusedError as error:
                log.warning("job %s: its end was not taken: %s", job.job_id, error.text())
                return


class _Heartbeat:
    """Says every two seconds how far the job is, and hears whether it is still wanted."""

    def __init__(
        self, client: BuildClient, job: ClaimedJob, clock: Clock, stop: threading.Event
    ) -> None:
        self.progress = Progress()
        self._client = client
        self._job = job
        self._stop = stop
        self._ended = threading.Event()
        self._reason = ""
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "_Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def reason(self) -> str:
        """Why to stop, or nothing."""
        return self._reason or ("the worker is stopping" if self._stop.is_set() else "")

    def _beat(self) -> None:
        while not self._ended.is_set():
            try:
                progress = self.progress
                said = self._client.beat(self._job, progress.progress_pct, progress.step)
                self._reason = self._reason or said
            except UnavailableError as error:
                # The lease outlives a short absence; if not, the next answer says so.
                log.warning("job %s: %s", self._job.job_id, error.text())
            except RefusedError as error:
                self._reason = error.text()
            self._ended.wait(HEARTBEAT_S)


def read_result(path: Path) -> dict[str, Any]:
    """The job's answer, which is as trustworthy as the model it opened."""
    data = _read_plain(path, MAX_RESULT_BYTES)
    try:
        result = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"the job's result is no JSON: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("builds"), list):
        raise InvalidError("the job's result lists no builds")
    return result


def outputs_of(result: dict[str, Any], spec: JobSpec, folder: Path) -> list[tuple[str, Path]]:
    """Digest and file of each finished build, hashed here. InvalidError where the job lied."""
    known = {build.build_id: build for build in spec.builds}
    found: list[tuple[str, Path]] = []
    for row in result["builds"]:
        build = known.get(str(row.get("build_id"))) if isinstance(row, dict) else None
        if build is None:
            raise InvalidError("the job's result names a build that was not asked for")
        if row.get("ok") is not True:
            continue
        path = folder / build.file_name
        digest, length = _digest_plain(path)
        if build.recipe.runtime in _PROGRAMS:
            _PROGRAMS[build.recipe.runtime](path, f"build {build.build_id}")
        if digest != row.get("digest") or length != row.get("length"):
            raise InvalidError(f"build {build.build_id} is not the file that its result names")
        found.append((digest, path))
    return found


def _open_plain(path: Path) -> int:
    """A regular file that is no link; a hostile job may leave others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidError(f"the job left no {path.name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidError(f"{path.name} is no file")
    return descriptor


def _read_plain(path: Path, cap_bytes: int) -> bytes:
    with os.fdopen(_open_plain(path), "rb") as stream:
        data = stream.read(cap_bytes + 1)
    if len(data) > cap_bytes:
        raise InvalidError(f"{path.name} is longer than {cap_bytes} bytes")
    return data


def _digest_plain(path: Path) -> tuple[str, int]:
    digest, length = hashlib.sha256(), 0
    with os.fdopen(_open_plain(path), "rb") as stream:
        while chunk := stream.read(READ_BYTES):
            digest.update(chunk)
            length += len(chunk)
    return f"sha256:{digest.hexdigest()}", length


def _plain_name(role: str) -> str:
    if not role.isalnum():
        raise InvalidError(f"{role!r} is no role of an input")
    return role
