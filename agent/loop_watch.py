"""Looks at every model about once a second: proven yet? another rung? Also the telemetry window.

Refuses to act on a model: it returns what was seen, the loop steps and journals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.domain.assignment import ModelState
from agent.domain.desired import DesiredModel, RungKind, RungSpec
from agent.domain.ladder import (
    LadderState,
    Pressure,
    RungChoice,
    choose_rung,
    is_pressured,
    step_down,
)
from agent.domain.ports import LinkProbe, Measured, ModelHost, RemoteModel, Serving
from agent.domain.probation import (
    Commit,
    LadderPosition,
    RollBack,
    StepDown,
    Trial,
    Wait,
    is_full,
    judge,
    row_text,
)
from agent.domain.staying import Said, Staying, look
from agent.domain.transition import fallback_of, is_current, may_roll_back
from agent.errors import UnknownModelError
from agent.link.convert import Evidence, ModelStatus


@dataclass(frozen=True, slots=True)
class View:
    """One model at one moment: what serves, by which release, under which pressure."""

    serving: Serving
    release: DesiredModel
    rungs: tuple[RungSpec, ...]
    pressure: Pressure

    def spec(self, rung: str) -> RungSpec | None:
        """The rung of this name."""
        return next((r for r in self.release.rungs if r.name == rung), None)


class Watch:
    """Remembers where each model's ladder stands. Loop thread only."""

    def __init__(self, host: ModelHost, probe: LinkProbe) -> None:
        self._host = host
        self._probe = probe
        self._ladders: dict[str, tuple[str, LadderState]] = {}
        self._reasons: dict[str, str] = {}
        self._staying: dict[str, Staying] = {}
        self._links: frozenset[RemoteModel] = frozenset()

    def view(self, state: ModelState, felt: Pressure) -> View | None:
        """What serves this model now; None when nothing does."""
        serving = self._host.serving(state.model)
        if serving is None:
            return None
        release = release_of(state, serving.slot_id)
        if release is None:
            return None
        try:
            measured = self._host.measure(state.model)
        except UnknownModelError:
            return None
        usable = serving.usable or serving.resident
        rungs = tuple(r for r in release.rungs if r.name in usable)
        return View(serving, release, rungs, self._pressure(release, felt, measured))

    def _pressure(self, release: DesiredModel, felt: Pressure, measured: Measured) -> Pressure:
        remote = remote_of(release)
        link = self._probe.read(remote[1]) if remote else None
        return replace(
            felt,
            p95_s=measured.p95_s,
            queue_age_s=measured.queue_age_s,
            link_rtt_s=link.rtt_s if link else None,
            link_loss_pct=link.loss_pct if link else None,
            link_why=link.why if link else "",
        )

    def watch_links(self, states: Mapping[str, ModelState]) -> None:
        """Probe the links of what serves or may serve, and no others."""
        remotes = frozenset(
            RemoteModel(rung.endpoint, slot.release.model, slot.release.version)
            for state in states.values()
            for slot in (state.current, state.previous)
            if slot is not None
            for rung in slot.release.rungs
            if rung.kind is RungKind.REMOTE and rung.endpoint
        )
        if remotes != self._links:
            self._links = remotes
            self._probe.watch(self._links)

    # -- ladder ------------------------------------------------------------------------------------

    def choose(self, view: View, now: float) -> RungChoice:
        """Whether another rung should answer; the move is remembered as made."""
        choice = choose_rung(
            self._ladder(view, now),
            view.pressure,
            view.release.policy.ladder,
            view.rungs,
            now,
            view.serving.trial,
        )
        self._remember(view, choice)
        return choice

    def stepped_down(
        self, view: View, verdict: StepDown, swapped_to: str | None, now: float
    ) -> RungChoice:
        """The move that the rollback rule made (or asks for, when `swapped_to` is None)."""
        known = self._ladders.get(view.release.model)
        before = known[1] if known else self._ladder(view, now)
        choice = step_down(before, view.rungs, view.release.policy.ladder, verdict.reason, now)
        if choice.change is not None and swapped_to not in (None, choice.change.to_rung):
            moved = replace(choice.change, to_rung=swapped_to or "")
            choice = replace(choice, change=moved, state=replace(choice.state, rung=moved.to_rung))
        self._remember(view, choice)
        return choice

    def undo(self, model: str) -> None:
        """The move could not be made: look at what really answers."""
        self._ladders.pop(model, None)

    def _ladder(self, view: View, now: float) -> LadderState:
        known = self._ladders.get(view.release.model)
        if known is not None and (known[0], known[1].rung) == (
            view.serving.slot_id,
            view.serving.rung,
        ):
            return known[1]
        # Another version, or the host had to take another rung than the one asked for.
        self._reasons.pop(view.release.model, None)
        return LadderState(view.serving.rung, now)

    def _remember(self, view: View, choice: RungChoice) -> None:
        self._ladders[view.release.model] = (view.serving.slot_id, choice.state)
        if choice.change is not None:  # why it stands where it stands, not that it still fits
            self._reasons[view.release.model] = choice.reason

    # -- probation ---------------------------------------------------------------------------------

    def verdict(self, view: View, latched: bool, now: float) -> Commit | RollBack | Wait | None:
        """What time alone makes of a version in probation; None once it is committed."""
        serving, policy = view.serving, view.release.policy
        if serving.trial is not Trial.PROBATION:
            return None
        normal = not is_pressured(view.pressure, policy.ladder)
        found = judge(
            serving.row, serving.trial, serving.position, normal, policy, now, latched=latched
        )
        return None if isinstance(found, StepDown) else found

    def staying(self, state: ModelState, view: View, now: float) -> Said | None:
        """Word of a committed version that the rule would leave, and that stays for want of one."""
        serving, policy = view.serving, view.release.policy
        committed = serving.trial is Trial.COMMITTED
        full = committed and is_full(serving.row, policy)
        reason = ""
        lowest = serving.position is LadderPosition.LOWEST_LOCAL
        stays = full and lowest and not may_roll_back(state)
        if stays and not is_pressured(view.pressure, policy.ladder):
            why = "it went back once already" if fallback_of(state) else "no version to return to"
            reason = f"{row_text(serving.row, policy)}; {why}, it goes on answering"
        known, said = look(self._staying.get(state.model), serving.slot_id, full, reason, now)
        if known is None:
            self._staying.pop(state.model, None)
        else:
            self._staying[state.model] = known
        return said

    # -- telling -----------------------------------------------------------------------------------

    def evidence(self, state: ModelState) -> Evidence:
        """What is known of the trial of the order at hand; what else answers is none of it."""
        serving = self._host.serving(state.model)
        current = state.current
        if state.order is not None and not is_current(state):
            return Evidence(inferences=state.counted, starved=state.starved)
        if serving is None or current is None or serving.slot_id != current.slot_id:
            return Evidence(inferences=state.counted, starved=state.starved)
        return Evidence(
            inferences=serving.row.counted,
            errors=serving.row.errors,
            p95_s=serving.p95_s,
            starved=state.starved,
        )

    def status(self, state: ModelState) -> ModelStatus | None:
        """How the model stands, for the health feed."""
        serving = self._host.serving(state.model)
        if serving is None:
            return None
        return ModelStatus(
            model=state.model,
            version=serving.version,
            rung=serving.rung,
            phase=state.phase,
            rung_reason=self._rung_reason(state, serving),
        )

    def _rung_reason(self, state: ModelState, serving: Serving) -> str:
        """Why it stands where it stands, and why its remote rung is not used."""
        reasons = [self._reasons.get(state.model, "")]
        release = release_of(state, serving.slot_id)
        remote = remote_of(release) if release else None
        link = self._probe.read(remote[1]) if remote else None
        if remote and link and link.why and link.why not in reasons[0]:
            reasons.append(f"{remote[0]} is not used: {link.why}")
        return "; ".join(reason for reason in reasons if reason)


def release_of(state: ModelState, slot_id: str) -> DesiredModel | None:
    """The release behind a slot id, of those this model has."""
    for slot in (state.current, state.previous, state.staged):
        if slot is not None and slot.slot_id == slot_id:
            return slot.release
    return None


def remote_of(release: DesiredModel) -> tuple[str, RemoteModel] | None:
    """The name of a release's first remote rung and what it needs; None where there is none."""
    for rung in release.rungs:
        if rung.kind is RungKind.REMOTE and rung.endpoint:
            return rung.name, RemoteModel(rung.endpoint, release.model, release.version)
    return None
