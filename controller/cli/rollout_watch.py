"""A rollout as people see it, once or until its end."""

import time

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group
from rich.live import Live
from rich.text import Text

from controller.cli import units
from controller.cli.problem import EXIT_ROLLOUT, CliError
from controller.cli.records import enum_name
from controller.cli.session import CLOCK, Session
from lighterman.v1 import fleet_pb2

POLL_S = 1.0
TERMINAL = ("SUCCEEDED", "ROLLED_BACK", "FAILED", "ABORTED")
STATE_ORDER = (
    "PLANNED",
    "OFFERED",
    "DOWNLOADING",
    "VERIFIED",
    "STAGED",
    "ACTIVATED",
    "PROBATION",
    "COMMITTED",
    "ROLLING_BACK",
    "ROLLED_BACK",
    "WITHDRAWN",
    "REFUSED",
    "FAILED",
    "SUPERSEDED",
)


def phase_name(item: fleet_pb2.Rollout) -> str:
    """``PROGRESSING`` and the like."""
    return enum_name(fleet_pb2.DESCRIPTOR.enum_types_by_name["RolloutPhase"], item.phase)


def outcome_code(phase: str) -> int | None:
    """Exit code of a phase that ends the wait; None while it goes on."""
    if phase == "SUCCEEDED":
        return 0
    return EXIT_ROLLOUT if phase in TERMINAL or phase == "PAUSED" else None


def _states(wave: fleet_pb2.WaveStatus) -> str:
    ordered = {name: wave.states.get(name, 0) for name in STATE_ORDER if name != "PLANNED"}
    return units.counts(ordered)


def _p95(wave: fleet_pb2.WaveStatus) -> str:
    before = units.milliseconds(wave.p95_before_s) if wave.HasField("p95_before_s") else ""
    after = units.milliseconds(wave.p95_after_s) if wave.HasField("p95_after_s") else ""
    if before and after:
        return f"{before} → {after} ms"
    if not before and not after:
        return units.UNKNOWN
    known = (f"{one} ms" if one else units.UNKNOWN for one in (before, after))
    return " → ".join(known)  # what is unknown has no unit


def _verdict(wave: fleet_pb2.WaveStatus, now: float | None) -> str:
    """`now` is None where the rollout is over: then nobody looks again."""
    if not wave.verdict:
        return ""
    of = f" of {wave.samples_needed:,}" if wave.samples_needed else ""
    count = f"{wave.samples:,}{of}"
    when = units.instant(wave.next_look_at)
    if now is None or wave.verdict != "PENDING" or when is None or when.timestamp() <= now:
        return f"{wave.verdict}  {count} samples"
    # Short, so that the line fits beside the states of the wave.
    return f"PENDING  {count}, next look in {units.duration(when.timestamp() - now)}"


def _title(wave: fleet_pb2.WaveStatus) -> str:
    return f"{wave.number} canary" if wave.number == 1 else f"{wave.number} {wave.entry}"


def _exposed(wave: fleet_pb2.WaveStatus) -> int:
    untouched = ("PLANNED", "REFUSED", "WITHDRAWN", "SUPERSEDED")
    return sum(count for state, count in wave.states.items() if state not in untouched)


def _headline(session: Session, item: fleet_pb2.Rollout) -> str:
    before = (
        "/".join(sorted(version or "nothing" for version in item.from_versions)) or units.UNKNOWN
    )
    end = units.instant(item.finished_at) or session.now()
    start = units.instant(item.created_at) or end
    return (
        f"{item.rollout_id}   {item.spec.model} {before} → {item.spec.version}  "
        f" {item.spec.selector}   {phase_name(item)}   wave {item.current_wave} of"
        f" {len(item.waves)}   {units.clock((end - start).total_seconds())}"
    )


def _footer(item: fleet_pb2.Rollout) -> list[str]:
    lines = []
    if item.phase_reason:
        lines.append(f"why        {item.phase_reason}")
    said = item.phase_reason
    lines += [f"paused     {reason}" for reason in item.pause_reasons if reason not in said]
    exposure = f"exposed    {item.exposed} of at most {item.exposed_cap}"
    if item.bytes_total:
        exposure += f"   bytes {units.size(item.bytes_sent)} of {units.size(item.bytes_total)}"
    lines.append(exposure)
    if item.offline:
        names = ", ".join(item.offline[:3]) + (" …" if len(item.offline) > 3 else "")
        lines.append(f"offline    {names}: they join when they return")
    if phase_name(item) in ("FAILED", "ROLLED_BACK", "ROLLING_BACK", "PAUSED", "ABORTED"):
        lines.append(
            f"evidence   fleetctl rollout explain {item.rollout_id} · "
            f"fleetctl event list --rollout {item.rollout_id}"
        )
    if phase_name(item) == "PAUSED":
        lines.append(f"next       fleetctl rollout resume {item.rollout_id}, or rollback, or abort")
    if phase_name(item) == "FAILED" and not item.exposed:
        again = f"fleetctl rollout start {item.spec.model}:{item.spec.version}"
        lines.append(f"next       mend the cause, then {again} --to {item.spec.selector}")
    return lines


