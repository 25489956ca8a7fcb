"""What the running agent writes down for `lighterman-agent status`, and how it is read again.

A small file, rewritten only when something changed. Refuses to be a record: it is neither synced
nor believed beyond the life of the process that wrote it.
"""

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

FILE = "status.json"
SCHEMA_VERSION = 1


@dataclass(slots=True)
class Facts:
    """Everything `status` shows of a running agent. Times are ISO 8601, unknown ones empty."""

    schema_version: int = SCHEMA_VERSION
    pid: int = 0
    agent_version: str = ""
    boot_id: str = ""
    started_at: str = ""
    device_id: str = ""
    project: str = ""
    profile: str = ""
    pending: bool = False
    listen_grpc: str = ""
    listen_http: str = ""
    listen_metrics: str = ""
    controller: str = ""
    controller_state: str = "not connected yet"
    controller_at: str = ""
    controller_seen_at: str = ""
    controller_hint: str = ""
    controller_fault: str = ""
    broker_state: str = "not connected yet"
    broker_at: str = ""
    desired_generation: int = 0
    applied_generation: int = 0
    unacknowledged: int = 0
    models: list[dict[str, Any]] = field(default_factory=list)
    compiling: list[dict[str, Any]] = field(default_factory=list)


class StatusBoard:
    """Holds the facts of this process; `update` writes when one of them is new."""

    def __init__(self, state_dir: Path, facts: Facts) -> None:
        self._path = state_dir / FILE
        self._lock = threading.Lock()
        self._facts = facts
        self._written = ""

    def update(self, **changes: object) -> None:
        """Take over what is new and write it. A full disk is no reason to complain here."""
        with self._lock:
            for key, value in changes.items():
                setattr(self._facts, key, value)
            text = json.dumps(asdict(self._facts), sort_keys=True, ensure_ascii=False)
            if text == self._written:
                return
            temporary = self._path.with_suffix(".tmp")
            with contextlib.suppress(OSError):
                temporary.write_text(text + "\n", encoding="utf-8")
                os.replace(temporary, self._path)
                self._written = text

    def remove(self) -> None:
        """The agent ends: nobody is to take the file for a running one."""
        with self._lock, contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_facts(state_dir: Path) -> Facts | None:
    """What the last agent wrote; None where there is nothing readable."""
    try:
        body = json.loads((state_dir / FILE).read_text(encoding="utf-8"))
        known = Facts.__dataclass_fields__
        return Facts(**{key: value for key, value in body.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def is_running(facts: Facts) -> bool:
    """Whether the process that wrote the facts still lives."""
    try:
        command = Path(f"/proc/{facts.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"agent" in command


def show(facts: Facts, now: datetime) -> list[str]:
    """The facts as lines for people."""
    lines = [
        f"{facts.device_id}   {facts.profile or 'no profile yet'}   project {facts.project}"
        + ("   waiting to be accepted" if facts.pending else ""),
        f"serves     {facts.listen_grpc} gRPC   {facts.listen_http or 'no'} HTTP"
        f"   since {_ago(facts.started_at, now)}"
        f"   agent {facts.agent_version}",
        f"controller {facts.controller}   {facts.controller_state}"
        f" since {_ago(facts.controller_at, now)}"
        f"   last answer {_ago(facts.controller_seen_at, now)} ago",
        *([f"           {facts.controller_hint}"] if facts.controller_hint else []),
        f"broker     {facts.broker_state} since {_ago(facts.broker_at, now)}",
        f"generation {facts.applied_generation} applied of {facts.desired_generation} desired"
        f"   reports not acknowledged {facts.unacknowledged}",
    ]
    for model in facts.models:
        lines.append(
            f"runs       {model['model']}:{model['version'] or '–'} {model['rung'] or '–'}"
            f"   {model['phase']}   can return to {model['previous'] or '–'}"
        )
        for reason in (model["reason"], model["rung_reason"], *model.get("remarks", ())):
            if reason:
                lines.append(f"           {reason}")
    for one in facts.compiling:
        lines.append(
            f"compiles   {str(one['digest'])[:19]}…   {one['phase']} {one['share_pct']:.0f} %"
            "   what runs goes on"
        )
    if not facts.models:
        lines.append("runs       nothing yet: no rollout reached this device")
    return lines


def _ago(text: str, now: datetime) -> str:
    try:
        seconds = int((now - datetime.fromisoformat(text)).total_seconds())
    except ValueError:
        return "–"
    if seconds < 120:
        return f"{max(seconds, 0)} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h"
