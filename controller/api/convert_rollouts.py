"""Wire and values of rollouts. Decides nothing; an unspecified intent is an error."""

from collections.abc import Iterable

from controller.api.convert_device import time_to_wire
from controller.domain.compatibility import tensors_text
from controller.domain.rollout import Intent, Phase, RolloutSpec
from controller.errors import InvalidError
from controller.services.explain import Fact
from controller.services.rollout_explanations import RolloutExplanation
from controller.services.rollout_plans import PlanView
from controller.services.rollout_views import AssignmentView, RolloutView, WaveView
from lighterman.v1 import fleet_pb2

_PHASES = {phase: fleet_pb2.RolloutPhase.Value(f"ROLLOUT_PHASE_{phase.value}") for phase in Phase}
_INTENTS = {
    intent: fleet_pb2.RolloutIntent.Value(f"ROLLOUT_INTENT_{intent.value}") for intent in Intent
}
_INTENTS_BACK: dict[int, Intent] = {int(number): intent for intent, number in _INTENTS.items()}


def spec_from_wire(spec: fleet_pb2.RolloutSpec) -> dict[str, object]:
    """What a person asks for, to be checked by the service."""
    return {
        "model": spec.model,
        "version": spec.version,
        "selector": spec.selector,
        "waves": list(spec.waves),
        "soak_s": spec.soak_s,
        "min_samples": spec.min_samples,
        "override_first_wave_reason": spec.override_first_wave_reason,
        "policy": spec.policy,
        "deadline_s": spec.deadline_s,
        "override_rolled_back_reason": spec.override_rolled_back_reason,
        "override_signature_reason": spec.override_signature_reason,
        "override_missing_rung_reason": spec.override_missing_rung_reason,
    }


def intent_from_wire(number: int) -> Intent:
    """The intent, or InvalidError where none was named."""
    if number not in _INTENTS_BACK:
        raise InvalidError("the intent is not set", "pause, resume, abort or rollback")
    return _INTENTS_BACK[number]


def plan_message(view: PlanView) -> fleet_pb2.RolloutPlan:
    """A plan for the wire."""
    return fleet_pb2.RolloutPlan(
        devices=view.devices,
        profiles=dict(view.profiles),
        waves=[
            fleet_pb2.PlannedWave(
                number=wave.number,
                entry=wave.entry,
                devices=wave.devices,
                cumulative=wave.cumulative,
            )
            for wave in view.waves
        ],
        unready=[
            fleet_pb2.UnreadyDevice(device_id=one.device_id, profile=one.profile, reason=one.reason)
            for one in view.unready
        ],
        bytes=view.bytes,
        notes=view.notes,
        from_versions=dict(view.from_versions),
        signature_changes=[
            fleet_pb2.SignatureChange(
                from_version=one.from_version,
                devices=one.devices,
                side=one.change.side.value,
                before=tensors_text(one.change.before),
                after=tensors_text(one.change.after),
                text=one.text,
            )
            for one in view.signature_changes
        ],
        missing_rungs=[
            fleet_pb2.MissingRung(
                profile=one.profile,
                rung=one.rung,
                devices=one.devices,
                reason=one.reason,
                command=one.command,
            )
            for one in view.missing_rungs
        ],
        needs_overrides=view.needs_overrides,
    )


def rollout_message(view: RolloutView) -> fleet_pb2.Rollout:
    """A rollout for the wire."""
    return fleet_pb2.Rollout(
        rollout_id=view.rollout_id,
        spec=_spec_message(view.spec),
        phase=_PHASES[view.phase],
        phase_reason=view.phase_reason,
        intent=_INTENTS[view.intent],
        intent_by=view.intent_by,
        created_at=time_to_wire(view.created_at),
        created_by=view.created_by,
        finished_at=time_to_wire(view.finished_at),
        waves=[_wave_message(wave) for wave in view.waves],
        devices=view.devices,
        exposed=view.exposed,
        exposed_cap=view.exposed_cap,
        current_wave=view.current_wave,
        pause_reasons=view.pause_reasons,
        from_versions=dict(view.from_versions),
        bytes_sent=view.bytes_sent,
        bytes_total=view.bytes_total,
        offline=view.offline,
    )


def explanation_message(found: RolloutExplanation) -> fleet_pb2.RolloutExplanation:
    """An explanation for the wire."""
    return fleet_pb2.RolloutExplanation(
        rollout=rollout_message(found.rollout),
        facts=fact_messages(found.facts),
        assignments=[_assignment_message(one) for one in found.assignments],
    )


def fact_messages(facts: Iterable[Fact]) -> list[fleet_pb2.Fact]:
    """Facts for the wire; also those of a device."""
    return [
        fleet_pb2.Fact(topic=one.topic, text=one.text, event_ids=one.event_ids) for one in facts
    ]


def _spec_message(spec: RolloutSpec) -> fleet_pb2.RolloutSpec:
    return fleet_pb2.RolloutSpec(
        model=spec.model,
        version=spec.version,
        selector=spec.selector,
        waves=spec.waves,
        soak_s=spec.soak_s,
        min_samples=spec.min_samples,
        override_first_wave_reason=spec.override_first_wave_reason,
        policy=spec.policy,
        deadline_s=spec.deadline_s,
        override_rolled_back_reason=spec.override_rolled_back_reason,
        override_signature_reason=spec.override_signature_reason,
        override_missing_rung_reason=spec.override_missing_rung_reason,
    )


def _wave_message(wave: WaveView) -> fleet_pb2.WaveStatus:
    return fleet_pb2.WaveStatus(
        number=wave.number,
        entry=wave.entry,
        devices=wave.devices,
        cumulative=wave.cumulative,
        states=dict(wave.states),
        verdict=wave.verdict,
        verdict_reason=wave.verdict_reason,
        samples=wave.samples,
        samples_needed=wave.samples_needed,
        p95_before_s=wave.p95_before_s,
        p95_after_s=wave.p95_after_s,
        errors=wave.errors,
        opened_at=time_to_wire(wave.opened_at),
        next_look_at=time_to_wire(wave.next_look_at),
    )


def _assignment_message(one: AssignmentView) -> fleet_pb2.AssignmentView:
    return fleet_pb2.AssignmentView(
        device_id=one.device_id,
        wave=one.wave,
        state=one.state.value,
        reason=one.reason,
        updated_at=time_to_wire(one.updated_at),
        previous_version=one.previous_version,
        inferences=one.inferences,
    )
