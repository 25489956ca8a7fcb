"""One served model: its slots, which of them answers, its queues and its tallies.

The lock here is the only one around a swap, and it is never held while a runtime runs. Refuses to
load, to call backends and to tell anybody: `host` does.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace

from agent.domain import probation
from agent.domain.batching import NO_BATCHES, Curve
from agent.domain.desired import RungKind
from agent.domain.histogram import Histogram
from agent.domain.ladder import Pressure, is_pressured
from agent.domain.ports import Clock, Decision, RungWindow
from agent.domain.probation import Cause, RollBack, ServiceSample, StepDown, Trial
from agent.errors import UnavailableError, UnknownModelError
from agent.runtime.backend import Backend
from agent.runtime.gate import Gate
from agent.runtime.slot import LoadedRung, LoadedSlot

# A remote waits for its link, not for a CPU of this device.
_REMOTE_SLOTS = 16
# After a failed call a remote rung is left alone so long; requests go to a local one at once.
_REMOTE_PAUSE_S = 1.0
_NO_DIGEST = ""
# An inference this short costs less than handing it to another thread ...
_QUICK_S = 0.001
# ... and so many in a row say that the next one is, too.
_QUICK_ROW = 16
_QUICK_WAITING = 4
# One is inside the runtime while the other reads a request or writes an answer.
_LOCAL_WIDTH = 2
# Of how many versions and rungs the sums since the start are kept; the longest idle goes first.
_KEPT_TOTALS = 16


class Tally:
    """What one build did on one rung since it was last taken."""

    __slots__ = ("errors", "non_finite", "queue_age_max_s", "service")

    def __init__(self) -> None:
        self.service = Histogram()
        self.errors = 0
        self.non_finite = 0
        self.queue_age_max_s = 0.0


class ServedModel:
    """All of one model. Methods take the lock themselves, but for those that say it is held."""

    def __init__(self, model: str, clock: Clock, parallel: int) -> None:
        self.model = model
        self.lock = threading.Lock()
        self.idle = threading.Condition(self.lock)
        self.gates = {
            RungKind.LOCAL: Gate(parallel, clock),
            RungKind.REMOTE: Gate(_REMOTE_SLOTS, clock),
        }
        self.slots: dict[str, LoadedSlot] = {}
        self.active: LoadedSlot | None = None
        self._tallies: dict[tuple[str, str, str], Tally] = {}
        self._totals: dict[tuple[str, str], RungWindow] = {}
        self._clock = clock

    # -- who answers -------------------------------------------------------------------------------

    def gate(self) -> Gate:
        """The queue of what answers now."""
        with self.lock:
            slot = self.active
            remote = slot is not None and slot.current.spec.kind is RungKind.REMOTE
        return self.gates[RungKind.REMOTE if remote else RungKind.LOCAL]

    def quick_gate(self) -> Gate | None:
        """The queue, if it is short and what answers now too quick to be worth a thread."""
        with self.lock:
            slot = self.active
            rung = None if slot is None else slot.current
            if rung is None or rung.spec.kind is not RungKind.LOCAL or rung.quick < _QUICK_ROW:
                return None
        gate = self.gates[RungKind.LOCAL]
        return gate if gate.waiting() <= _QUICK_WAITING else None

    def curve(self) -> Curve:
        """What batches of the rung that answers take."""
        with self.lock:
            return NO_BATCHES if self.active is None else self.active.current.batches.curve

    def width(self) -> int:
        """How many requests are worth having under way at once; more would only wait."""
        with self.lock:
            slot = self.active
            remote = slot is not None and slot.current.spec.kind is RungKind.REMOTE
        return _REMOTE_SLOTS if remote else _LOCAL_WIDTH

    def enter(self) -> tuple[LoadedSlot, LoadedRung, Backend]:
        """Take what answers now into use; UnavailableError with the reason when nothing can."""
        with self.lock:
            slot = self.active
            if slot is None:
                raise UnavailableError(f"model {self.model} has no version loaded yet")
            rung = slot.current
            resting = rung.skip_until > self._clock.monotonic()
            if rung.spec.kind is RungKind.REMOTE and resting and slot.local:
                rung = slot.local[0]
            return slot, rung, self._use(slot, rung)

    def enter_rung(self, slot: LoadedSlot, rung: LoadedRung) -> Backend | None:
        """Take one rung of one slot into use; None when it is gone meanwhile."""
        with self.lock:
            if rung.backend is None or rung.retired:
                return None
            return self._use(slot, rung)

    def leave(self, rung: LoadedRung) -> None:
        """Give a rung back; the last user of a retired one closes it."""
        with self.lock:
            rung.in_flight -= 1
            closing = self._closable(rung)
            self.idle.notify_all()
        if closing is not None:
            closing.close()

    def alternatives(
        self, slot: LoadedSlot, rung: LoadedRung
    ) -> Iterator[tuple[LoadedSlot, LoadedRung]]:
        """Who else can answer a request that failed on `rung`, best first."""
        with self.lock:
            local = [r for r in slot.local if r is not rung]
            found: list[tuple[LoadedSlot, LoadedRung]] = []
            if rung.spec.kind is RungKind.REMOTE:
                found += [(slot, r) for r in local]
            back = self.slots.get(slot.fallback or "")
            if back is not None and slot.trial is Trial.PROBATION:
                found += [(back, r) for r in _preferred(back)]
            if rung.spec.kind is not RungKind.REMOTE:
                found += [(slot, r) for r in reversed(local)]
        yield from found

    def _use(self, slot: LoadedSlot, rung: LoadedRung) -> Backend:
        if rung.spec.kind is RungKind.OFF:
            raise UnavailableError(
                f"model {self.model}:{slot.release.version} is switched off by its ladder",
                "it answers again when heat or memory pressure is over",
            )
        if rung.backend is None:
            raise UnavailableError(f"model {self.model} rung {rung.spec.name} is not loaded")
        rung.in_flight += 1
        return rung.backend

    # -- what came of it ---------------------------------------------------------------------------

    def note(
        self,
        slot: LoadedSlot,
        rung: LoadedRung,
        sample: ServiceSample,
        queue_s: float,
        pressure: Pressure,
    ) -> Decision | None:
        """Count one inference and apply the rollback rule; gives what was decided, if anything."""
        with self.lock:
            self._count(slot, rung, sample, queue_s)
            if not sample.ok and rung.spec.kind is RungKind.REMOTE:
                rung.skip_until = sample.at_s + _REMOTE_PAUSE_S
            # What an old version or rung still finishes says nothing about the one that answers.
            if slot is not self.active or rung is not slot.current:
                return None
            policy = slot.release.policy
            slot.row = probation.observe(slot.row, sample, policy)
            # Only a full row rolls back or steps down; committing and waiting are the loop's.
            if len(slot.row.row) < policy.slow_count or slot.told:
                return None
            verdict = probation.judge(
                slot.row,
                slot.trial,
                slot.position,
                not is_pressured(pressure, policy.ladder),
                policy,
                sample.at_s,
                latched=slot.latched,
            )
            match verdict:
                case RollBack():
                    return self._roll_back(slot, verdict, sample.at_s)
                case StepDown():
                    return self._step_down(slot, verdict, sample.at_s)
                case _:
                    return None

    def crashed(self, slot: LoadedSlot, error: str, at_s: float) -> Decision | None:
        """The runtime failed in probation and others could answer: back at once."""
        with self.lock:
            if slot is not self.active or slot.trial is not Trial.PROBATION or slot.told:
                return None
            reason = f"an inference failed in probation: {error}"
            return self._roll_back(slot, RollBack(Cause.CRASH, reason), at_s)

    def _roll_back(self, slot: LoadedSlot, verdict: RollBack, at_s: float) -> Decision:
        slot.told = True
        back = self.slots.get(slot.fallback or "")
        if back is not None:
            back.trial, back.latched, back.fallback = Trial.COMMITTED, True, None
            self.activate(back, probation.begin(at_s))
        return self._decision(slot, verdict, None if back is None else back.slot_id, at_s)

    def _step_down(self, slot: LoadedSlot, verdict: StepDown, at_s: float) -> Decision:
        lower = slot.lower()
        if lower is None or slot.rungs[lower.name].backend is None:
            slot.told = True
            return self._decision(slot, verdict, None, at_s)
        self.take_rung(slot, lower.name)
        return self._decision(slot, verdict, lower.name, at_s)

    def _decision(
        self, slot: LoadedSlot, verdict: RollBack | StepDown, to: str | None, at_s: float
    ) -> Decision:
        done_in_s = self._clock.monotonic() - at_s
        return Decision(self.model, slot.slot_id, verdict, to, at_s, done_in_s, slot.row.seen)

    def p95_s(self, now: float) -> float | None:
        """Of what its current rung took lately, by nearest rank: of few, the slowest speaks."""
        with self.lock:
            slot = self.active
            if slot is None:
                raise UnknownModelError(f"model {self.model} has no version loaded yet")
            since = now - slot.release.policy.ladder.window_s
            times = sorted(s for at, s in slot.current.recent if at >= since)
        return times[max(0, -(-len(times) * 95 // 100) - 1)] if times else None

    # -- changes, with the lock held ---------------------------------------------------------------

    def activate(self, slot: LoadedSlot, row: probation.RowState) -> None:
        """Let a slot answer. The device's last inference is the row's: traffic made no pause."""
        last = None if self.active is None else self.active.row.last_at_s
        if row.last_at_s is None and last is not None:
            row = replace(row, last_at_s=last)
        slot.row = row
        slot.since_swap = Histogram()
        slot.told = False
        self.active = slot

    def take_rung(self, slot: LoadedSlot, rung: str) -> None:
        """Let a rung answer; the row of the old one says nothing about it."""
        slot.rung = rung
        chosen = slot.rungs[rung]
        chosen.skip_until = 0.0
        chosen.recent.clear()
        # One that was to be freed, but still has users, is wanted again.
        chosen.retired = False
        slot.row = probation.on_rung_change(slot.row)
        slot.told = False

    def retire(self, rung: LoadedRung) -> Backend | None:
        """No request takes this rung any more; gives the backend to close when none has it."""
        rung.retired = True
        return self._closable(rung)

    def _closable(self, rung: LoadedRung) -> Backend | None:
        if not rung.retired or rung.in_flight or rung.backend is None:
            return None
        backend, rung.backend = rung.backend, None
        rung.retired = False
        return backend

    # -- counters ----------------------------------------------------------------------------------

    def _count(
        self, slot: LoadedSlot, rung: LoadedRung, sample: ServiceSample, queue_s: float
    ) -> None:
        digest = rung.spec.target.digest if rung.spec.target is not None else _NO_DIGEST
        key = (slot.release.version, rung.spec.name, digest)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally()
        tally.queue_age_max_s = max(tally.queue_age_max_s, queue_s)
        short = sample.ok and sample.service_s <= _QUICK_S
        rung.quick = rung.quick + 1 if short else 0
        if not sample.ok:
            tally.errors += 1
            return
        tally.service.add(sample.service_s)
        tally.non_finite += 1 if sample.non_finite else 0
        slot.since_swap.add(sample.service_s)
        rung.recent.append((sample.at_s, sample.service_s))

    def take_windows(self) -> list[RungWindow]:
        """All tallies, which start anew."""
        with self.lock:
            taken, self._tallies = self._tallies, {}
            windows = self._windows(taken)
            for window in windows:
                total = self._totals.pop((window.version, window.rung), None)
                self._totals[window.version, window.rung] = _sum(total, window)
            while len(self._totals) > _KEPT_TOTALS:
                del self._totals[next(iter(self._totals))]
        return windows

    def totals(self) -> list[RungWindow]:
        """Sums since the start, without taking anything. The copy is as small as its buckets."""
        with self.lock:
            found = dict(self._totals)
            for window in self._windows(self._tallies):
                key = (window.version, window.rung)
                found[key] = _sum(found.get(key), window)
        return [found[key] for key in sorted(found)]

    def _windows(self, tallies: dict[tuple[str, str, str], Tally]) -> list[RungWindow]:
        return [
            RungWindow(
                self.model, version, rung, digest,
                tally.service, tally.errors, tally.non_finite, tally.queue_age_max_s,
            )
            for (version, rung, digest), tally in sorted(tallies.items())
        ]  # fmt: skip


def _sum(total: RungWindow | None, window: RungWindow) -> RungWindow:
    """Both together, in a histogram of its own."""
    service = Histogram()
    for one in (total, window):
        if one is not None:
            service.merge(one.service)
    if total is None:
        return replace(window, service=service)
    return replace(
        window,
        service=service,
        errors=total.errors + window.errors,
        non_finite=total.non_finite + window.non_finite,
    )


def _preferred(slot: LoadedSlot) -> list[LoadedRung]:
    """The rung it last answered with, then its other local ones, light to heavy."""
    local = slot.local
    first = [r for r in local if r is slot.current]
    return first + [r for r in reversed(local) if r is not slot.current]
