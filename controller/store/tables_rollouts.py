"""Tables of what shall run where: rollouts, waves, assignments, desired states.

Plain SQLAlchemy Core; see `tables`.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from controller.store.metadata import metadata
from controller.store.types import UtcDateTime

OPEN_STATES = (
    "PLANNED",
    "OFFERED",
    "DOWNLOADING",
    "VERIFIED",
    "STAGED",
    "ACTIVATED",
    "PROBATION",
    "ROLLING_BACK",
)
_OPEN = "state IN ({})".format(", ".join(f"'{state}'" for state in OPEN_STATES))
# Closed by a device: desired still names what it left, until the tick has seen to it.
_UNSETTLED = "state IN ('ROLLED_BACK','FAILED','REFUSED','SUPERSEDED') AND finished_at IS NULL"
_RETURNING = "state = 'ROLLING_BACK'"

rollout = Table(
    "rollout",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("spec", JSON, nullable=False),  # RolloutSpec as a dict, durations in seconds
    # snapshot at start: policy name -> spec; what devices get
    Column("policies", JSON, nullable=False),
    Column("phase", Text, nullable=False),
    Column("phase_reason", Text, nullable=False, default=""),
    Column("pause_reasons", JSON, nullable=False),
    Column("intent", Text, nullable=False),
    Column("intent_by", Text, nullable=False),
    Column("intent_at", UtcDateTime, nullable=False),
    Column("intent_reason", Text, nullable=False, default=""),
    Column("current_wave", Integer, nullable=False, default=0),  # 0: none open yet
    Column("wake_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("finished_at", UtcDateTime),
    ForeignKeyConstraint(
        ["project", "model", "version"], ["version.project", "version.model", "version.version"]
    ),
    CheckConstraint(
        "phase IN ('PENDING','PROGRESSING','PAUSED','SUCCEEDED',"
        "'ROLLING_BACK','ROLLED_BACK','FAILED','ABORTED')",
        name="phase",
    ),
    CheckConstraint("intent IN ('RUN','PAUSE','ABORT','ROLL_BACK')", name="intent"),
    Index(None, "phase", "wake_at"),
)

wave = Table(
    "wave",
    metadata,
    Column("rollout_id", Text, nullable=False),
    Column("number", Integer, nullable=False),  # 1 is the canary
    Column("entry", Text, nullable=False),  # as typed: "10%"
    # cap of exposure while this wave is the newest open one
    Column("cumulative", Integer, nullable=False),
    Column("opened_at", UtcDateTime),
    Column("soak_started_at", UtcDateTime),
    Column("verdict", Text),
    Column("verdict_reason", Text, nullable=False, default=""),
    Column("evidence", JSON),
    Column("judged_at", UtcDateTime),
    PrimaryKeyConstraint("rollout_id", "number"),
    ForeignKeyConstraint(["rollout_id"], ["rollout.rollout_id"]),
    CheckConstraint(
        "verdict IS NULL OR verdict IN ('PENDING','PASSED','FAILED','INCONCLUSIVE','ERROR')",
        name="verdict",
    ),
)

assignment = Table(
    "assignment",
    metadata,
    Column("rollout_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("position", Integer, nullable=False),  # stable hash order in the selection
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("previous_version", Text),
    Column("previous_entry", JSON),  # of the manifest before the offer: what a rollback restores
    Column("generation", Integer),  # of the last order: with which it was offered or called back
    Column("exposed", Boolean, nullable=False, default=False),  # was ever offered: the ledger
    Column("evidence", JSON),
    Column("baseline", JSON),  # merged histogram of the same device before the offer
    Column("offered_at", UtcDateTime),
    Column("activated_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("updated_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("rollout_id", "device_id"),
    ForeignKeyConstraint(["rollout_id"], ["rollout.rollout_id"]),
    ForeignKeyConstraint(["device_id"], ["device.device_id"]),
    CheckConstraint(
        "state IN ('PLANNED','OFFERED','DOWNLOADING','VERIFIED','STAGED','ACTIVATED','PROBATION',"
        "'COMMITTED','ROLLING_BACK','ROLLED_BACK','WITHDRAWN','REFUSED','FAILED','SUPERSEDED')",
        name="state",
    ),
    CheckConstraint(
        "exposed OR state IN ('PLANNED','WITHDRAWN','REFUSED','SUPERSEDED')", name="ledger"
    ),
    Index(
        "uq_assignment_open",
        "device_id",
        "model",
        unique=True,
        sqlite_where=text(_OPEN),
        postgresql_where=text(_OPEN),
    ),
    Index(None, "rollout_id", "wave", "state"),
    Index(None, "rollout_id", "state", "position"),
    Index(None, "device_id", "model", "state"),
    # What a tick looks for over all rollouts is little of much.
    Index(
        "ix_assignment_unsettled",
        "rollout_id",
        sqlite_where=text(_UNSETTLED),
        postgresql_where=text(_UNSETTLED),
    ),
    Index(
        "ix_assignment_returning",
        "device_id",
        sqlite_where=text(_RETURNING),
        postgresql_where=text(_RETURNING),
    ),
)

# Devices of a rollout by wave and state: written by triggers on `assignment`, by nobody else.
assignment_count = Table(
    "assignment_count",
    metadata,
    Column("rollout_id", Text, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("exposed", Boolean, nullable=False),
    Column("activated", Boolean, nullable=False),
    Column("devices", Integer, nullable=False),
    PrimaryKeyConstraint("rollout_id", "wave", "state", "exposed", "activated"),
    CheckConstraint("devices >= 0", name="devices"),
)

# What each device should run, as signed.
desired = Table(
    "desired",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("models", JSON, nullable=False),  # model -> the entry of the manifest
    Column("manifest", LargeBinary, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("signatures", JSON, nullable=False),  # [{"key_id","signature" (base64)}]
    Column("updated_at", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["device_id"], ["device.device_id"]),
    CheckConstraint("generation >= 1", name="generation"),
)
