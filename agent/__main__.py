"""`lighterman-agent`: enrol a device, run it, look at it. The only room of the agent that prints.

Exit codes: 0 done, 1 failed (for `doctor`: something is wrong), 2 usage, 5 the controller does not
answer.
"""

import argparse
import faulthandler
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent.clock import SystemClock
from agent.domain.words import in_line, plain
from agent.errors import AgentError
from agent.settings import SETTINGS, Settings, load_settings
from lighterman.extras import require_extra
from lighterman.output import announce, with_output
from lighterman.quiet import quiet_grpc
from lighterman.settings import slips

if TYPE_CHECKING:
    from agent.link.enrol import Enrolled

EXIT_FAILED = 1
EXIT_UNREACHABLE = 5
# Where the service keeps its settings; read when it is there and no other file is named.
CONFIG = Path("/etc/lighterman/agent.toml")


def build_parser() -> argparse.ArgumentParser:
    """The commands and flags."""
    parser = argparse.ArgumentParser(
        prog="lighterman-agent",
        description="Serves models on this device and brings bad versions back by itself.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--state-dir", metavar="DIR", help="folder of this device's state")
    shared.add_argument(
        "--config", metavar="FILE", type=Path, help=f"settings in TOML; {CONFIG} where it exists"
    )

    text = "Trade a one-time token for this device's certificate."
    enroll = commands.add_parser("enroll", parents=[shared], help=text, description=text)
    enroll.add_argument(
        "--controller", metavar="URL", required=True, help="https://HOST:7444 of the controller"
    )
    enroll.add_argument(
        "--token", metavar="TOKEN", required=True, help="from `fleetctl admin token create`"
    )
    enroll.add_argument(
        "--device-id",
        metavar="ID",
        type=_not_empty,
        help="1 to 63 of a-z, 0-9, -; else one is given",
    )

    text = "Serve models and follow the controller until SIGTERM."
    run = commands.add_parser("run", parents=[shared], help=text, description=text)
    run.add_argument("--log", choices=("text", "json"), help="form of the log lines on stderr")

    text = "Show what runs here, and whether it is connected."
    status = commands.add_parser("status", parents=[shared], help=text, description=text)
    status.add_argument(
        "--output", "-o", choices=("table", "json"), default="table", help="form of the answer"
    )

    text = "Say what is wrong with this device and what to do; exit code 1 when something is."
    commands.add_parser("doctor", parents=[shared], help=text, description=text)

    text = "Print the systemd unit for this installation."
    commands.add_parser("service-file", help=text, description=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return with_output(lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    options = build_parser().parse_args(argv)
    if options.command == "service-file":
        print(service_file(Path(sys.argv[0])), end="")
        return 0
    quiet_grpc()
    config = options.config or (CONFIG if CONFIG.exists() else None)
    for line in slips(os.environ, SETTINGS):
        print(f"warning: {line}", file=sys.stderr)
    try:
        settings = load_settings(
            {"state_dir": options.state_dir, "log": getattr(options, "log", None)}, config
        )
        match options.command:
            case "enroll":
                return _enroll(settings, options)
            case "run":
                return _run(settings)
            case "status":
                return _status(settings, options.output)
            case _:
                return _doctor(settings)
    except AgentError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return EXIT_UNREACHABLE if getattr(error, "retryable", False) else EXIT_FAILED


def _not_empty(text: str) -> str:
    """A variable that was never set must not use a token up for a name of chance."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; leave the option out and a name is given")
    return text


def service_file(command: Path) -> str:
    """The unit, with `command` (this program as it was called) as what it starts."""
    shipped = Path(__file__).with_name("systemd") / "lighterman-agent.service"
    path = os.path.abspath(command)
    return shipped.read_text(encoding="utf-8").replace("/opt/lighterman/bin/lighterman-agent", path)


def _enroll(settings: Settings, options: argparse.Namespace) -> int:
    require_extra("agent", "grpc", "google.protobuf", "cryptography")
    from agent.host.capabilities import detect
    from agent.host.hardware import hardware_id
    from agent.link.enrol import Enrolment, enrol
    from agent.process import only_one
    from agent.store.identity import FileIdentityStore

    with only_one(settings.state_dir):
        done = enrol(
            Enrolment(
                url=options.controller,
                token=options.token,
                device_id=options.device_id or "",
                hardware_id=hardware_id(settings.host_root),
                capabilities=detect(settings.host_root, settings.state_dir),
            ),
            FileIdentityStore(settings.state_dir / "identity"),
            threading.Event().wait,
        )
    _tell_enrolled(done, settings)
    return 0


def _tell_enrolled(done: "Enrolled", settings: Settings) -> None:
    who = done.identity
    print(f"enrolled {who.device_id} at {who.grpc_endpoint}, project {who.project}")
    if done.pending:
        print(f"  an operator has to accept it: fleetctl device accept {who.device_id}")
    print(f"  start it: lighterman-agent run --state-dir {settings.state_dir}")


def _run(settings: Settings) -> int:
    require_extra(
        "agent", "grpc", "google.protobuf", "paho.mqtt", "cryptography", "uvloop", "httptools"
    )
    from agent.app import Agent, HungError
    from agent.app_log import set_up_log
    from agent.process import only_one, start_anew, tune_memory

    tune_memory()
    set_up_log(settings.log)
    # A watchdog ends this process by SIGABRT: where every thread stood tells what hung.
    faulthandler.enable()
    with only_one(settings.state_dir):
        agent = Agent(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        try:
            agent.run(_tell_ready)
        except HungError:
            start_anew()
    return 0


def _tell_ready(address: str) -> None:
    # In one write: between two, a line of the log could get into a line of ours.
    announce(f"inference  grpc://{address}  (Open Inference Protocol v2)\nready\n")


def _status(settings: Settings, output: str) -> int:
    from agent.doctor_serve import ask_grpc
    from agent.status import is_running, read_facts, show

    facts = read_facts(settings.state_dir)
    running = facts is not None and is_running(facts)
    live = facts is not None and running and ask_grpc(facts.listen_grpc) is None
    if output == "json":
        body = {"running": running, "answers": live, **(asdict(facts) if facts else {})}
        print(json.dumps({"schema_version": 1, **body}, sort_keys=True))
    elif facts is None or not running:
        print(f"no agent runs on {settings.state_dir}", file=sys.stderr)
        print("  start it: lighterman-agent run; what is wrong: lighterman-agent doctor",
              file=sys.stderr)  # fmt: skip
    else:
        for line in show(facts, SystemClock().now()):
            print(in_line(line))
        if not live:
            print(f"the inference API on {facts.listen_grpc} does not answer")
    return 0 if live else EXIT_FAILED


def _doctor(settings: Settings) -> int:
    from agent.doctor import examine, show
    from agent.finding import Verdict

    findings = examine(settings, SystemClock().now())
    for line in show(findings):
        print(in_line(line))
    return EXIT_FAILED if any(f.verdict is Verdict.PROBLEM for f in findings) else 0


if __name__ == "__main__":
    raise SystemExit(main())
