"""Rows for tests of the store: a version, a device, a rollout. Asserts nothing."""

import hashlib
from datetime import UTC, datetime, timedelta

from controller.domain.rollout import AssignmentState, Intent, Phase
from controller.store.artifacts import record_artifact
from controller.store.assignments import NewAssignment, insert_assignments
from controller.store.builds import BuildRow, GateKey, GateRow
from controller.store.devices import insert_device
from controller.store.models import VariantRow, VersionRow, add_version
from controller.store.rollouts import RolloutRow, insert_rollout
from controller.store.session import Connection

PROJECT = "default"
NOW = datetime(2026, 11, 24, 9, 14, 5, 123456, tzinfo=UTC)


def after(seconds: float) -> datetime:
    """So many seconds after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def digest(text: str) -> str:
    """A digest that looks like one; the same for the same text."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def signature_json() -> dict[str, object]:
    """The signature of a small classifier of digits."""
    return {
        "inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "scores", "dtype": "FP32", "shape": ["batch", 10]}],
    }


def seed_version(
    conn: Connection,
    model: str = "digits",
    version: str = "1.0.0",
    at: datetime = NOW,
    signature: dict[str, object] | None = None,
) -> VersionRow:
    """A version with a heavy and a light variant."""
    variants = tuple(
        VariantRow(name, position, digest(f"{model}{version}{name}"), 1000, "onnx", f"{name}.onnx")
        for position, name in enumerate(("heavy", "light"))
    )
    for one in variants:
        record_artifact(conn, PROJECT, one.digest, one.length, at)
    row = VersionRow(
        model=model,
        version=version,
        content_digest=digest(f"{model}{version}"),
        signature=signature or signature_json(),
        labels=[str(number) for number in range(10)],
        params={"threshold": 0.5},
        licence="Apache-2.0",
        created_at=at,
        created_by="ana",
        variants=variants,
    )
    add_version(conn, PROJECT, row)
    return row


def seed_device(conn: Connection, device_id: str = "pi-1", state: str = "ACTIVE") -> str:
    """An enrolled device."""
    insert_device(conn, device_id, PROJECT, state, f"hw-{device_id}", 1, NOW)
    return device_id


def rollout_row(rollout_id: str, version: str, at: datetime = NOW) -> RolloutRow:
    """A rollout of digits that was just made."""
    return RolloutRow(
        rollout_id=rollout_id,
        project=PROJECT,
        model="digits",
        version=version,
        spec={"selector": "all", "waves": ["1", "100%"]},
        policies={"default": {"slow_count": 5}},
        phase=Phase.PENDING,
        phase_reason="",
        pause_reasons=(),
        intent=Intent.RUN,
        intent_by="ana",
        intent_at=at,
        intent_reason="",
        current_wave=0,
        wake_at=None,
        created_at=at,
        created_by="ana",
        finished_at=None,
    )


def seed_rollout(
    conn: Connection, rollout_id: str = "r-222222", version: str = "1.0.0", at: datetime = NOW
) -> str:
    """A rollout of digits; the version must be there."""
    insert_rollout(conn, rollout_row(rollout_id, version, at))
    return rollout_id


def seed_assignment(
    conn: Connection,
    rollout_id: str,
    device_id: str,
    version: str = "1.0.0",
    position: int = 0,
    state: AssignmentState = AssignmentState.PLANNED,
) -> None:
    """A device of the rollout's first wave."""
    new = NewAssignment(device_id, 1, position, state, "", None, 2000)
    insert_assignments(conn, rollout_id, "digits", version, [new], NOW)


def build_row(build_id: str, source: str, recipe: str = "onnxruntime-fp32") -> BuildRow:
    """A build that waits."""
    return BuildRow(
        build_id=build_id,
        target_key=digest(f"{source}{recipe}"),
        source_digest=source,
        recipe=recipe,
        recipe_spec={"runtime": "onnxruntime", "precision": "fp32"},
        runtime="onnxruntime",
        dataset=None,
        dataset_digest=None,
        job_id=None,
        state="QUEUED",
        reason="",
        digest=None,
        length=None,
        media_type=None,
        evidence=None,
    )


def gate_row(
    build_id: str | None, variant: str = "heavy", verdict: str = "PENDING", profile: str = "pi"
) -> GateRow:
    """The gate of a build of digits:1.0.0."""
    key = GateKey("digits", "1.0.0", variant, "onnxruntime-fp32", profile)
    return GateRow(key, build_id, verdict, "", None, None, None, False, NOW)
