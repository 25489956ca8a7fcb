"""Tables of who is there and what was said: devices, credentials, events, samples, outbox.

Plain SQLAlchemy Core; see `tables`.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from controller.store.metadata import metadata
from controller.store.types import LongInteger, UtcDateTime

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
    # last telemetry: temperature_c, memory_used_pct, cpu_used_pct, models[] ...
    Column("status", JSON),
    Column("enrolled_at", UtcDateTime, nullable=False),
    CheckConstraint("state IN ('PENDING','ACTIVE','QUARANTINED','RETIRED')", name="state"),
    Index(
        "ix_device_retired",
        "device_id",
        sqlite_where=text("state = 'RETIRED'"),
        postgresql_where=text("state = 'RETIRED'"),
    ),
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

event = Table(
    "event",
    metadata,
    Column("number", LongInteger, primary_key=True, autoincrement=True),
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
    # {"scale","count","sum_s","zero_count","buckets":{"index":count}}
    Column("histogram", JSON, nullable=False),
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
    Column("number", LongInteger, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),  # doorbell, feed, ack, kick
    Column("topic", Text, nullable=False),  # empty for kick
    Column("payload", LargeBinary, nullable=False),
    Column("retain", Boolean, nullable=False, default=False),
    Column("created_at", UtcDateTime, nullable=False),
    sqlite_autoincrement=True,
)
