"""Settings of the agent: flag, else environment, else TOML file, else default. Fails closed.

Refuses unknown keys and values that cannot be meant: a typing error must not become a default.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from lighterman.settings import Setting

SETTINGS = (
    Setting(
        "state_dir", "LIGHTERMAN_STATE_DIR", "/var/lib/lighterman-agent", "path",
        "Folder for identity, models, journal and spool; private to the agent.",
    ),
    Setting(
        "serve.grpc", "LIGHTERMAN_SERVE_GRPC", "127.0.0.1:8001", "",
        "Address of the local inference API (Open Inference Protocol v2 over gRPC); port 0 takes a"
        " free one.",
    ),
    Setting(
        "serve.http", "LIGHTERMAN_SERVE_HTTP", "127.0.0.1:8000", "",
        "Address of the same API over HTTP (JSON and binary tensors): the faster road; port 0 takes"
        " a free one, `off` has none. Whoever reaches it may ask: keep it on loopback.",
    ),
    Setting(
        "serve.socket", "LIGHTERMAN_SERVE_SOCKET", "off", "path",
        "A Unix socket for the same HTTP API, or `off`. Who may connect is decided by serve.mode"
        " and by the folder.",
    ),
    Setting(
        "serve.grpc_socket", "LIGHTERMAN_SERVE_GRPC_SOCKET", "off", "path",
        "A Unix socket for gRPC as well, or `off`.",
    ),
    Setting(
        "serve.mode", "LIGHTERMAN_SERVE_MODE", "660", "",
        "Permissions of the Unix sockets, octal.",
    ),
    Setting(
        "serve.shared_memory", "LIGHTERMAN_SERVE_SHARED_MEMORY", "off", "",
        "`on`: clients may register POSIX shared memory for inputs and outputs. It must belong to"
        " the agent's user, or be shared with its group or with everybody.",
    ),
    Setting(
        "serve.batching", "LIGHTERMAN_SERVE_BATCHING", "on", "",
        "`on`: requests that wait are inferred together where that was measured to be quicker;"
        " `off`: each alone.",
    ),
    Setting(
        "serve.metrics", "LIGHTERMAN_SERVE_METRICS", "127.0.0.1:8002", "",
        "Address of /metrics (Prometheus' text format over HTTP); port 0 takes a free one, `off`"
        " has none. What it tells is meant for this device's own network.",
    ),
    Setting(
        "host_root", "LIGHTERMAN_HOST_ROOT", "/", "path",
        "Where /proc, /sys and the device tree are read; another root than / is reported as a"
        " simulated host.",
    ),
    Setting(
        "telemetry_s", "LIGHTERMAN_TELEMETRY_S", "10", "s",
        "Time between two looks at what there is to tell. A device that nobody asks anything leaves"
        " out messages that say nothing new, up to eleven in a row and about 120 s.",
    ),
    Setting(
        "poll_s", "LIGHTERMAN_POLL_S", "900", "s",
        "Longest time between two questions for the desired state, moved by chance; the doorbell"
        " is the fast way.",
    ),
    Setting(
        "spool_bytes", "LIGHTERMAN_SPOOL_BYTES", "16777216", "bytes",
        "Most bytes kept of reports that the controller has not acknowledged.",
    ),
    Setting(
        "hang_s", "LIGHTERMAN_HANG_S", "20", "s",
        "An inference that runs for half as long is called off and counts as failed. One that"
        " cannot be called off hangs: the agent is killed by systemd, or starts anew by itself.",
    ),
    Setting(
        "model_memory_bytes", "LIGHTERMAN_MODEL_MEMORY_BYTES", "0", "bytes",
        "Most memory taken beyond what the agent has when it starts; an inference that wants more"
        " fails instead of the device. 0 means four fifths of the machine's.",
    ),
    Setting(
        "runtime_python", "LIGHTERMAN_RUNTIME_PYTHON", "", "path",
        "Another Python of this device, for runtimes that this one lacks: TensorRT on a Jetson is"
        " bound to /usr/bin/python3. They run in a process of their own there.",
    ),
    Setting(
        "tuning", "LIGHTERMAN_TUNING", "on", "",
        "`on`: the controller may have builds measured here, in a process of its own, while nobody"
        " asks this device anything; `off`: never.",
    ),
    Setting(
        "tuning_idle_s", "LIGHTERMAN_TUNING_IDLE_S", "10", "s",
        "So long nobody may have asked anything before a build is measured. A request ends a"
        " measurement at once; it is tried again later.",
    ),
    Setting(
        "accept_shared_engines", "LIGHTERMAN_ACCEPT_SHARED_ENGINES", "on", "",
        "`on`: what a builder compiled for exactly this kind of device is loaded where the"
        " controller signed it; `off`: this device compiles all for itself.",
    ),
    Setting(
        "log", "LIGHTERMAN_LOG", "text", "",
        "Log lines on stderr: text or json.",
    ),
)  # fmt: skip


# Names of before: the environment's is the controller's own, which is a port and no address.
_RENAMED = {"listen_grpc": "serve.grpc"}
OFF = "off"
_TEXTS = frozenset(
    {
        "state_dir", "serve.grpc", "serve.http", "serve.socket", "serve.grpc_socket",
        "serve.mode",
        "serve.shared_memory", "serve.batching", "serve.metrics",
        "host_root", "log", "runtime_python", "tuning", "accept_shared_engines",
    }
)  # fmt: skip
_OLD_ENV = ("LIGHTERMAN_LISTEN_GRPC", "LIGHTERMAN_SERVE_GRPC")


class SettingsError(AgentError):
    """A setting cannot be used; the message names it and where it came from."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked values; see SETTINGS for what they mean."""

    state_dir: Path = Path("/var/lib/lighterman-agent")
    serve_grpc: str = "127.0.0.1:8001"
    serve_http: str = "127.0.0.1:8000"
    serve_socket: Path | None = None
    serve_grpc_socket: Path | None = None
    serve_mode: int = 0o660
    serve_shared_memory: bool = False
    serve_batching: bool = True
    serve_metrics: str = "127.0.0.1:8002"
    host_root: Path = Path("/")
    telemetry_s: float = 10.0
    poll_s: float = 900.0
    spool_bytes: int = 16 * 1024 * 1024
    hang_s: float = 20.0
    model_memory_bytes: int = 0
    runtime_python: str = ""
    tuning: bool = True
    tuning_idle_s: float = 10.0
    accept_shared_engines: bool = True
    log: str = "text"


