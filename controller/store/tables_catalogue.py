"""Tables of what is pushed, built and applied: artifacts, versions, datasets, objects, builds.

Plain SQLAlchemy Core; see `tables`.
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
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from controller.store.metadata import metadata
from controller.store.types import UtcDateTime

project = Table(
    "project",
    metadata,
    Column("project", Text, primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
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
    # of variants, labels, params, licence, spec: what "same" means
    Column("content_digest", Text, nullable=False),
    Column("signature", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("params", JSON, nullable=False),
    Column("task", JSON),  # kind, post, metric; NULL: classification
    Column("licence", Text, nullable=False, default=""),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("spec", JSON),  # what files do not say, and what goes around their graphs
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
    # rows, calibration_rows, evaluation_rows, sources, classes, shape, dtype
    Column("facts", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    # a name may get newer content; the newest counts
    PrimaryKeyConstraint("project", "name", "digest"),
    ForeignKeyConstraint(
        ["project", "calibration_digest"], ["artifact.project", "artifact.digest"]
    ),
    ForeignKeyConstraint(["project", "evaluation_digest"], ["artifact.project", "artifact.digest"]),
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

device_group = Table(
    "device_group",
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

# One compile of one source artifact for one target. Shared by versions and profiles.
build = Table(
    "build",
    metadata,
    Column("build_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    # digest of source, recipe, runtime, flavour, dataset
    Column("target_key", Text, nullable=False),
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
    # NULL: refused before any compile (no dataset, recipe not for this profile)
    Column("build_id", Text),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("override_reason", Text),
    Column("override_by", Text),
    Column("override_at", UtcDateTime),
    Column("cached", Boolean, nullable=False, default=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # [{ok, text}]: all that was looked at. NULL: judged before this was kept
    Column("findings", JSON),
    PrimaryKeyConstraint("project", "model", "version", "variant", "recipe", "profile"),
    ForeignKeyConstraint(["build_id"], ["build.build_id"]),
    CheckConstraint(
        "verdict IN ('PENDING','PASSED','REFUSED','FAILED','OVERRIDDEN')", name="verdict"
    ),
    CheckConstraint(
        "verdict <> 'OVERRIDDEN' OR coalesce(override_reason, '') <> ''", name="override_named"
    ),
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
