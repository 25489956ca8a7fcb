"""Measure builds on devices, share engines. Frozen: imports nothing of the product."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: older controllers still run on the result."""
    op.create_table(
        "device_order",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_order")),
    )
    op.create_table(
        "device_role",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("granted_by", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('builder')", name=op.f("ck_device_role_role")),
        sa.PrimaryKeyConstraint("device_id", "role", name=op.f("pk_device_role")),
    )
    op.create_table(
        "engine",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("key_digest", sa.Text(), nullable=False),
        sa.Column("key", sa.JSON(), nullable=False),
        sa.Column("build_digest", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("signatures", sa.JSON(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", "key_digest", name=op.f("pk_engine")),
    )
    with op.batch_alter_table("engine", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_engine_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_engine_digest"), ["digest"], unique=False)

    op.create_table(
        "ladder_choice",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("build_ids", sa.JSON(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("chosen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("chosen_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(
            "project", "model", "version", "profile", name=op.f("pk_ladder_choice")
        ),
    )
    op.create_table(
        "measurement",
        sa.Column("build_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("tuning_id", sa.Text(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("build_id", "device_id", name=op.f("pk_measurement")),
    )
    op.create_table(
        "tuning",
        sa.Column("tuning_id", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("build_ids", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('RUNNING','DONE','CANCELLED','EXPIRED')", name=op.f("ck_tuning_state")
        ),
        sa.PrimaryKeyConstraint("tuning_id", name=op.f("pk_tuning")),
    )
    with op.batch_alter_table("tuning", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_tuning_project_model_version_profile"),
            ["project", "model", "version", "profile"],
            unique=False,
        )
        batch_op.create_index(
            "uq_tuning_running",
            ["project", "model", "version", "profile"],
            unique=True,
            sqlite_where=sa.text("state = 'RUNNING'"),
            postgresql_where=sa.text("state = 'RUNNING'"),
        )

    op.create_table(
        "tuning_device",
        sa.Column("tuning_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("build_ids", sa.JSON(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tuning_id", "device_id", name=op.f("pk_tuning_device")),
    )
    with op.batch_alter_table("tuning_device", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tuning_device_device_id"), ["device_id"], unique=False)


def downgrade() -> None:
    """Back to the revision before; measurements, chosen ladders and shared engines are lost."""
    with op.batch_alter_table("tuning_device", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_tuning_device_device_id"))

    op.drop_table("tuning_device")
    with op.batch_alter_table("tuning", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_tuning_running",
            sqlite_where=sa.text("state = 'RUNNING'"),
            postgresql_where=sa.text("state = 'RUNNING'"),
        )
        batch_op.drop_index(batch_op.f("ix_tuning_project_model_version_profile"))

    op.drop_table("tuning")
    op.drop_table("measurement")
    op.drop_table("ladder_choice")
    with op.batch_alter_table("engine", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_engine_digest"))
        batch_op.drop_index(batch_op.f("ix_engine_device_id"))

    op.drop_table("engine")
    op.drop_table("device_role")
    op.drop_table("device_order")
