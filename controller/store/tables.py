"""The tables. Constraints name the invariants; what they refuse becomes a named error in ``session``.

Plain SQLAlchemy Core: no ORM, no query, no default that reads a clock or draws an id (callers pass both).
Every key holds ``project`` except the device id, which is unique in the controller.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from controller.store.types import UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

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

project = Table(
    "project",
    metadata,
    Column("project", Text, primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
)

device = Table(
    "device",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("hardware_id", Text, nullable=False, default=""),
    Column("profile", Text),  # matched from capabilities; NULL: none matches
    Column("protocol", Integer, nullable=False, default=1),
    Column("boot_id", Text),  # newest seen
    Column("online", Boolean, nullable=False, default=False),
    Column("last_seen_at", UtcDateTime),
    Column("applied_generation", Integer, nullable=False, default=0),
    Column("status", JSON),  # last telemetry: temperature_c, memory_used_pct, cpu_used_pct, models[] ...
    Column("enrolled_at", UtcDateTime, nullable=False),
    CheckConstraint("state IN ('PENDING','ACTIVE','QUARANTINED','RETIRED')", name="state"),
)

label = Table(
    "label",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", Text, nullable=False),
    PrimaryKeyConstraint("device_id", "name"),
    Index(None, "name", "value", "device_id"),
)

capability = Table(
    "capability",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("reported", JSON, nullable=False),  # domain.device.Capabilities as a dict
    Column("reported_at", UtcDateTime, nullable=False),
)

profile = Table(
    "profile",
    metadata,
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("shipped", Boolean, nullable=False, default=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
    PrimaryKeyConstraint("project", "name"),
)

policy = Table(
    "policy",
    metadata,
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("shipped", Boolean, nullable=False, default=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
    PrimaryKeyConstraint("project", "name"),
)

recipe = Table(
    "recipe",
    metadata,
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("shipped", Boolean, nullable=False, default=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", Text, nullable=False),
    PrimaryKeyConstraint("project", "name"),
)

artifact = Table(
    "artifact",
    metadata,
    Column("project", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("project", "digest"),
    CheckConstraint("length >= 0", name="length"),
)

model = Table(
    "model",
    metadata,
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("project", "name"),
)

version = Table(
    "version",
    metadata,
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("content_digest", Text, nullable=False),  # of variants, labels, params, licence: what "same" means
    Column("signature", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("params", JSON, nullable=False),
    Column("licence", Text, nullable=False, default=""),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    PrimaryKeyConstraint("project", "model", "version"),
    ForeignKeyConstraint(["project", "model"], ["model.project", "model.name"]),
)

variant = Table(
    "variant",
    metadata,
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("position", Integer, nullable=False),  # 0 is the heaviest
    Column("digest", Text, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("format", Text, nullable=False),
    Column("file_name", Text, nullable=False, default=""),
    PrimaryKeyConstraint("project", "model", "version", "variant"),
    ForeignKeyConstraint(
        ["project", "model", "version"], ["version.project", "version.model", "version.version"]
    ),
    ForeignKeyConstraint(["project", "digest"], ["artifact.project", "artifact.digest"]),
)

dataset = Table(
    "dataset",
    metadata,
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),  # of the pushed file
    Column("calibration_digest", Text, nullable=False),
    Column("evaluation_digest", Text, nullable=False),
    Column("facts", JSON, nullable=False),  # rows, calibration_rows, evaluation_rows, sources, classes, shape, dtype
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    PrimaryKeyConstraint("project", "name", "digest"),  # a name may get newer content; the newest counts
    ForeignKeyConstraint(["project", "calibration_digest"], ["artifact.project", "artifact.digest"]),
    ForeignKeyConstraint(["project", "evaluation_digest"], ["artifact.project", "artifact.digest"]),
)

# One compile of one source artifact for one target. Shared by versions and profiles.
build = Table(
    "build",
    metadata,
    Column("build_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("target_key", Text, nullable=False),  # digest of source, recipe, runtime, flavour, dataset
    Column("source_digest", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("recipe_spec", JSON, nullable=False),
    Column("runtime", Text, nullable=False),
    Column("dataset", Text),
    Column("dataset_digest", Text),
    Column("job_id", Text),
    Column("state", Text, nullable=False),  # QUEUED RUNNING COMPILED FAILED
    Column("reason", Text, nullable=False, default=""),
    Column("digest", Text),
    Column("length", BigInteger),
    Column("media_type", Text),
    Column("evidence", JSON),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("project", "target_key"),
    CheckConstraint("state IN ('QUEUED','RUNNING','COMPILED','FAILED')", name="state"),
    CheckConstraint("state <> 'COMPILED' OR digest IS NOT NULL", name="compiled_has_digest"),
)

# The gate of one build for one version and profile.
build_gate = Table(
    "build_gate",
    metadata,
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("build_id", Text),  # NULL: refused before any compile (no dataset, recipe not for this profile)
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("override_reason", Text),
    Column("override_by", Text),
    Column("override_at", UtcDateTime),
    Column("cached", Boolean, nullable=False, default=False),
    Column("updated_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("project", "model", "version", "variant", "recipe", "profile"),
    ForeignKeyConstraint(["build_id"], ["build.build_id"]),
    CheckConstraint(
        "verdict IN ('PENDING','PASSED','REFUSED','FAILED','OVERRIDDEN')", name="verdict"
    ),
    CheckConstraint("verdict <> 'OVERRIDDEN' OR override_reason <> ''", name="override_named"),
)

build_job = Table(
    "build_job",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", Text, nullable=False),  # QUEUED RUNNING DONE FAILED CANCELLED
    Column("attempt", Integer, nullable=False, default=0),
    Column("worker", Text),
    Column("lease", Text),
    Column("lease_until", UtcDateTime),
    Column("progress_pct", Float, nullable=False, default=0),
    Column("step", Text, nullable=False, default=""),
    Column("error", Text, nullable=False, default=""),
    Column("last_lines", JSON),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    CheckConstraint("state IN ('QUEUED','RUNNING','DONE','FAILED','CANCELLED')", name="state"),
    Index(None, "state", "created_at"),
)

rollout = Table(
    "rollout",
    metadata,
    Column("rollout_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("spec", JSON, nullable=False),  # RolloutSpec as a dict, durations in seconds
    Column("policies", JSON, nullable=False),  # snapshot at start: policy name -> spec; what devices get
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
        "phase IN ('PENDING','PROGRESSING','PAUSED','SUCCEEDED','ROLLING_BACK','ROLLED_BACK','FAILED','ABORTED')",
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
    Column("cumulative", Integer, nullable=False),  # cap of exposure while this wave is the newest open one
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
    Index(None, "device_id", "model", "state"),
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

event = Table(
    "event",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("project", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),  # when the controller stored it
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("device_id", Text),
    Column("boot_id", Text),
    Column("seq", Integer),
    Column("model", Text),
    Column("version", Text),
    Column("rollout_id", Text),
    Column("reason", Text, nullable=False, default=""),
    Column("details", JSON, nullable=False),
    UniqueConstraint("device_id", "boot_id", "seq"),
    Index(None, "device_id", "number"),
    Index(None, "rollout_id", "number"),
    sqlite_autoincrement=True,
)

# How far the gapless log of each boot of a device is stored.
device_boot = Table(
    "device_boot",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("counter", Integer, nullable=False),
    Column("last_seq", Integer, nullable=False, default=0),
    Column("first_seen_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("device_id", "boot_id"),
)

# One row per device, model, version, rung and minute.
sample = Table(
    "sample",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("rung", Text, nullable=False),
    Column("minute_at", UtcDateTime, nullable=False),
    Column("build_digest", Text, nullable=False, default=""),
    Column("count", Integer, nullable=False),
    Column("errors", Integer, nullable=False, default=0),
    Column("non_finite", Integer, nullable=False, default=0),
    Column("histogram", JSON, nullable=False),  # {"scale","count","sum_s","zero_count","buckets":{"index":count}}
    Column("last_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("device_id", "model", "version", "rung", "minute_at"),
)

token = Table(
    "token",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("secret_hash", Text, nullable=False, unique=True),
    Column("uses", Integer, nullable=False),
    Column("used", Integer, nullable=False, default=0),
    Column("hardware_id", Text),
    Column("pending", Boolean, nullable=False, default=False),
    Column("labels", JSON, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    CheckConstraint("used >= 0 AND used <= uses", name="uses"),
)

certificate = Table(
    "certificate",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("role", Text, nullable=False),  # device, worker, operator, consumer, server, controller
    Column("name", Text, nullable=False),  # common name
    Column("public_key_digest", Text, nullable=False),
    Column("token_id", Text),
    Column("pem", Text, nullable=False),
    Column("not_before", UtcDateTime, nullable=False),
    Column("not_after", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("revoked_reason", Text, nullable=False, default=""),
    Column("issued_at", UtcDateTime, nullable=False),
    UniqueConstraint("token_id", "public_key_digest"),
    Index(None, "role", "name"),
)

operator = Table(
    "operator",
    metadata,
    Column("name", Text, primary_key=True),  # common names are unique across roles: see certificate
    Column("role", Text, nullable=False),  # operator, consumer, worker
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
)

# What must be told to the world, written in the transaction that decided it.
outbox = Table(
    "outbox",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),  # doorbell, feed, ack, kick
    Column("topic", Text, nullable=False),  # empty for kick
    Column("payload", LargeBinary, nullable=False),
    Column("retain", Boolean, nullable=False, default=False),
    Column("created_at", UtcDateTime, nullable=False),
    sqlite_autoincrement=True,
)
