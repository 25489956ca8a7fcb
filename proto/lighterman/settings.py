"""The shape of a documented setting, for both sides. Reads no file and no environment."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

PREFIX = "LIGHTERMAN_"
# Of both sides and the command line: what one of them does not read is no slip if another does.
NAMES = frozenset(
    PREFIX + name
    for name in (
        "ACCEPT_SHARED_ENGINES", "ADVERTISE", "BROKER_ADDRESS", "BROKER_ADVERTISE", "BROKER_RELOAD",
        "CONFIG_DIR", "CONTEXT",
        "DATABASE", "DATA_DIR", "DEVICE_CERTIFICATE_S", "ENROLL_PER_MINUTE", "HANG_S", "HOST_ROOT",
        "JOB_LEASE_S", "JOB_MEMORY_BYTES", "JOB_TIME_S", "LISTEN_ENROLL", "LISTEN_GRPC",
        "LISTEN_HOST", "LISTEN_MQTT", "LISTEN_WEB", "LOG", "LOG_LEVEL", "METRICS_TOKEN_FILE",
        "MODEL_MEMORY_BYTES", "POLL_S", "PRESENCE_GRACE_S", "PYTHON_ENTRY_POINTS",
        "RUNTIME_PYTHON", "SAMPLE_FLUSH_S", "SERVE_BATCHING", "SERVE_GRPC", "SERVE_GRPC_SOCKET",
        "SERVE_HTTP", "SERVE_METRICS", "SERVE_MODE", "SERVE_SHARED_MEMORY",
        "SERVE_SOCKET", "SPOOL_BYTES", "STATE_DIR", "TELEMETRY_S", "TRUST_DIR",
        "TUNING", "TUNING_IDLE_S", "WORKERS",
    )
)  # fmt: skip
# Names that are less alike are somebody else's: Kubernetes sets some for a service of our name.
_ALIKE = 0.75


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of docs/reference/settings.md.

    `name` is the dotted TOML key ("listen.grpc" in TOML, `listen_grpc` in code), `env` the
    environment variable (`LIGHTERMAN_…`), `default` what holds without either, as the user would
    write it; `unit` is empty for a plain text or number, else "s", "bytes", "ms", "path" …
    """

    name: str
    env: str
    default: str
    unit: str
    help: str


def slips(environ: Iterable[str], settings: Iterable[Setting]) -> list[str]:
    """A line for each variable that nobody reads and that is nearly the name of a setting."""
    known = [setting.env.removeprefix(PREFIX) for setting in settings]
    found = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in NAMES:
            near = get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=_ALIKE)
            found += [
                f"{name} is not read by anybody: did you mean {PREFIX}{one} ?" for one in near
            ]
    return found
