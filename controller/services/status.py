"""One screen: is anything wrong, and what is running? Every problem comes with a way out.

A failed build is told for `BUILD_TOLD`, until its cell (model, variant, recipe, profile) passed
in a newer version or a newer version was brought to devices. A rollout that was rolled back is told
for `ROLLOUT_TOLD`, until a newer one of its model succeeded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.blobs.blobs import Blobs
from controller.domain.device import DeviceState
from controller.domain.rollout import Phase
from controller.domain.words import count_of
from controller.services.builds import BuildView, list_builds
from controller.services.context import Ctx, Deps
from controller.services.devices import DeviceView, list_devices
from controller.services.jobs import CANCELLED
from controller.services.models import list_models
from controller.services.rollout_tries import left_by_itself
from controller.services.rollout_views import RolloutView, view_rollout
from controller.services.rollouts import list_rollouts
from controller.services.suggestions import size_text
from controller.store import rollouts as rollout_store
from controller.store.assignments import AssignmentRow
from controller.store.reported import list_left_last, list_refused_last
from controller.store.rollouts import RolloutRow

NAMED = 3
EXPIRES_SOON = timedelta(days=3)
# So long a device may lie enrolled and not started before it is somebody's trouble.
NEVER_GRACE, NEVER_GRACE_TEXT = timedelta(hours=1), "an hour"
BUILD_TOLD = timedelta(days=7)
ROLLOUT_TOLD = timedelta(days=1)
RECENT = 5  # rollouts that ended badly, at most
LOOKED_BACK = 100  # rollouts that succeeded, whose version a device may have left since
WORKER_GRACE = timedelta(seconds=15)  # a worker needs so long to come after a start
WORKER_SEEN = timedelta(minutes=1)
BUILD_STATES = ("queued", "running", "passed", "overridden", "refused", "failed")


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What only the process knows."""

    version: str
    started_at: datetime
    broker_ok: bool
    workers: int  # seen in the last minute


@dataclass(frozen=True, slots=True)
class RunningModel:
    """On how many devices a version answers requests."""

    model: str
    version: str
    devices: int


@dataclass(frozen=True, slots=True)
class StatusView:
    """The whole picture."""

    process: ProcessFacts
    devices: Mapping[str, int]
    running: tuple[RunningModel, ...]
    rollouts: tuple[RolloutView, ...]
    problems: tuple[str, ...]
    builds: Mapping[str, int]
    recent: tuple[RolloutView, ...] = ()  # ended badly within a day, newest first


def get_status(deps: Deps, ctx: Ctx, process: ProcessFacts) -> StatusView:
    """What runs and what is wrong, as it is now."""
    devices = list_devices(deps, ctx)
    rollouts = list_rollouts(deps, ctx, active_only=True)
    built = list_builds(deps, ctx)
    counted = Counter(view.state for view in built)
    builds = {state: counted[state] for state in BUILD_STATES if counted[state]}
    with deps.store.read() as conn:
        ended = rollout_store.list_rollouts(conn, ctx.project)
        recent = tuple(view_rollout(conn, ctx, row) for row in _ended_badly(ctx, ended))
        succeeded = [row.rollout_id for row in ended if row.phase is Phase.SUCCEEDED]
        left = list_left_last(conn, succeeded[:LOOKED_BACK])
        refused = list_refused_last(conn, succeeded[:LOOKED_BACK])
    running = Counter(
        (one.model, one.version)
        for view in devices
        if view.state == DeviceState.ACTIVE
        for one in view.models
        if one.version
    )
    problems = [
        *_process_problems(ctx, process, builds, deps.samples.shed),
        *_disk_problems(deps.blobs),
        *_build_problems(_failures(deps, ctx, built, ended)),
        *_device_problems(ctx, devices),
        *_left_problems(devices, left),
        *_refused_problems(devices, refused),
        *_rollout_problems(rollouts),
        *(
            f"rollout {one.rollout_id} {_failed(one)}"
            for one in recent
            if one.phase is Phase.FAILED
        ),
    ]
    return StatusView(
        process=process,
        devices=_count(devices),
        running=tuple(
            RunningModel(model, version, count)
            for (model, version), count in sorted(running.items())
        ),
        rollouts=tuple(rollouts),
        problems=tuple(problems),
        builds=builds,
        recent=recent,
    )


