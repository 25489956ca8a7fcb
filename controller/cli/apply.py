"""``fleetctl apply``: documented objects from YAML, with a diff. Checks nothing but form."""

import json
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import yaml

from controller.cli.problem import CliError
from controller.cli.session import Session, common
from lighterman.v1 import fleet_pb2

KINDS = ("Recipe", "Profile", "Group", "Policy")
FILE_BYTES = 1_000_000  # a profile has some hundred
TOTAL_BYTES = 4_000_000


def read_objects(path: Path) -> list[fleet_pb2.Object]:
    """Objects of a file, or of every .yaml and .yml file of a folder; of a bad one none at all."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        if not files:
            raise CliError(f"{path} holds no .yaml file")
    else:
        files = [path]
    objects = [item for file in files for item in _read(file)]
    size = sum(item.ByteSize() for item in objects)
    if size > TOTAL_BYTES:
        raise CliError(
            f"{path} holds {size / 1e6:.1f} MB of objects, {TOTAL_BYTES / 1e6:.1f} MB at most go "
            "into one apply\nnothing was applied; apply its files one by one"
        )
    return objects


class _Loader(yaml.SafeLoader):
    """YAML without what makes a small file huge or loses a value without a word."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As its base, but no alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None,
                None,
                f"the alias *{event.anchor} is not taken: write it out",
                event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As its base, but no key twice: only the last value would count."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> list[Any]:
    """The documents of a YAML file; CliError says what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES:
        raise CliError(
            f"{path} is larger than {FILE_BYTES / 1e6:.1f} MB, so it holds no objects of ours\n"
            "models and datasets are pushed: fleetctl model push, fleetctl admin dataset push"
        )
    try:
        return list(yaml.load_all(data.decode("utf-8"), Loader=_Loader))
    except UnicodeDecodeError as error:
        raise CliError(
            f"{path} is no UTF-8 text: byte 0x{data[error.start]:02x} at {error.start}\n"
            "save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise CliError(f"{path} is not YAML\n{error}") from None
    except ValueError as error:  # a date that no calendar has, a number without end
        raise CliError(
            f"{path} holds a value that cannot be read: {error}\nput it in quotes to make it text"
        ) from None
    except RecursionError:
        raise CliError(f"{path} is nested too deeply to be read") from None


def _read(path: Path) -> list[fleet_pb2.Object]:
    objects = []
    for number, document in enumerate(load_yaml(path), start=1):
        if document is not None:
            objects.append(_object(document, f"{path}, document {number}"))
    if not objects:
        raise CliError(f"{path} holds no object")
    return objects


def _object(document: object, where: str) -> fleet_pb2.Object:
    if not isinstance(document, dict):
        raise CliError(f"{where}: expected kind, name and spec, found {type(document).__name__}")
    if set(document) != {"kind", "name", "spec"}:
        found = ", ".join(sorted(map(str, document)))
        raise CliError(f"{where}: expected exactly kind, name and spec, found {found or 'nothing'}")
    kind, name = document["kind"], document["name"]
    if kind not in KINDS:
        close = get_close_matches(str(kind).capitalize(), KINDS, n=1)
        hint = f"did you mean {close[0]} ?" if close else f"known kinds: {', '.join(KINDS)}"
        raise CliError(f"{where}: unknown kind {kind!r}\n{hint}")
    if not isinstance(name, str):
        raise CliError(f"{where}: name is {name!r}, which is no text; put it in quotes")
    if not isinstance(document["spec"], dict):
        raise CliError(f"{where}: spec is {document['spec']!r}, expected keys and values")
    try:
        spec = json.dumps(document["spec"], allow_nan=False)
    except (TypeError, ValueError):
        raise CliError(f"{where}: {unfit(document['spec'], 'spec')}") from None
    except RecursionError:
        raise CliError(f"{where}: spec is nested too deeply") from None
    return fleet_pb2.Object(kind=kind, name=name, spec_json=spec)


def unfit(value: object, path: str) -> str:
    """Which key holds what JSON cannot; the first one, empty where all is well."""
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            return f"{path} has the key {odd}, which is no text; put it in quotes"
        return next(filter(None, (unfit(one, f"{path}.{key}") for key, one in value.items())), "")
    if isinstance(value, list):
        return next(
            filter(None, (unfit(one, f"{path}[{number}]") for number, one in enumerate(value))), ""
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
