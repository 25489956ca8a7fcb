"""Orders of a device beside its desired state: builds to measure while it is idle, and its roles.

Refuses to judge a signature (the bytes were verified before) and to wait: `may_measure` says why it
may not now, the caller when to look again. Times in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from agent.domain import strict
from agent.domain.desired import PROTOCOL, SCHEMA, JsonValue, Target
from agent.domain.manifest import parse_specs, parse_target
from agent.domain.strict import Object
from agent.domain.tensor import TensorSpec
from agent.errors import ManifestError

LONGEST_S = 86_400.0
# No order lets a device become hotter than this.
HOTTEST_C = 95.0
# A measurement begins cool: so far below the limit.
COOL_C = 10.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One build to measure."""

    build: str
    variant: str
    recipe: str
    runtime: str
    target: Target
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TuningOrder:
    """Builds of one version, and how long they are run for."""

    tuning: str
    model: str
    version: str
    expires_at: datetime
    warmup_s: float
    soak_s: float
    measure_s: float
    heat_limit_c: float
    inputs: tuple[TensorSpec, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class DeviceOrders:
    """All that is asked of one device at one number."""

    number: int = 0
    roles: frozenset[str] = frozenset()
    tuning: tuple[TuningOrder, ...] = ()


def parse_orders(data: bytes, device: str, project: str, number: int) -> DeviceOrders:
    """Read orders for this device that came under a number; ManifestError names what is wrong."""
    body = strict.as_object(strict.load(data), "orders")
    said = strict.text(body, "kind", "orders")
    if said != "orders":
        raise ManifestError(f"orders.kind is {said!r}", "what is signed for one use fits no other")
    for key, known in (("schema", SCHEMA), ("protocol", PROTOCOL), ("number", number)):
        value = strict.whole(body, key, "orders")
        if value != known:
            raise ManifestError(f"orders.{key} is {value}, {known} is needed")
    for key, mine in (("device", device), ("project", project)):
        value_said = strict.text(body, key, "orders")
        if value_said != mine:
            raise ManifestError(f"orders.{key} is {value_said!r}, this is {mine!r}")
    listed = strict.as_list(body, "tuning", "orders")
    return DeviceOrders(
        number=number,
        roles=frozenset(strict.texts(body, "roles", "orders")),
        tuning=tuple(_order(item, f"orders.tuning[{i}]") for i, item in enumerate(listed)),
    )


def _order(value: JsonValue, where: str) -> TuningOrder:
    body = strict.as_object(value, where)
    listed = strict.as_list(body, "candidates", where)
    signature = strict.as_object(strict.get(body, "signature", where), f"{where}.signature")
    return TuningOrder(
        tuning=strict.name(body, "id", where),
        model=strict.name(body, "model", where),
        version=strict.name(body, "version", where),
        expires_at=strict.moment(body, "expires_at", where),
        warmup_s=_seconds(body, "warmup_s", where),
        soak_s=_seconds(body, "soak_s", where),
        measure_s=_seconds(body, "measure_s", where),
        heat_limit_c=min(strict.number(body, "heat_limit_c", where), HOTTEST_C),
        inputs=parse_specs(signature, "inputs", f"{where}.signature"),
        candidates=tuple(
            _candidate(item, f"{where}.candidates[{i}]") for i, item in enumerate(listed)
        ),
    )


def _candidate(value: JsonValue, where: str) -> Candidate:
    body = strict.as_object(value, where)
    target = parse_target(strict.get(body, "target", where), f"{where}.target")
    asked = target.custom.get("options")
    options = asked if isinstance(asked, dict) else {}
    return Candidate(
        build=strict.name(body, "build", where),
        variant=strict.name(body, "variant", where),
        recipe=strict.name(body, "recipe", where),
        runtime=strict.name(body, "runtime", where),
        target=target,
        options={k: v for k, v in options.items() if isinstance(v, str | int | float | bool)},
    )


def _seconds(body: Object, key: str, where: str) -> float:
    found = strict.number(body, key, where)
    if found > LONGEST_S:
        raise ManifestError(f"{where}.{key} is {found:g}, at most {LONGEST_S:g} s are measured")
    return found


@dataclass(frozen=True, slots=True)
class Activity:
    """What a device does for others. `requests` counts all since the start, answered or not."""

    requests: int = 0
    running: bool = False
    settled: bool = True  # no update is under way, nothing is on trial
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Quiet:
    """Since when nobody asked anything."""

    requests: int
    since_s: float

    def after(self, seen: Activity, now: float) -> "Quiet":
        """With what is seen now: any request starts it anew."""
        if seen.requests == self.requests and not seen.running:
            return self
        return Quiet(seen.requests, now)


def may_measure(
    quiet: Quiet, seen: Activity, now: float, idle_s: float, heat_limit_c: float
) -> str:
    """Why no measurement may begin now; empty where one may."""
    if not seen.settled:
        return "an update is under way"
    if now - quiet.since_s < idle_s:
        return f"requests came in the last {idle_s:g} s"
    if seen.temperature_c is not None and seen.temperature_c > heat_limit_c - COOL_C:
        cool = heat_limit_c - COOL_C
        return f"{seen.temperature_c:.1f} °C: it begins below {cool:g}"
    return ""


def must_stop(began: Activity, seen: Activity, heat_limit_c: float) -> str:
    """Why a running measurement ends at once; empty where it goes on."""
    if seen.running or seen.requests != began.requests:
        return "requests came"
    if not seen.settled:
        return "an update came"
    if is_hot(seen, heat_limit_c):
        return f"{seen.temperature_c:.1f} °C, the limit is {heat_limit_c:g}"
    return ""


def is_hot(seen: Activity, heat_limit_c: float) -> bool:
    """Whether the heat limit is reached."""
    return seen.temperature_c is not None and seen.temperature_c >= heat_limit_c
