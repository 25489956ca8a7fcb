"""The shape of a documented setting, for both sides. Reads no file and no environment."""

from dataclasses import dataclass


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
