"""Answers one request: queue, run, sample, rollback rule, and who else can when it failed.

Refuses to lose a request: what failed on a remote, on a new version or on a rung is tried again by
who is left. Knows nothing of loading; which slot answers is `served`'s.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.domain.batching import NO_BATCHES
from agent.domain.desired import RungKind
from agent.domain.ladder import Pressure, is_pressured
from agent.domain.policy import Policy
from agent.domain.ports import Decision, InferResult, Request
from agent.domain.probation import ServiceSample
from agent.domain.tensor import Tensor, rows_of
from agent.errors import AgentError, InferenceError
from agent.runtime.backend import Backend
from agent.runtime.finite import all_finite
from agent.runtime.gate import Gate
from agent.runtime.joining import Feed, join, split
from agent.runtime.running import Running
from agent.runtime.served import ServedModel
from agent.runtime.slot import LoadedRung, LoadedSlot, check_outputs, pick_outputs

# Below this share of a CPU an inference was waiting for one, not working.
STARVED_CPU_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Ran:
    """One call of one backend: its outputs, or the error; seconds of wall and CPU time."""

    outputs: dict[str, Tensor]
    error: str
    ended_s: float
    service_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that were run at once: `share` is what one row takes alone of what they took.

    `waited_s` they waited for a place, all of them alike.
    """

    slot: LoadedSlot
    rung: LoadedRung
    ran: Ran
    share: float
    rows: Sequence[int]
    parts: Sequence[dict[str, Tensor]]
    waited_s: float

    def hold_against(self, alone: Sequence[InferResult | AgentError]) -> None:
        """Let the rung answer batches, or never, by what each request got alone."""
        by = (self.slot.release.version, self.rung.spec.name)
        results = [one for one in alone if isinstance(one, InferResult)]
        if any((one.version, one.rung) != by for one in results):
            return  # somebody else answers by now
        outputs, batches = [one.outputs for one in results], self.rung.batches
        if len(results) < len(alone) or not batches.proof.look(self.parts, outputs):
            batches.curve = NO_BATCHES


