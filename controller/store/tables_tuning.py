"""Tables of what devices do beside serving: measuring builds, and compiling for others.

Plain SQLAlchemy Core; see `tables`.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
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

_RUNNING = text("state = 'RUNNING'")

# One measurement of the builds of a version on some devices of a profile.
tuning = Table(
    "tuning",
    metadata,
    Column("tuning_id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("selector", Text, nullable=False, default=""),
    Column("state", Text, nullable=False),
    Column("options", JSON, nullable=False),  # warmup_s, soak_s, measure_s, heat_limit_c
    Column("build_ids", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    CheckConstraint("state IN ('RUNNING','DONE','CANCELLED','EXPIRED')", name="state"),
    Index(None, "project", "model", "version", "profile"),
    Index(
        "uq_tuning_running", "project", "model", "version", "profile",
        unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING,
    ),
)  # fmt: skip

tuning_device = Table(
    "tuning_device",
    metadata,
    Column("tuning_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("build_ids", JSON, nullable=False),  # still to be measured there
    Column("total", Integer, nullable=False),
    Column("note", Text, nullable=False, default=""),  # its last word
    Column("updated_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("tuning_id", "device_id"),
    Index(None, "device_id"),
)

# The newest word of a device on a build.
measurement = Table(
    "measurement",
    metadata,
    Column("build_id", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("tuning_id", Text, nullable=False),
    Column("figures", JSON, nullable=False),  # domain.tournament.Measured as a dict
    Column("measured_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("build_id", "device_id"),
)

# A ladder that a person chose for a version and profile; without one: the fastest of each variant.
ladder_choice = Table(
    "ladder_choice",
    metadata,
    Column("project", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("build_ids", JSON, nullable=False),  # heavy to light
    Column("basis", Text, nullable=False),  # on what it was measured
    Column("chosen_at", UtcDateTime, nullable=False),
    Column("chosen_by", Text, nullable=False),
    PrimaryKeyConstraint("project", "model", "version", "profile"),
)

# How many orders a device was given; each is another number.
device_order = Table(
    "device_order",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

device_role = Table(
    "device_role",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("granted_at", UtcDateTime, nullable=False),
    Column("granted_by", Text, nullable=False),
    PrimaryKeyConstraint("device_id", "role"),
    CheckConstraint("role IN ('builder')", name="role"),
)

# What a builder compiled, for devices that are its like in all that the key holds.
engine = Table(
    "engine",
    metadata,
    Column("project", Text, nullable=False),
    Column("key_digest", Text, nullable=False),
    Column("key", JSON, nullable=False),
    Column("build_digest", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("statement", LargeBinary, nullable=False),  # exactly the signed bytes
    Column("signatures", JSON, nullable=False),
    Column("published_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("project", "key_digest"),
    Index(None, "digest"),
    Index(None, "device_id"),
)
