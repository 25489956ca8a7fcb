"""`lighterman-controller serve | migrate | worker | operator`. Parses, prints, and nothing else."""

import argparse
import errno
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighterman.extras import require_extra
from lighterman.output import announce, with_output
from lighterman.quiet import quiet_grpc
from lighterman.settings import slips

if TYPE_CHECKING:
    from controller.settings import Settings


def build_parser() -> argparse.ArgumentParser:
    """The command line, for parsing and for the documentation."""
    parser = argparse.ArgumentParser(
        prog="lighterman-controller",
        description="Brings models to a fleet of devices, a wave at a time.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the controller")
    _add_settings(serve)
    serve.add_argument("--log", choices=("text", "json"), help="form of log lines")
    serve.add_argument("--no-context", action="store_true", help="do not register the context")
    migrate = commands.add_parser("migrate", help="bring the database to the newest schema")
    _add_settings(migrate)
    worker = commands.add_parser("worker", help="run a build worker")
    worker.add_argument("--controller", required=True, metavar="HOST:PORT", help="its grpc port")
    worker.add_argument(
        "--identity", required=True, type=Path, metavar="FILE", help="context of the role worker"
    )
    worker.add_argument("--log", choices=("text", "json"), default="text", help="form of log lines")
    worker.add_argument(
        "--end-with-stdin", action="store_true", help="end when standard input is closed"
    )
    operator = commands.add_parser("operator", help="certificates of people and programs")
    verbs = operator.add_subparsers(dest="verb", required=True, metavar="VERB")
    issue = verbs.add_parser("issue", help="issue a certificate, also beside a running controller")
    issue.add_argument("name", metavar="NAME", help="a to z, 0 to 9 and -; unique across all roles")
    issue.add_argument(
        "--role", choices=("operator", "consumer", "worker"), default="operator", help="what it may"
    )
    issue.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE|DIR",
        help="DIR for consumers, else FILE (- is standard output)",
    )
    issue.add_argument(
        "--again", action="store_true", help="also where the name has one, or was revoked"
    )
    _add_settings(issue)
    listing = verbs.add_parser("list", help="who holds certificates, until when, who was revoked")
    _add_settings(listing)
    revoke = verbs.add_parser(
        "revoke", help="end all certificates of a name and its sessions, also beside a controller"
    )
    revoke.add_argument("name", metavar="NAME", help="an operator, consumer or worker")
    revoke.add_argument("--reason", default="", metavar="TEXT", help="why; kept as an event")
    _add_settings(revoke)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML")
    parser.add_argument("--data-dir", metavar="DIR", help="where everything is kept")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting, for example listen.grpc=17443",
    )


# What whoever runs the host must put right; a traceback would not help them.
_OF_THE_HOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return with_output(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    quiet_grpc()
    if options.command == "worker":
        # The controller starts its own worker by `python -m`, which has no name to show.
        modules = ("grpc", "onnxruntime", "numpy")
        require_extra("controller,optimize", *modules, command="lighterman-controller worker")
    else:
        require_extra("controller", "sqlalchemy", "alembic", "grpc", "paho.mqtt", "cryptography")
    from controller.errors import LightermanError

    try:
        return _COMMANDS[options.command](options)
    except LightermanError as error:
        print(f"error: {error.message}", file=sys.stderr)
        for line in error.lines:
            print(f"  {line}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _OF_THE_HOST:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}", file=sys.stderr)
        print("  make room there, or let the user of this process write there", file=sys.stderr)
        return 1


def _settings(options: argparse.Namespace) -> "Settings":
    from controller.errors import InvalidError
    from controller.settings import SETTINGS, load_settings

    for line in slips(os.environ, SETTINGS):
        print(f"warning: {line}", file=sys.stderr)
    flags: dict[str, str] = {}
    for pair in options.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidError(f"--set {pair!r} is not NAME=VALUE")
        flags[name] = value
    if options.data_dir is not None:
        flags["data_dir"] = options.data_dir
    if getattr(options, "log", None):
        flags["log"] = options.log
    return load_settings(options.config, os.environ, flags)


def _serve(options: argparse.Namespace) -> int:
    from controller.app import Controller
    from controller.app_log import set_up_log

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    settings = _settings(options)
    set_up_log(settings.log, settings.log_level)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one file per connection
    controller = Controller(settings, contexts=not options.no_context)
    listening = controller.start()
    try:
        # In one write: between two, a line of the log could get into a line of ours.
        announce("\n".join((*listening.lines(), "ready", "")))
        while not stopping.wait(1.0):
            pass
    finally:
        controller.stop()
    return 0


def _migrate(options: argparse.Namespace) -> int:
    from controller.app_database import migrate_database

    print(migrate_database(_settings(options)))
    return 0


def _operator(options: argparse.Namespace) -> int:
    from controller.app_database import issue_beside, list_beside, revoke_beside

    settings, told = _settings(options), sys.stdout
    if options.verb == "list":
        lines = list_beside(settings)
    elif options.verb == "revoke":
        lines = revoke_beside(settings, options.name, options.reason)
    else:
        lines = issue_beside(settings, options.name, options.role, options.out, again=options.again)
        told = sys.stderr if str(options.out) == "-" else sys.stdout
    for line in lines:
        print(line, file=told)
    return 0


def _worker(options: argparse.Namespace) -> int:
    from controller.app_log import set_up_log
    from controller.worker.app import run_worker

    set_up_log(options.log, "info")
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    return run_worker(options.controller, options.identity)


def _end_with_stdin() -> None:
    """Ask our own process to end once whoever started it is gone."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


_COMMANDS = {"serve": _serve, "migrate": _migrate, "worker": _worker, "operator": _operator}


if __name__ == "__main__":
    raise SystemExit(main())