def unsaid(item: fleet_pb2.Rollout, facts: list[fleet_pb2.Fact]) -> list[fleet_pb2.Fact]:
    """Facts without what the rollout above them says; a wave keeps the reason of its verdict."""
    reasons = {item.phase_reason, *(wave.verdict_reason for wave in item.waves)}
    reasons = {one for one in reasons if one and one in item.phase_reason}
    longest = sorted(reasons, key=len, reverse=True)
    left = []
    for fact in facts:
        text = fact.text
        for reason in () if fact.topic.startswith("wave ") else longest:
            text = text.replace(f" ({reason})", "").replace(f": {reason}", "")
        if fact.topic != "why":
            left.append(fleet_pb2.Fact(topic=fact.topic, text=text, event_ids=fact.event_ids))
    return left


def _wave_lines(session: Session, item: fleet_pb2.Rollout) -> list[Text]:
    now = None if phase_name(item) in TERMINAL else session.now().timestamp()
    columns = ["wave", ">devices", "state", "p95 before → after", ">errors", "verdict"]
    rows = [
        [
            _title(wave),
            f"{_exposed(wave)}/{wave.devices}",
            _states(wave),
            _p95(wave),
            str(wave.errors) if wave.verdict else "",
            _verdict(wave, now),
        ]
        for wave in item.waves
    ]
    return session.table_lines(columns, rows)


def show_rollout(session: Session, item: fleet_pb2.Rollout) -> None:
    """One rollout for people."""
    session.say(_headline(session, item))
    for row in _wave_lines(session, item):
        session.out.print(row)
    for line in _footer(item):
        session.say(line)


def _frame(session: Session, item: fleet_pb2.Rollout) -> Group:
    lines = [Text(session.readable(line)) for line in _footer(item)]
    return Group(Text(_headline(session, item)), *_wave_lines(session, item), *lines)


def _plain(item: fleet_pb2.Rollout) -> list[str]:
    lines = [f"{item.rollout_id}  {phase_name(item)}  {item.phase_reason}".rstrip()]
    for wave in item.waves:
        if wave.verdict:
            said = not wave.verdict_reason or wave.verdict_reason in item.phase_reason
            reason = "" if said else f"  {wave.verdict_reason}"
            lines.append(
                f"{item.rollout_id}  wave {_title(wave)}  {_states(wave) or 'nothing offered yet'} "
                f" {wave.verdict}{reason if wave.verdict != 'PENDING' else ''}"
            )
    return lines


def watch_rollout(session: Session, rollout_id: str, timeout_s: float) -> int:
    """Follow a rollout until it ends or waits for a person; returns the exit code."""
    request = fleet_pb2.RolloutRequest(rollout_id=rollout_id)
    deadline = CLOCK.monotonic() + timeout_s
    said: set[str] = set()
    item = session.stub.GetRollout(request, timeout=30)
    on_terminal = session.out.is_terminal and not session.quiet and not session.machine
    live = Live(console=session.out, auto_refresh=False) if on_terminal else None
    if live:
        live.start()
    try:
        while True:
            if live:
                live.update(_frame(session, item), refresh=True)
            else:
                for line in _plain(item):
                    if line not in said:
                        said.add(line)
                        session.say(line)
            code = outcome_code(phase_name(item))
            if code is not None:
                break
            if CLOCK.monotonic() > deadline:
                raise CliError(
                    f"{rollout_id} is not at its end after {units.duration(timeout_s)}\n"
                    f"it goes on; look again: fleetctl rollout watch {rollout_id}"
                )
            time.sleep(POLL_S)
            item = session.stub.GetRollout(request, timeout=30)
    finally:
        if live:
            live.stop()
    if not live:
        session.show("rollout", item, rollout_id, lambda: show_rollout(session, item))
    return code


def elapsed(start: Timestamp, end: Timestamp) -> float:
    """Seconds between two wire times."""
    return (end.seconds - start.seconds) + (end.nanos - start.nanos) / 1e9
