"""``fleetctl apply``: documented objects from YAML, with a diff. Checks nothing but form."""

import json
import math
from pathlib import Path

import click
import yaml

from controller.cli.problem import CliError
from controller.cli.session import Session, common
from lighterman.v1 import fleet_pb2

KINDS = ("Profile", "Policy")


def read_objects(path: Path) -> list[fleet_pb2.Object]:
    """Objects of a file, or of every .yaml and .yml file of a folder."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        if not files:
            raise CliError(f"{path} holds no .yaml file")
    else:
        files = [path]
    return [item for file in files for item in _read(file)]


def _read(path: Path) -> list[fleet_pb2.Object]:
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CliError(f"{path} is not YAML\n{error}") from None
    objects = []
    for number, document in enumerate(documents, start=1):
        if document is None:
            continue
        where = f"{path}, document {number}"
        if not isinstance(document, dict):
            raise CliError(
                f"{where}: expected kind, name and spec, found {type(document).__name__}"
            )
        unknown = set(document) - {"kind", "name", "spec"}
        if unknown or set(document) != {"kind", "name", "spec"}:
            found = ", ".join(sorted(map(str, document)))
            raise CliError(
                f"{where}: expected exactly kind, name and spec, found {found or 'nothing'}"
            )
        if document["kind"] not in KINDS:
            raise CliError(
                f"{where}: unknown kind {document['kind']!r}\nknown kinds: {', '.join(KINDS)}"
            )
        try:
            spec = json.dumps(document["spec"], allow_nan=False)
        except (TypeError, ValueError):
            raise CliError(f"{where}: {_unfit(document['spec'], 'spec')}") from None
        objects.append(
            fleet_pb2.Object(kind=document["kind"], name=str(document["name"]), spec_json=spec)
        )
    if not objects:
        raise CliError(f"{path} holds no object")
    return objects


def _unfit(value: object, path: str) -> str:
    """Which key holds what JSON cannot; the first one, empty where all is well."""
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            return f"{path} has the key {odd}, which is no text; put it in quotes"
        return next(filter(None, (_unfit(one, f"{path}.{key}") for key, one in value.items())), "")
    if isinstance(value, list):
        return next(
            filter(None, (_unfit(one, f"{path}[{number}]") for number, one in enumerate(value))), ""
        )
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, which is no number"
    if value is None or isinstance(value, str | int | float):
        return ""
    return f"{path} is of the YAML type {type(value).__name__}; put it in quotes to make it text"


@click.command()
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE|DIR",
    help="YAML with one or more objects.",
)
@click.option("--dry-run", is_flag=True, help="Show the difference, change nothing.")
@common
def apply(session: Session, path: Path, dry_run: bool) -> None:
    """Create or change profiles and policies from YAML; the same file twice changes nothing."""
    objects = read_objects(path)
    answer = session.stub.Apply(
        fleet_pb2.ApplyRequest(objects=objects, dry_run=dry_run), timeout=60
    )
    results = list(answer.results)

    def render() -> None:
        for item in results:
            tail = " (dry run)" if dry_run and item.change != "unchanged" else ""
            session.say(f"{item.kind} {item.name}  {item.change}{tail}")
            for line in item.diff:
                session.say(f"  {line}")
            for note in item.notes:
                session.say(f"  note: {note}")

    session.show_list(
        "apply_result", results, lambda item: f"{item.kind}/{item.name}", render, "nothing to apply"
    )