class Answerer:
    """Runs requests on served models and tells what was decided on the way."""

    def __init__(
        self,
        on_decision: Callable[[Decision], None],
        thread_cpu: Callable[[], float],
        running: Running,
    ) -> None:
        self._thread_cpu = thread_cpu
        self._on_decision = on_decision
        self._pressure = Pressure()
        self._unstarved = Pressure()
        self._running = running

    def feel(self, pressure: Pressure) -> None:
        """Mark the next inferences by these readings."""
        self._pressure = pressure
        # Whether an inference was starved is measured at it, not guessed from the host's load.
        self._unstarved = replace(pressure, starved=None)

    def answer(
        self,
        served: ServedModel,
        feed: Mapping[str, Tensor],
        outputs: Sequence[str],
        waited_s: float,
    ) -> InferResult:
        """Answer a request that fits the signature; UnavailableError, InferenceError."""
        gate = served.gate()
        return self._answer(served, gate, feed, outputs, gate.enter(waited_s))

    def answer_now(
        self, served: ServedModel, feed: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> InferResult | None:
        """`answer` where that is quick; None: nothing was done."""
        gate = served.quick_gate()
        if gate is None:
            return None
        return self._answer(served, gate, feed, outputs, gate.enter())

    def answer_together(
        self, served: ServedModel, feeds: Sequence[Feed], requests: Sequence[Request]
    ) -> list[InferResult | AgentError]:
        """Answer requests as one batch if that pays, else one by one."""
        batch = self._run_batch(served, feeds, requests) if len(feeds) > 1 else None
        if batch is not None and batch.rung.batches.proof.is_given:
            return self._told(served, batch, requests)
        found = [
            self._one_of(served, feed, request)
            for feed, request in zip(feeds, requests, strict=True)
        ]
        if batch is not None:
            batch.hold_against(found)
        return found

    def _one_of(
        self, served: ServedModel, feed: Feed, request: Request
    ) -> InferResult | AgentError:
        try:
            return self.answer(served, feed, request.outputs, request.waited_s)
        except AgentError as error:
            return error

    def _run_batch(
        self, served: ServedModel, feeds: Sequence[Feed], requests: Sequence[Request]
    ) -> Batch | None:
        """None where the batch did not come about or failed; nothing is counted here."""
        rows = [next(iter(feed.values())).shape[0] for feed in feeds]
        gate = served.gate()
        longest_s = max(request.waited_s for request in requests)
        waited_s = gate.enter(longest_s) - longest_s
        try:
            slot, rung, backend = served.enter()
            share = rung.batches.curve.alone(sum(rows))
            if share is None:  # it is another rung by now, or another version
                served.leave(rung)
                return None
            ran = self._run(served, slot, rung, backend, join(feeds))
            if ran.error:
                rung.batches.curve = NO_BATCHES
                return None
            return Batch(slot, rung, ran, share, rows, split(ran.outputs, rows), waited_s)
        finally:
            gate.leave()

    def _told(
        self, served: ServedModel, batch: Batch, requests: Sequence[Request]
    ) -> list[InferResult | AgentError]:
        """The answers of a batch, each counted with what it would have taken alone.

        Batches say nothing else of a version: a queue must not make a good one look slow.
        """
        found: list[InferResult | AgentError] = []
        ran, slot = batch.ran, batch.slot
        alone = replace(ran, service_s=ran.service_s * batch.share, cpu_s=ran.cpu_s * batch.share)
        for part, request, count in zip(batch.parts, requests, batch.rows, strict=True):
            queue_s = request.waited_s + batch.waited_s
            one = replace(alone, outputs=part)
            self._tell(self._note(served, slot, batch.rung, one, queue_s))
            picked = pick_outputs(slot.release.signature, part, request.outputs)
            version, rung = slot.release.version, batch.rung.spec.name
            first = 0 if found else 1
            found.append(InferResult(picked, version, rung, ran.service_s, queue_s, count, first))
        return found

    def _answer(
        self,
        served: ServedModel,
        gate: Gate,
        feed: Mapping[str, Tensor],
        outputs: Sequence[str],
        queue_s: float,
    ) -> InferResult:
        """With a place behind the gate, which is given back."""
        try:
            # Only now: a swap while the request waited is a swap for it, too.
            slot, rung, backend = served.enter()
            ran = self._run(served, slot, rung, backend, feed)
            self._tell(self._note(served, slot, rung, ran, queue_s))
        finally:
            gate.leave()
        if ran.error:
            slot, rung, ran = self._retry(served, slot, rung, feed, ran)
        picked = pick_outputs(slot.release.signature, ran.outputs, outputs)
        return InferResult(
            picked,
            slot.release.version,
            rung.spec.name,
            ran.service_s,
            queue_s,
            rows_of(slot.release.signature, feed),
        )

    def _run(
        self,
        served: ServedModel,
        slot: LoadedSlot,
        rung: LoadedRung,
        backend: Backend,
        feed: Mapping[str, Tensor],
    ) -> Ran:
        outputs: dict[str, Tensor] = {}
        error = ""
        cpu_began = self._thread_cpu()
        began = self._running.enter(served.model, rung.spec.name, backend)
        try:
            outputs = backend.run(feed)
        except Exception as failure:  # noqa: BLE001 - a runtime may raise anything: it is the sample
            error = str(failure).strip().partition("\n")[0] or type(failure).__name__
        finally:
            ended, cpu_ended = self._running.leave(), self._thread_cpu() + _elsewhere_s(backend)
            served.leave(rung)
        if not error:
            try:
                check_outputs(slot.release.signature, outputs, feed)
            except InferenceError as failure:
                error = failure.message
        return Ran(outputs, error, ended, ended - began, cpu_ended - cpu_began)

    def _note(
        self, served: ServedModel, slot: LoadedSlot, rung: LoadedRung, ran: Ran, queue_s: float
    ) -> Decision | None:
        policy = slot.release.policy
        starved = rung.spec.kind is RungKind.LOCAL and _was_starved(ran, policy)
        sample = ServiceSample(
            at_s=ran.ended_s,
            service_s=ran.service_s,
            ok=not ran.error,
            non_finite=not ran.error and not all_finite(ran.outputs.values()),
            pressured=starved or is_pressured(self._unstarved, policy.ladder),
        )
        return served.note(slot, rung, sample, queue_s, self._pressure)

    def _retry(
        self,
        served: ServedModel,
        slot: LoadedSlot,
        rung: LoadedRung,
        feed: Mapping[str, Tensor],
        failed: Ran,
    ) -> tuple[LoadedSlot, LoadedRung, Ran]:
        """Answer a request that failed by who else can; InferenceError when nobody could.

        A version on trial is left at once when the previous one answers, or when there is none. If
        the previous one fails as well it may be the request: then only the row counts.
        """
        local = served.gates[RungKind.LOCAL]
        others = 0
        for other_slot, other in served.alternatives(slot, rung):
            others += 1
            local.enter()
            try:
                backend = served.enter_rung(other_slot, other)
                if backend is None:
                    continue
                ran = self._run(served, other_slot, other, backend, feed)
                self._tell(self._note(served, other_slot, other, ran, 0.0))
            finally:
                local.leave()
            if not ran.error:
                if rung.spec.kind is RungKind.LOCAL and (
                    other_slot is not slot or not slot.fallback
                ):
                    self._tell(served.crashed(slot, failed.error, ran.ended_s))
                return other_slot, other, ran
        if not others and rung.spec.kind is RungKind.LOCAL:
            self._tell(served.crashed(slot, failed.error, failed.ended_s))
        raise InferenceError(
            f"model {served.model}:{slot.release.version} rung {rung.spec.name!r} failed:"
            f" {failed.error}"
        )

    def _tell(self, decision: Decision | None) -> None:
        if decision is not None:
            self._on_decision(decision)


def _elsewhere_s(backend: Backend) -> float:
    """See `backend.Elsewhere`; no isinstance, which is slow for protocols."""
    spent_s = getattr(backend, "spent_s", None)
    return 0.0 if spent_s is None else float(spent_s(threading.get_ident()))


def _was_starved(ran: Ran, policy: Policy) -> bool:
    """Whether a slow inference was only waiting for a CPU.

    A fast one proves itself all the same, and one whose own CPU time is over the threshold would
    have been slow with a CPU for itself.
    """
    return (
        ran.service_s > policy.slow_threshold_s >= ran.cpu_s
        and ran.cpu_s < STARVED_CPU_SHARE * ran.service_s
    )
