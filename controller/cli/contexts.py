"""Operator contexts: which controller, as whom. Files with a key, readable by their owner alone."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.cli.problem import CliError

SCHEMA = 1
_FIELDS = ("name", "controller", "project", "ca_pem", "certificate_pem", "key_pem")


@dataclass(frozen=True, slots=True)
class OperatorContext:
    """What one context file says. ``controller`` is host:port, the three others are PEM texts."""

    name: str
    controller: str
    project: str
    ca_pem: str
    certificate_pem: str
    key_pem: str


def config_dir() -> Path:
    """Folder of contexts: LIGHTERMAN_CONFIG_DIR or ~/.config/lighterman."""
    set_dir = os.environ.get("LIGHTERMAN_CONFIG_DIR")
    return Path(set_dir) if set_dir else Path.home() / ".config" / "lighterman"


def read_file(path: Path) -> OperatorContext:
    """Parse a context file. Raises CliError where it is missing or not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CliError(f"context file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CliError(
            f"context file {path} is not JSON\nget a new one from the controller's host:"
            " lighterman-controller operator issue NAME --out FILE"
        ) from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise CliError(f"context file {path} has another schema than {SCHEMA}")
    missing = [name for name in _FIELDS if not isinstance(raw.get(name), str)]
    if missing:
        raise CliError(f"context file {path} lacks {', '.join(missing)}")
    return OperatorContext(**{name: raw[name] for name in _FIELDS})


def names() -> list[str]:
    """Names of the registered contexts."""
    folder = config_dir() / "contexts"
    return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []


def current_name() -> str | None:
    """Name of the current context, or None."""
    try:
        return (config_dir() / "current").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def load(chosen: str | None) -> OperatorContext:
    """The chosen context (a name or a file), else LIGHTERMAN_CONTEXT, else the current one."""
    chosen = chosen or os.environ.get("LIGHTERMAN_CONTEXT") or current_name()
    if not chosen:
        raise CliError(
            "no context: fleetctl does not know which controller to ask\non the controller's host"
            " `lighterman-controller serve` writes one by itself;\nelsewhere: fleetctl admin"
            " context add FILE  (a file from lighterman-controller operator issue)"
        )
    registered = config_dir() / "contexts" / f"{chosen}.json"
    if registered.is_file():
        return read_file(registered)
    if "/" in chosen or Path(chosen).is_file():
        return read_file(Path(chosen))
    known = ", ".join(names()) or "none"
    raise CliError(f"no context {chosen!r}\nknown: {known}; a path to a context file works too")


def use(name: str) -> None:
    """Make a registered context the current one."""
    if name not in names():
        raise CliError(f"no context {name!r}\nknown: {', '.join(names()) or 'none'}")
    _write(config_dir() / "current", name + "\n")


def add(path: Path, name: str | None) -> OperatorContext:
    """Register a context file under its own or another name; the first one becomes current."""
    context = read_file(path)
    name = name or context.name
    if not name or "/" in name or name.startswith("."):
        raise CliError(f"{name!r} cannot name a context: letters, digits, dash and dot only")
    document = {"schema": SCHEMA, **asdict(context), "name": name}
    _write(config_dir() / "contexts" / f"{name}.json", json.dumps(document, indent=2) + "\n")
    if current_name() is None:
        use(name)
    return read_file(config_dir() / "contexts" / f"{name}.json")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)
