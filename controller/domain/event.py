"""Kinds of events: what the controller stores, and what agents of this release tell.

Refuses nothing: a newer agent may tell more, and what was stored once is known from then on.
"""

from controller.domain.rollout import AssignmentState

_CONTROLLER = (
    "assignment_called_back",
    "assignment_offered",
    "build_cancelled",
    "build_failed",
    "build_job_lost",
    "build_overridden",
    "build_passed",
    "build_refused",
    "build_requested",
    "certificate_issued",
    "certificate_renewed",
    "certificate_revoked",
    "dataset_pushed",
    "device_accepted",
    "device_enrolled",
    "device_labelled",
    "device_offline",
    "device_online",
    "device_quarantined",
    "device_retired",
    "device_role_granted",
    "device_role_taken",
    "engine_published",
    "first_wave_override",
    "ladder_chosen",
    "missing_rung_override",
    "model_pushed",
    "object_applied",
    "profile_changed",
    "reports_forgotten",  # acknowledged once, and not in this database, which was restored
    "rolled_back_override",
    "rollout_intent",
    "rollout_phase",
    "rollout_started",
    "rollout_supersedes",
    "signature_override",
    "token_created",
    "token_revoked",
    "tuning_cancelled",
    "tuning_finished",
    "tuning_started",
    "wave_judged",
    "wave_opened",
)
_DEVICES = (
    "boot",
    "build_measured",
    "cannot_return",  # a committed version is slow or bad, and there is none to go back to
    "clock_unsure",
    "device_event",  # one whose kind was no name
    "engine_refused",  # another device's, not signed as it must be or for another key
    "engine_taken",  # compiled by a builder, not here
    "generation_applied",
    "hung",
    "manifest_refused",
    "orders_refused",
    "recovered",  # from that
    "report_ignored",
    "report_lost",
    "rolled_back",
    "rung_changed",
    "rung_failed",
    "store_repaired",
    "tuning_waits",  # the device is not idle, or not cool
)
KINDS = frozenset(
    (*_CONTROLLER, *_DEVICES, *(f"assignment_{state.value.lower()}" for state in AssignmentState))
)
