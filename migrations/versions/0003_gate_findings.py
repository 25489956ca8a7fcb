"""Keep all findings of a gate. Frozen: imports nothing of the product."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: older controllers still run on the result. NULL: judged before this was kept."""
    with op.batch_alter_table("build_gate") as table:
        table.add_column(sa.Column("findings", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Back to the revision before."""
    with op.batch_alter_table("build_gate") as table:
        table.drop_column("findings")
