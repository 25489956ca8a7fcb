"""`lighterman-agent doctor`: what is wrong with this device, and what to do about it.

Refuses to disturb a running agent: it asks the controller one question and changes nothing there.
"""

import os
from datetime import datetime
from pathlib import Path

from agent.doctor_road import Traveller, look_at_broker, look_at_controller
from agent.doctor_serve import ask_grpc, look_at_http
from agent.domain.ports import Identity
from agent.errors import AgentError, IdentityError
from agent.finding import Finding, Verdict
from agent.host.capabilities import absent_runtimes, installed_runtimes, runnable
from agent.host.clockquality import is_synchronized
from agent.host.other_python import OtherPython
from agent.host.sensors import disk_free_bytes, memory_available_bytes, temperature_c, thermal_zones
from agent.link.errors import LinkFault
from agent.link.keys import read_certificate
from agent.process import BusyError, only_one
from agent.runtime.hosting import plain_runtimes
from agent.settings import Settings
from agent.status import Facts, is_running, read_facts
from agent.store.identity import FileIdentityStore
from agent.store.journal import FileJournal

SPARE_BYTES = 256 * 1024 * 1024


def examine(settings: Settings, now: datetime) -> list[Finding]:
    """Look at everything, cheapest first. Never raises for what it finds."""
    found = [_state_dir(settings.state_dir)]
    if found[0].verdict is Verdict.PROBLEM:
        return found
    found.append(_disk(settings.state_dir))
    identity, said = _identity(settings.state_dir)
    found.append(said)
    if identity is not None:
        who = Traveller(identity, settings.state_dir, now)
        found.append(_certificate(who))
        found.append(look_at_controller(who))
        found.append(look_at_broker(who))
    found.append(_clock())
    found.append(_runtimes(settings.runtime_python))
    found.append(_heat(settings.host_root))
    found.append(_memory(settings.host_root))
    found += _running(settings)
    return found


def _state_dir(state_dir: Path) -> Finding:
    what = "state"
    if not state_dir.is_dir():
        return Finding(
            what, Verdict.PROBLEM, f"{state_dir} does not exist",
            "enrol this device: lighterman-agent enroll --help",
        )  # fmt: skip
    if not os.access(state_dir, os.W_OK | os.X_OK):
        return Finding(
            what, Verdict.PROBLEM, f"{state_dir} cannot be written by this user",
            "run as the user that runs the agent",
        )  # fmt: skip
    return Finding(what, Verdict.OK, str(state_dir))


def _disk(state_dir: Path) -> Finding:
    free = disk_free_bytes(state_dir)
    text = f"{free / 1e6:,.0f} MB free for models"
    if free >= SPARE_BYTES:
        return Finding("disk", Verdict.OK, text)
    return Finding(
        "disk", Verdict.PROBLEM, text, f"make room: {SPARE_BYTES / 1e6:,.0f} MB are a safe rest"
    )


def _identity(state_dir: Path) -> tuple[Identity | None, Finding]:
    try:
        identity = FileIdentityStore(state_dir / "identity").current()
    except (IdentityError, AgentError) as error:
        return None, Finding("identity", Verdict.PROBLEM, error.message, error.hint)
    if identity is None:
        return None, Finding(
            "identity", Verdict.PROBLEM, "this device is not enrolled",
            "lighterman-agent enroll --controller https://HOST:7444 --token TOKEN",
        )  # fmt: skip
    text = f"{identity.device_id}, project {identity.project}"
    return identity, Finding("identity", Verdict.OK, text)


def _certificate(who: Traveller) -> Finding:
    now = who.now
    try:
        facts = read_certificate(who.store.certificate_path())
    except ValueError as error:
        return Finding("certificate", Verdict.PROBLEM, str(error), who.enrol_anew())
    until = f"{facts.not_after:%Y-%m-%d %H:%M} UTC"
    if now >= facts.not_after:
        return Finding(
            "certificate", Verdict.PROBLEM, f"expired {until}",
            f"check the clock first; {who.enrol_anew()}",
        )  # fmt: skip
    if now < facts.not_before:
        return Finding(
            "certificate", Verdict.PROBLEM, f"not valid before {facts.not_before:%Y-%m-%d %H:%M}",
            "set the clock of this device",
        )  # fmt: skip
    if now >= facts.renew_at() + (facts.not_after - facts.not_before) / 6:
        return Finding(
            "certificate", Verdict.PROBLEM, f"good until {until}, and its renewal is overdue",
            "run the agent, and look why the controller does not renew it",
        )  # fmt: skip
    return Finding("certificate", Verdict.OK, f"good until {until}")


