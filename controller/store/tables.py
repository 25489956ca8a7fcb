"""All tables. Constraints name the invariants; what they refuse becomes a named error in `session`.

Plain SQLAlchemy Core: no ORM, no query, no default that reads a clock or draws an id (callers
pass both). Every key holds `project` except the device id, which is unique in the controller.
"""

from controller.store.metadata import metadata
from controller.store.tables_catalogue import (
    artifact,
    build,
    build_gate,
    build_job,
    dataset,
    device_group,
    model,
    policy,
    profile,
    project,
    recipe,
    variant,
    version,
)
from controller.store.tables_fleet import (
    capability,
    certificate,
    device,
    device_boot,
    event,
    label,
    operator,
    outbox,
    sample,
    token,
)
from controller.store.tables_rollouts import (
    OPEN_STATES,
    assignment,
    assignment_count,
    desired,
    rollout,
    wave,
)
from controller.store.tables_tuning import (
    device_order,
    device_role,
    engine,
    ladder_choice,
    measurement,
    tuning,
    tuning_device,
)

__all__ = [
    "OPEN_STATES",
    "artifact",
    "assignment",
    "assignment_count",
    "build",
    "build_gate",
    "build_job",
    "capability",
    "certificate",
    "dataset",
    "desired",
    "device",
    "device_boot",
    "device_group",
    "device_order",
    "device_role",
    "engine",
    "event",
    "label",
    "ladder_choice",
    "measurement",
    "metadata",
    "model",
    "operator",
    "outbox",
    "policy",
    "profile",
    "project",
    "recipe",
    "rollout",
    "sample",
    "token",
    "tuning",
    "tuning_device",
    "variant",
    "version",
    "wave",
]
