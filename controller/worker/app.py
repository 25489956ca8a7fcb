"""Composition root of `lighterman-controller worker`: identity, client, work folder, signals."""

import logging
import signal
import threading
from pathlib import Path

from controller.clock import Clock, SystemClock
from controller.optimize.host import build_host
from controller.worker import fence
from controller.worker.client import BuildClient
from controller.worker.identity import read_identity
from controller.worker.places import workplace
from controller.worker.worker import Worker

log = logging.getLogger(__name__)


def run_worker(
    controller: str,
    identity: Path,
    stop: threading.Event | None = None,
    *,
    work_dir: Path | None = None,
    clock: Clock | None = None,
) -> int:
    """Work for the controller at ``controller`` (HOST:PORT) until stopped; returns the exit status.

    Without ``stop``, SIGINT and SIGTERM stop it (main thread only). Without ``work_dir``, a
    temporary folder serves as cache and workplace. Raises InvalidError for an unusable identity,
    and RefusedError when another worker works in ``work_dir``.
    """
    who = read_identity(identity)
    if stop is None:
        stop = threading.Event()
        _stop_on_signals(stop)
    client = BuildClient(who, controller)
    try:
        with workplace(work_dir) as folder:
            log.info("worker %s for %s works in %s", who.name, controller, folder)
            if not fence.version():
                log.warning("this system has no Landlock: jobs can read what the worker can")
            host = build_host(folder)
            Worker(client, host, folder, stop, clock or SystemClock()).work()
    finally:
        client.close()
    return 0


def _stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
