"""The command tree of fleetctl and the one place where errors become text and exit codes."""

import sys
from importlib.metadata import PackageNotFoundError, version

import click
import grpc

from controller.cli.admin import admin
from controller.cli.apply import apply
from controller.cli.builds import build
from controller.cli.devices import device
from controller.cli.events import event
from controller.cli.models import model
from controller.cli.printable import printable
from controller.cli.problem import EXIT_FAILED, EXIT_USAGE, CliError, from_rpc, render
from controller.cli.rollouts import rollout
from controller.cli.session import CLOCK, Session
from controller.cli.status import status
from controller.cli.units import localise
from lighterman.output import cannot_write, drop_output


def _version() -> str:
    try:
        return version("lighterman")
    except PackageNotFoundError:
        return "0+unknown"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--context", "context_name", metavar="NAME|FILE", help="Controller to ask.")
@click.version_option(_version(), prog_name="fleetctl")
@click.pass_context
def fleetctl(ctx: click.Context, context_name: str | None) -> None:
    """Bring models to devices in waves, watch them, bring a bad version back."""
    ctx.obj = Session(context_name)
    ctx.call_on_close(ctx.obj.close)


def _error(problem: CliError) -> str:
    return render(localise(printable(problem.text), CLOCK.now()))


fleetctl.add_command(status)
fleetctl.add_command(model)
fleetctl.add_command(device)
fleetctl.add_command(build)
fleetctl.add_command(rollout)
fleetctl.add_command(event)
fleetctl.add_command(apply)
fleetctl.add_command(admin)


def run(arguments: list[str] | None = None) -> int:
    """Run with these arguments (default: the process's own); returns the exit code."""
    try:
        code = _run(arguments)
        sys.stdout.flush()  # what is still held back may not get out either
        return code
    except BrokenPipeError:
        drop_output()
        return EXIT_FAILED
    except OSError as error:  # standard output on a full disk; what else may fail says so itself
        drop_output()
        click.echo(f"error: {cannot_write(error)}", err=True)
        return EXIT_FAILED


def _run(arguments: list[str] | None) -> int:
    session: Session | None = None
    try:
        with fleetctl.make_context(
            "fleetctl", list(sys.argv[1:] if arguments is None else arguments)
        ) as ctx:
            try:
                result = fleetctl.invoke(ctx)
            finally:
                session = ctx.find_object(Session)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        click.echo("", err=True)
        return 130
    except click.ClickException as usage:
        usage.show()
        return EXIT_USAGE
    except CliError as problem:
        click.echo(_error(problem), err=True)
        return problem.exit_code
    except grpc.RpcError as error:
        known = from_rpc(error, session.controller if session else "the controller")
        click.echo(_error(known), err=True)
        return known.exit_code
    except KeyboardInterrupt:
        return 130
