"""One screen: is anything wrong, and what is running? Every problem comes with a way out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.domain.device import DeviceState
from controller.domain.rollout import Phase
from controller.services.builds import list_builds
from controller.services.context import Ctx, Deps
from controller.services.devices import DeviceView, list_devices
from controller.services.rollout_views import RolloutView
from controller.services.rollouts import list_rollouts

NAMED = 3
EXPIRES_SOON = timedelta(days=3)


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


def get_status(deps: Deps, ctx: Ctx, process: ProcessFacts) -> StatusView:
    """What runs and what is wrong, as it is now."""
    devices = list_devices(deps, ctx)
    rollouts = list_rollouts(deps, ctx, active_only=True)
    builds = Counter(view.state for view in list_builds(deps, ctx))
    running = Counter(
        (one.model, one.version)
        for view in devices
        if view.state == DeviceState.ACTIVE
        for one in view.models
        if one.version
    )
    problems = [
        *_process_problems(process, builds, deps.samples.shed),
        *_device_problems(ctx, devices),
        *_rollout_problems(rollouts),
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
        builds=dict(builds),
    )


def _count(devices: Sequence[DeviceView]) -> dict[str, int]:
    counts = {"online": 0, "offline": 0, "pending": 0, "retired": 0, "quarantined": 0}
    for view in devices:
        if view.state == DeviceState.ACTIVE:
            counts["online" if view.online else "offline"] += 1
        else:
            counts[view.state.lower()] += 1
    return counts


def _process_problems(process: ProcessFacts, builds: Mapping[str, int], shed: int) -> list[str]:
    problems = []
    if not process.broker_ok:
        problems.append(
            "the message broker does not answer: devices are not rung and their telemetry is lost; "
            "the controller's log says why"
        )
    waiting = builds.get("queued", 0) + builds.get("running", 0)
    if waiting and not process.workers:
        problems.append(
            f"{_builds(waiting)} and no worker was seen for a minute; start one: "
            "lighterman-controller worker"
        )
    if builds.get("failed"):
        problems.append(
            f"{builds['failed']} builds failed; `fleetctl build list` says why, "
            "`fleetctl build retry` tries again"
        )
    if shed:
        problems.append(f"{shed:,} samples were shed: more came in than memory was given for")
    return problems


def _builds(count: int) -> str:
    return "1 build waits" if count == 1 else f"{count} builds wait"


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
            [view for view in active if not view.online],
            "offline; `fleetctl device list` says since when",
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