def _count(devices: Sequence[DeviceView]) -> dict[str, int]:
    counts = dict.fromkeys(
        ("online", "offline", "never_connected", "pending", "retired", "quarantined"), 0
    )
    for view in devices:
        if view.state == DeviceState.ACTIVE:
            away = "never_connected" if _never(view) else "offline"
            counts["online" if view.online else away] += 1
        else:
            counts[view.state.lower()] += 1
    return counts


def _never(view: DeviceView) -> bool:
    """Whether it was enrolled and not heard of since."""
    return not view.online and view.last_seen_at is None


def _disk_problems(blobs: Blobs) -> list[str]:
    if not blobs.is_full:
        return []
    return [
        f"the controller's disk is full: {size_text(blobs.free_bytes)} free; pushes are refused,"
        " and what the database cannot store; make room in the data directory"
    ]


def _process_problems(
    ctx: Ctx, process: ProcessFacts, builds: Mapping[str, int], shed: int
) -> list[str]:
    problems = []
    if not process.broker_ok:
        problems.append(
            "the message broker does not answer: devices are not rung and their telemetry is lost; "
            "the controller's log says why"
        )
    waiting = builds.get("queued", 0) + builds.get("running", 0)
    up = ctx.now - process.started_at
    if waiting and not process.workers and up >= WORKER_GRACE:
        seen = "for a minute" if up >= WORKER_SEEN else "since the start"
        problems.append(
            f"{_builds(waiting)} and no build worker was seen {seen}; start one: "
            "lighterman-controller worker"
        )
    if shed:
        lost = "1 sample was" if shed == 1 else f"{shed:,} samples were"
        problems.append(f"{lost} shed: more came in than memory was given for")
    return problems


def _builds(count: int) -> str:
    return "1 build waits" if count == 1 else f"{count} builds wait"


def _failures(
    deps: Deps, ctx: Ctx, built: Sequence[BuildView], rollouts: Sequence[RolloutRow]
) -> list[BuildView]:
    """Failed builds that are still worth a look; what made the others stale is at the top."""
    pushed = {(one.model, one.version): one.created_at for one in list_models(deps, ctx)}

    def newer(model: str, version: str, than: BuildView) -> bool:
        at, since = pushed.get((model, version)), pushed.get((than.model, than.version))
        return at is not None and since is not None and at > since

    def stale(failed: BuildView) -> bool:
        passed = any(
            _cell(one) == _cell(failed) and newer(one.model, one.version, failed)
            for one in built
            if one.state in ("passed", "overridden")
        )
        return passed or any(
            row.model == failed.model and newer(row.model, row.version, failed)
            for row in rollouts
            if row.phase is Phase.SUCCEEDED
        )

    found = [
        one
        for one in built
        if one.state == "failed"
        and not one.reason.startswith(CANCELLED)
        and ctx.now < one.updated_at + BUILD_TOLD
    ]
    return [one for one in found if not stale(one)]


def _cell(one: BuildView) -> tuple[str, str, str, str]:
    return one.model, one.variant, one.recipe, one.profile


def _build_problems(failed: Sequence[BuildView]) -> list[str]:
    if not failed:
        return []
    names = ", ".join(
        f"{one.model}:{one.version} {one.profile} {one.variant} {one.recipe}"
        for one in failed[:NAMED]
    )
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    ref = f"{failed[0].model}:{failed[0].version}"
    return [
        f"{count_of(len(failed), 'build')} failed: {names}{more}; "
        f"`fleetctl build list {ref}` says why, `fleetctl build retry {ref}` tries again"
    ]


