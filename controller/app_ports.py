"""Ports that were left to chance stay the same over restarts: agents know them by heart.

A port 0 takes what `endpoints.json` of the data directory names, if it is free within a moment.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from controller.errors import UnavailableError
from controller.mqtt.broker import check_port_free
from controller.settings import Settings

ENDPOINTS = "endpoints.json"
WAIT_S = 3.0  # a broker of the run before may hold its port that long
STEP_S = 0.1


def keep_ports(settings: Settings, wait_s: float = WAIT_S) -> Settings:
    """The settings with each port 0 replaced by the one of the run before, where it is free."""
    before = _ports_before(settings.data_dir)
    chosen = {}
    for name, port in before.items():
        setting = f"listen_{name}"
        if getattr(settings, setting) == 0 and _gets_free(settings.listen_host, port, wait_s):
            chosen[setting] = port
    return replace(settings, **chosen)  # type: ignore[arg-type]


def _ports_before(data_dir: Path) -> dict[str, int]:
    try:
        told = json.loads((data_dir / ENDPOINTS).read_bytes())
        ports = {
            name: int(str(told[name]).rpartition(":")[2])
            for name in ("grpc", "enroll", "mqtt", "web")
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: port for name, port in ports.items() if 0 < port < 65536}


def _gets_free(host: str, port: int, wait_s: float) -> bool:
    for _ in range(max(1, round(wait_s / STEP_S))):
        try:
            check_port_free(host, port, "a listener")
        except UnavailableError:
            time.sleep(STEP_S)
        else:
            return True
    return False
