"""Count events and outbox beyond 31 bits. Frozen: imports nothing of the product."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = ("event", "outbox")


def upgrade() -> None:
    """Expand: older controllers still run on the result. SQLite has 64 bits already."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in TABLES:
        op.alter_column(table, "number", type_=sa.BigInteger(), existing_type=sa.Integer())
        # The sequence has a type, and an end, of its own.
        op.execute(f"ALTER SEQUENCE {table}_number_seq AS bigint")


def downgrade() -> None:
    """Back to the revision before; fails, with nothing done, where numbers are longer already."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in TABLES:
        op.alter_column(table, "number", type_=sa.Integer(), existing_type=sa.BigInteger())
        op.execute(f"ALTER SEQUENCE {table}_number_seq AS integer")