def _ended_badly(ctx: Ctx, rows: Sequence[RolloutRow]) -> list[RolloutRow]:
    """Rolled back or failed not long ago, and no newer one of the model succeeded since."""
    found = []
    healed: set[str] = set()
    for row in rows:  # newest first
        if row.phase is Phase.SUCCEEDED:
            healed.add(row.model)
        bad = row.phase in (Phase.ROLLED_BACK, Phase.FAILED) and row.model not in healed
        if bad and row.finished_at is not None and ctx.now < row.finished_at + ROLLOUT_TOLD:
            found.append(row)
    return found[:RECENT]


def _failed(view: RolloutView) -> str:
    return (
        f"failed: {view.phase_reason}; "
        f"`fleetctl rollout explain {view.rollout_id}` names the devices"
    )


def _device_problems(ctx: Ctx, devices: Sequence[DeviceView]) -> list[str]:
    active = [view for view in devices if view.state == DeviceState.ACTIVE]
    groups = (
        (
            [view for view in devices if view.state == DeviceState.QUARANTINED],
            "in quarantine (two holders of one identity); `fleetctl device accept` lets it in",
        ),
        (
            [view for view in devices if view.state == DeviceState.PENDING],
            "pending; `fleetctl device accept` lets one in",
        ),
        (
            [view for view in active if not view.online and not _never(view)],
            "offline; `fleetctl device list` says since when",
        ),
        (
            [v for v in active if _never(v) and ctx.now >= v.enrolled_at + NEVER_GRACE],
            f"enrolled for more than {NEVER_GRACE_TEXT} and never connected; start the agent there:"
            " lighterman-agent run",
        ),
        (
            [view for view in active if not view.profile],
            "of no known profile, nothing is built for them; `fleetctl device show` tells what "
            "they reported",
        ),
        (
            [
                view
                for view in active
                if view.certificate_expires_at is not None
                and view.certificate_expires_at < ctx.now + EXPIRES_SOON
                and not view.online
            ],
            "offline with a certificate that ends within 3 days; they must enrol again after that",
        ),
    )
    return [_devices(views, text) for views, text in groups if views]


def _devices(views: Sequence[DeviceView], text: str) -> str:
    names = ", ".join(view.device_id for view in views[:NAMED])
    more = f" and {len(views) - NAMED} more" if len(views) > NAMED else ""
    verb = "device is" if len(views) == 1 else "devices are"
    return f"{len(views)} {verb} {text}: {names}{more}"


def _left_problems(devices: Sequence[DeviceView], left: Sequence[AssignmentRow]) -> list[str]:
    """Devices that went back by themselves after the rollout's end, which does not tell of it."""
    mine = [row for row in left if left_by_itself(row)]
    return _by_version(devices, mine, "left", "after the rollout had succeeded")


def _refused_problems(devices: Sequence[DeviceView], refused: Sequence[AssignmentRow]) -> list[str]:
    """Devices that a rollout which succeeded was to reach, and did not: its phase hides them."""
    return _by_version(devices, refused, "refused", "in a rollout that succeeded elsewhere")


def _by_version(
    devices: Sequence[DeviceView], rows: Sequence[AssignmentRow], did: str, when: str
) -> list[str]:
    active = {view.device_id for view in devices if view.state == DeviceState.ACTIVE}
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.device_id in active:
            found.setdefault(f"{row.model}:{row.version}", []).append(row.device_id)
    problems = []
    for ref, ids in found.items():
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        who = f"{count_of(len(ids), 'device')} {did} {ref}"
        problems.append(
            f"{who} {when}; `fleetctl device explain {ids[0]}` says why: "
            f"{', '.join(ids[:NAMED])}{more}"
        )
    return problems


def _rollout_problems(rollouts: Sequence[RolloutView]) -> list[str]:
    problems = []
    for view in rollouts:
        if view.phase is Phase.PAUSED:
            problems.append(
                f"rollout {view.rollout_id} waits for a person: {view.phase_reason}; "
                f"`fleetctl rollout explain {view.rollout_id}` shows the evidence"
            )
        elif view.phase is Phase.ROLLING_BACK:
            problems.append(f"rollout {view.rollout_id} is rolling back: {view.phase_reason}")
    return problems
