"""`fleet-sim`: many simulated devices against a real controller. Prints; nothing else here does.

Exit codes: 0 done, 1 failed, 2 usage, 5 the controller does not answer.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from agent.clock import SystemClock
from agent.domain.words import plain
from agent.errors import AgentError
from agent.sim.script import Script
from lighterman.extras import require_extra
from lighterman.output import with_output
from lighterman.quiet import quiet_grpc

if TYPE_CHECKING:
    from agent.sim.around import Happened
    from agent.sim.fleet import SimFleet, Wanted

EXIT_FAILED = 1
EXIT_UNREACHABLE = 5
SAY_S = 2.0

_DESCRIPTION = """
Simulate devices: each enrols, connects over MQTT and gRPC with a certificate of its own, verifies
what it is ordered, reports every step and sends telemetry; models, inference and disk are
pretended.

Of each file only the last 4 KiB are fetched. A spool is kept in memory and ends with the process.
SIGUSR1 lets all of them fetch and verify their desired state once, at the same time.
All devices run until SIGTERM or --for; a device takes about half a megabyte here, so that one
process is good for some 2,000.
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="fleet-sim", description=_DESCRIPTION)
    for name, metavar, convert, default, text in _OPTIONS:
        required = default is None and name in ("--controller", "--token", "--count")
        parser.add_argument(
            name, metavar=metavar, type=convert, default=default, required=required, help=text
        )
    parser.add_argument("--for", metavar="S", dest="for_s", type=_seconds, default=0.0,
                        help="end after so many seconds (default: on SIGTERM)")  # fmt: skip
    parser.add_argument("--happenings", metavar="FILE", type=Path,
                        help="write what happens as lines of JSON")  # fmt: skip
    parser.add_argument("--json", action="store_true",
                        help="say how the fleet stands as lines of JSON")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fleet; returns the exit code."""
    return with_output(lambda: _simulate(argv))


def _simulate(argv: Sequence[str] | None) -> int:
    options = build_parser().parse_args(argv)
    quiet_grpc()
    require_extra("agent", "grpc", "google.protobuf", "cryptography")
    from agent.sim.fleet import Wanted, allow_files

    wanted = Wanted(
        controller=options.controller,
        token=options.token,
        count=options.count,
        prefix=options.prefix,
        telemetry_s=options.telemetry,
        script=Script(
            seed=options.seed,
            inferences_per_s=options.rate,
            latency_s=options.latency_ms / 1000.0,
            jitter_pct=options.jitter,
            load_s=options.load_s,
            bad_version=options.bad_version,
            slow_share_pct=options.slow_share,
        ),
    )
    try:
        allow_files(wanted.count)
        asyncio.run(_run(wanted, options))
    except AgentError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return EXIT_UNREACHABLE if getattr(error, "retryable", False) else EXIT_FAILED
    except OSError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    return 0


async def _run(wanted: "Wanted", options: argparse.Namespace) -> None:
    from agent.host.capabilities import detect
    from agent.sim.fleet import CONNECTING, Around, SimFleet, enrol_fleet

    say = _say_json if options.json else _say_text
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-sim-")))
        file = None
        if options.happenings is not None:
            file = stack.enter_context(options.happenings.open("w", buffering=1, encoding="utf-8"))
        found = replace(detect(options.host_root, folder), host_simulated=True)
        say({"enrolling": wanted.count})
        identities = await enrol_fleet(wanted, found, lambda _: None)
        say({"enrolled": len(identities)})
        around = Around(
            clock=SystemClock(),
            script=wanted.script,
            capabilities=found,
            telemetry_s=wanted.telemetry_s,
            folder=folder,
            connecting=asyncio.Semaphore(CONNECTING),
            told=_writer(file),
        )
        fleet = SimFleet(identities, around)
        running = loop.create_task(fleet.run())
        polls: set[asyncio.Task[None]] = set()
        loop.add_signal_handler(
            signal.SIGUSR1, lambda: polls.add(loop.create_task(fleet.poll_all()))
        )
        try:
            await _watch(fleet, running, ending, options.for_s, say)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            say(asdict(fleet.summary()))


async def _watch(
    fleet: "SimFleet",
    running: "asyncio.Task[None]",
    ending: asyncio.Event,
    for_s: float,
    say: Callable[[dict[str, object]], None],
) -> None:
    """Say how the fleet stands whenever that changed, until it is over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + for_s if for_s else float("inf")
    said: dict[str, object] = {}
    while not ending.is_set() and loop.time() < ends_at and not running.done():
        now: dict[str, object] = asdict(fleet.summary())
        if now != said:
            said = now
            say(now)
        try:
            async with asyncio.timeout(min(SAY_S, ends_at - loop.time())):
                await ending.wait()
        except TimeoutError:
            continue
    if running.done():
        running.result()


def _writer(file: TextIO | None) -> "Callable[[Happened], None]":
    if file is None:
        return lambda happened: None
    out = file

    def write(happened: "Happened") -> None:
        kept = {name: value for name, value in asdict(happened).items() if value}
        out.write(json.dumps(kept, separators=(",", ":")) + "\n")

    return write


def _say_json(facts: dict[str, object]) -> None:
    print(json.dumps({"schema_version": 1, **facts}), flush=True)


def _say_text(facts: dict[str, object]) -> None:
    words = []
    for name, value in facts.items():
        if isinstance(value, dict):
            words += [f"{key} {count}" for key, count in value.items()]
        else:
            words.append(f"{name} {value}")
    print(" · ".join(words), flush=True)


def _count(given: str) -> int:
    value = int(given)
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError("1 to 10000 devices")
    return value


def _seconds(given: str) -> float:
    value = float(given)
    if not 0.0 < value <= 86_400.0:
        raise argparse.ArgumentTypeError("a number above 0, at most 86400")
    return value


def _share(given: str) -> float:
    value = float(given.removesuffix("%"))
    if not 0.0 <= value <= 100.0:
        raise argparse.ArgumentTypeError("a share from 0 to 100")
    return value


# Flag, value, how it is read, default, meaning.
_OPTIONS: tuple[tuple[str, str, Callable[[str], Any], Any, str], ...] = (
    ("--controller", "URL", str, None, "https://HOST:7444 of the controller"),
    ("--token", "TOKEN", str, None,
     "from `fleetctl admin token create --uses N`, good for all of them"),
    ("--count", "N", _count, None, "how many devices"),
    ("--prefix", "NAME", str, "sim", "devices are NAME-00001 ... (default: sim)"),
    ("--seed", "N", int, 0, "decides all that is left to chance"),
    ("--host-root", "DIR", Path, Path("/"),
     "what the devices report of themselves is read from this tree (default: /)"),
    ("--telemetry", "S", _seconds, 10.0,
     "seconds between two telemetry messages of a device (default: 10)"),
    ("--rate", "N", _seconds, 10.0, "inferences per second and device (default: 10)"),
    ("--latency-ms", "MS", _seconds, 20.0, "service time of a good version (default: 20)"),
    ("--jitter", "PCT", _share, 20.0,
     "how far service and loading times move either way (default: 20)"),
    ("--load-s", "S", _seconds, 0.2, "seconds to load a version (default: 0.2)"),
    ("--bad-version", "VERSION", str, "",
     "this version is slower than its policy allows: devices go back"),
    ("--slow-share", "PCT", _share, 100.0, "on this share of the devices (default: 100)"),
)  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