def load_settings(
    flags: Mapping[str, str | None],
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read and check all settings. `flags` by setting name, None where not given. SettingsError."""
    environ = os.environ if environ is None else environ
    file = _read_toml(config) if config is not None else {}
    _refuse_old_name(environ)
    values: dict[str, tuple[str, str]] = {}
    for setting in SETTINGS:
        flag = flags.get(setting.name)
        if flag is not None:
            values[setting.name] = (flag, f"--{setting.name.replace('_', '-')}")
        elif environ.get(setting.env):
            values[setting.name] = (environ[setting.env], setting.env)
        elif setting.name in file:
            values[setting.name] = (file[setting.name], f"{setting.name} in {config}")
        else:
            values[setting.name] = (setting.default, "its default")
    return Settings(
        state_dir=Path(values["state_dir"][0]),
        serve_grpc=_address(*values["serve.grpc"]),
        serve_http=_address_or_off(*values["serve.http"]),
        serve_socket=_path_or_off(*values["serve.socket"]),
        serve_grpc_socket=_path_or_off(*values["serve.grpc_socket"]),
        serve_mode=_mode(*values["serve.mode"]),
        serve_shared_memory=_choice(*values["serve.shared_memory"], choices=("on", OFF)) == "on",
        serve_batching=_choice(*values["serve.batching"], choices=("on", OFF)) == "on",
        serve_metrics=_address_or_off(*values["serve.metrics"]),
        host_root=Path(values["host_root"][0]),
        telemetry_s=_number(*values["telemetry_s"], least=0.05, most=86400.0),
        poll_s=_number(*values["poll_s"], least=0.05, most=86400.0),
        spool_bytes=int(_number(*values["spool_bytes"], least=64 * 1024.0, most=float(1 << 40))),
        model_memory_bytes=_memory(*values["model_memory_bytes"]),
        runtime_python=_program(*values["runtime_python"]),
        hang_s=_number(*values["hang_s"], least=0.1, most=86400.0),
        tuning=_choice(*values["tuning"], choices=("on", OFF)) == "on",
        tuning_idle_s=_number(*values["tuning_idle_s"], least=0.1, most=86400.0),
        accept_shared_engines=_choice(*values["accept_shared_engines"], choices=("on", OFF))
        == "on",
        log=_choice(*values["log"], choices=("text", "json")),
    )


def _memory(text: str, where: str) -> int:
    """0, or at least what a small model and its arena take."""
    most = float(1 << 50)
    asked = int(_number(text, where, least=0.0, most=most))
    return asked and int(_number(text, where, least=16 * 1024 * 1024.0, most=most))


def _read_toml(path: Path) -> dict[str, str]:
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    known = {setting.name for setting in SETTINGS}
    found: dict[str, str] = {}
    for key, value in _flat(parsed):
        if key in _RENAMED:
            raise SettingsError(
                f"{path}: setting {key!r} has another name now",
                f"write {_RENAMED[key]}, or the table [serve] with grpc = {str(value)!r}",
            )
        if key not in known:
            close = get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean {close[0]} ?" if close else f"known: {', '.join(sorted(known))}"
            raise SettingsError(f"{path}: setting {key!r} is unknown", hint)
        if isinstance(value, dict | list | bool):
            raise SettingsError(f"{path}: {key} is {value!r}, a text or a number is needed")
        if key in _TEXTS and not isinstance(value, str):
            raise SettingsError(f"{path}: {key} is {value!r}, a text is needed", "put it in quotes")
        found[key] = str(value)
    return found


def _flat(parsed: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tables as dotted names: `[serve] grpc` is `serve.grpc`."""
    for key, value in parsed.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", found) for inner, found in value.items())
        else:
            yield key, value


def _refuse_old_name(environ: Mapping[str, str]) -> None:
    old, new = _OLD_ENV
    value = environ.get(old, "")
    if ":" in value:
        raise SettingsError(
            f"{old}={value} names an address, but it is the controller's port",
            f"the agent's address of inference is {new}={value}",
        )


def _number(text: str, source: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{source}: {text!r} is not a number") from None
    if not least <= value <= most:
        raise SettingsError(f"{source}: {text} is not between {least:g} and {most:g}")
    return value


def _address(text: str, source: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(f"{source}: {text!r} is not HOST:PORT")
    return text


def _address_or_off(text: str, source: str) -> str:
    return text if text == OFF else _address(text, source)


def _path_or_off(text: str, source: str) -> Path | None:
    if text == OFF:
        return None
    if not text.startswith("/"):
        raise SettingsError(f"{source}: {text!r} is neither an absolute path nor {OFF}")
    return Path(text)


def _program(text: str, source: str) -> str:
    if text and not (text.startswith("/") and os.access(text, os.X_OK)):
        raise SettingsError(f"{source}: {text!r} is no absolute path of a program")
    return text


def _mode(text: str, source: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and set(text) <= set("01234567")):
        raise SettingsError(f"{source}: {text!r} are no octal permissions", "for example 660")
    mode = int(text, 8)
    if mode > 0o777:
        raise SettingsError(f"{source}: {text} has more than read, write and execute")
    return mode


def _choice(text: str, source: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise SettingsError(f"{source}: {text!r} is none of {', '.join(choices)}")
    return text
