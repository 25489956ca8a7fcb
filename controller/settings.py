"""Settings of the controller: defaults, then a TOML file, then LIGHTERMAN_* variables, then flags.

Every setting is a row of SETTINGS; an unknown key is an error, never ignored.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from controller.errors import InvalidError
from lighterman.settings import Setting


@dataclass(frozen=True, slots=True)
class Settings:
    """All values, parsed. Port 0 takes a free one; durations in seconds, sizes in bytes."""

    data_dir: Path = Path("lighterman-data")
    database: str = ""
    trust_dir: str = ""
    listen_host: str = "127.0.0.1"
    listen_grpc: int = 7443
    listen_enroll: int = 7444
    listen_mqtt: int = 8883
    listen_web: int = 7080
    advertise: tuple[str, ...] = ()
    broker_address: str = ""
    broker_advertise: str = ""
    broker_reload: str = ""
    metrics_token_file: str = ""
    workers: int = 1
    log: str = "text"
    log_level: str = "info"
    sample_flush_s: float = 2.0
    poll_s: float = 900.0
    presence_grace_s: float = 30.0
    device_certificate_s: float = 2592000.0
    enroll_per_minute: int = 120
    job_memory_bytes: int = 6442450944
    job_time_s: float = 1800.0
    job_lease_s: float = 30.0
    python_entry_points: str = "off"

    def database_url(self) -> str:
        """The database to open: the given one, or SQLite in the data directory."""
        return self.database or f"sqlite:///{self.data_dir.resolve() / 'lighterman.db'}"

    def trust_folder(self) -> Path:
        """Where the certificate authority and the signing key are."""
        return Path(self.trust_dir).expanduser() if self.trust_dir else self.data_dir / "trust"

    def token_file(self) -> Path:
        """Where the bearer token of /metrics is."""
        named = self.metrics_token_file
        return Path(named).expanduser() if named else self.data_dir / "metrics.token"

    def names(self) -> tuple[str, ...]:
        """Host names that agents are told, the first one, and that certificates carry, all."""
        return self.advertise or (self.listen_host,)


def _row(name: str, default: str, unit: str, text: str) -> Setting:
    env = "LIGHTERMAN_" + name.upper().replace(".", "_")
    return Setting(name=name, env=env, default=default, unit=unit, help=text)


SETTINGS: tuple[Setting, ...] = (
    _row("data_dir", "lighterman-data", "path", "Where everything is kept."),
    _row("database", "", "", "SQLAlchemy URL; empty is SQLite in the data directory."),
    _row(
        "trust_dir",
        "",
        "path",
        "Folder of authority.pem and signing.pem, may be read-only; empty is DATA_DIR/trust.",
    ),
    _row(
        "listen.host",
        "127.0.0.1",
        "",
        "Address that all listeners bind to. A port of 0 is a free one, kept over restarts.",
    ),
    _row("listen.grpc", "7443", "", "Port for devices, operators and workers (mutual TLS)."),
    _row("listen.enroll", "7444", "", "Port for enrolment (server TLS)."),
    _row("listen.mqtt", "8883", "", "Port of the message broker (mutual TLS)."),
    _row("listen.web", "7080", "", "Port for /healthz, /readyz and /metrics (HTTPS)."),
    _row(
        "advertise", "", "", "Host names, by comma: agents get the first, certificates carry all."
    ),
    _row(
        "broker.address",
        "",
        "",
        "HOST:PORT of a Mosquitto that runs elsewhere; empty: the controller runs its own.",
    ),
    _row(
        "broker.advertise",
        "",
        "",
        "HOST:PORT of that broker as devices are told; empty is broker.address.",
    ),
    _row(
        "broker.reload",
        "",
        "",
        "Command that has that broker read DATA_DIR/broker again; run there, no shell.",
    ),
    _row(
        "metrics_token_file",
        "",
        "path",
        "File with the bearer token that /metrics asks of callers from other hosts; empty makes "
        "metrics.token in the data directory.",
    ),
    _row("workers", "1", "", "1: run a build worker beside the controller; 0: do not."),
    _row("log", "text", "", "Form of log lines on standard error: text or json."),
    _row("log_level", "info", "", "Least level of log lines: debug, info, warning, error."),
    _row("sample_flush_s", "2", "s", "How often samples in memory are stored."),
    _row("poll_s", "900", "s", "How often agents ask without being rung (jittered)."),
    _row(
        "presence_grace_s", "30", "s", "Silence after a restart until a device counts as offline."
    ),
    _row("device_certificate_s", "2592000", "s", "Life of device certificates, at most 30 days."),
    _row("enroll_per_minute", "120", "", "Enrolments that one address may try in a minute."),
    _row("job_memory_bytes", "6442450944", "bytes", "Memory that one build job may take."),
    _row("job_time_s", "1800", "s", "Time that one build job may take."),
    _row("job_lease_s", "30", "s", "Silence of a worker after which its job is given to another."),
    _row(
        "python_entry_points",
        "off",
        "",
        "on: versions may name a Python function of the build workers that makes their network.",
    ),
)

_CHOICES = {
    "log": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
    "python_entry_points": ("off", "on"),
}
_LEAST = {
    "sample_flush_s": 0.1,
    "poll_s": 1.0,
    "presence_grace_s": 1.0,
    "device_certificate_s": 10.0,
    "enroll_per_minute": 1,
    "job_memory_bytes": 1024**2,
    "job_time_s": 1.0,
    "job_lease_s": 1.0,
}


def load_settings(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]
) -> Settings:
    """Read all sources; `flags` are by dotted name. InvalidError names source and key."""
    settings = Settings()
    if config is not None:
        settings = _apply(settings, _from_toml(config), f"{config}")
    by_env = {row.env: row.name for row in SETTINGS}
    found = {by_env[name]: text for name, text in environ.items() if name in by_env}
    settings = _apply(settings, found, "the environment", {row.name: row.env for row in SETTINGS})
    return _apply(settings, flags, "the command line")


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} is not TOML: {error}") from error
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _apply(
    settings: Settings, values: Mapping[str, Any], source: str, called: Mapping[str, str] = {}
) -> Settings:
    known = {row.name for row in SETTINGS}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise InvalidError(
                f"unknown setting {name!r} in {source}",
                *_meant(name, sorted(known)),
            )
        attribute = name.replace(".", "_")
        changes[attribute] = parse_value(attribute, value, f"{called.get(name, name)} in {source}")
    return replace(settings, **changes)


def _meant(name: str, known: Sequence[str]) -> tuple[str, ...]:
    close = get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]} ?" if close else f"settings are {', '.join(known)}",)


def parse_value(attribute: str, value: Any, where: str) -> Any:
    """The value as its field takes it; text is read, numbers and lists are checked."""
    kind = {field.name: field.type for field in fields(Settings)}[attribute]
    wrong = InvalidError(f"{where} is {value!r}, which cannot be read")
    if isinstance(value, bool):
        raise wrong
    if kind not in (int, float) and not _is_text(attribute, value):
        raise InvalidError(f"{where} is {value!r}, text is needed", "put it in quotes")
    try:
        if attribute == "data_dir":
            return Path(str(value)).expanduser()
        if attribute == "advertise":
            parts = value if isinstance(value, list) else str(value).split(",")
            return tuple(str(part).strip() for part in parts if str(part).strip())
        if kind is int:
            number: float = int(value)
            if number != float(value):
                raise wrong
        elif kind is float:
            number = float(value)
        elif attribute in ("broker_address", "broker_advertise"):
            return _address(str(value), where)
        else:
            # A secret's file or variable often ends with a line end.
            return _choice(attribute, str(value).strip(), where)
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong from error
    least = _LEAST.get(attribute, 0)
    most = 65535 if attribute.startswith("listen_") else 1 if attribute == "workers" else 1e15
    if not least <= number <= most:
        raise InvalidError(f"{where} is {value!r}, {least:g} to {most:g} is allowed")
    return number


def _is_text(attribute: str, value: Any) -> bool:
    """Names of hosts also come as a list."""
    if attribute == "advertise" and isinstance(value, list):
        return all(isinstance(part, str) for part in value)
    return isinstance(value, str)


def _choice(attribute: str, value: str, where: str) -> str:
    allowed = _CHOICES.get(attribute)
    if allowed is not None and value not in allowed:
        raise InvalidError(f"{where} is {value!r}", f"it is one of {', '.join(allowed)}")
    return value


def _address(value: str, where: str) -> str:
    host, _, port = value.rpartition(":")
    good = bool(host) and not set(host) & set("/:@ ") and port.isascii() and port.isdigit()
    if value and not (good and 1 <= int(port) <= 65535):
        raise InvalidError(f"{where} is {value!r}", "it is HOST:PORT")
    return value