def _clock() -> Finding:
    synchronized = is_synchronized()
    if synchronized is None:
        return Finding("clock", Verdict.NOTE, "this system does not tell whether it is kept")
    if synchronized:
        return Finding("clock", Verdict.OK, "kept by the system")
    return Finding(
        "clock", Verdict.NOTE,
        "nothing keeps it (no NTP): updates may stop when it is wrong, serving does not",
    )  # fmt: skip


def _runtimes(other_python: str) -> Finding:
    elsewhere = runnable(OtherPython(other_python).versions(plain_runtimes()))
    runtimes = {**elsewhere, **installed_runtimes()}
    if runtimes:
        text = ", ".join(f"{name} {version}" for name, version in sorted(runtimes.items()))
        absent = {k: why for k, why in absent_runtimes().items() if k not in elsewhere}
        if absent:
            text += f" ({'; '.join(f'{name}: {why}' for name, why in absent.items())})"
        return Finding("runtimes", Verdict.OK, text)
    return Finding(
        "runtimes", Verdict.PROBLEM, "none is installed: no model can run here",
        "pip install 'lighterman[agent,onnxruntime]'",
    )  # fmt: skip


def _heat(root: Path) -> Finding:
    zones, hottest = thermal_zones(root), temperature_c(root)
    if hottest is None:
        text = "no thermal zone: the ladder cannot step down for heat"
        return Finding("heat", Verdict.NOTE, text)
    return Finding("heat", Verdict.OK, f"{hottest:.1f} °C, zones {', '.join(zones)}")


def _memory(root: Path) -> Finding:
    available = memory_available_bytes(root)
    if available is None:
        return Finding("memory", Verdict.NOTE, "this system does not tell")
    return Finding("memory", Verdict.OK, f"{available / 1e6:,.0f} MB available")


def _running(settings: Settings) -> list[Finding]:
    facts = read_facts(settings.state_dir)
    if facts is None or not is_running(facts):
        return [_stopped(settings)]
    silence = ask_grpc(facts.listen_grpc)
    if silence is None:
        return [_answering(facts), look_at_http(facts.listen_http)]
    text = f"runs, but {silence.text}"
    said = Finding("agent", Verdict.PROBLEM, text, silence.todo)
    return [said, look_at_http(facts.listen_http)]


def _stopped(settings: Settings) -> Finding:
    try:
        with only_one(settings.state_dir):
            damage = FileJournal(settings.state_dir / "journal").damage
    except BusyError as error:
        return Finding("agent", Verdict.NOTE, error.message)
    except AgentError as error:
        return Finding("agent", Verdict.PROBLEM, error.message, error.hint)
    hurt = [str(d) for d in damage if not d.torn]
    if hurt:
        return Finding(
            "agent", Verdict.PROBLEM, f"does not run, and its journal is damaged: {hurt[0]}",
            "start it: it goes by its slots and asks the controller for the rest",
        )  # fmt: skip
    return Finding("agent", Verdict.PROBLEM, "does not run", "start it: lighterman-agent run")


def _answering(facts: Facts) -> Finding:
    """It serves. The doctor says no hello, so only the agent knows what was said to it there."""
    text = f"runs and answers on {facts.listen_grpc}"
    if facts.controller_fault != LinkFault.REFUSED:
        return Finding("agent", Verdict.OK, text)
    text += f"; the controller refuses it: {facts.controller_state}"
    return Finding("agent", Verdict.PROBLEM, text, facts.controller_hint)


def show(findings: list[Finding]) -> list[str]:
    """The findings as lines for people, and a last one with the sum."""
    lines: list[str] = []
    for found in findings:
        lines.append(f"{found.verdict.value:<9}{found.what:<13}{found.text}")
        if found.todo:
            lines.append(f"{'':<22}{found.todo}")
    problems = sum(f.verdict is Verdict.PROBLEM for f in findings)
    lines.append("nothing is wrong" if not problems else f"problems: {problems}")
    return lines
