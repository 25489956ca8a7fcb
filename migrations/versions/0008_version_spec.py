"""Keep what was pushed beside a version's files. Frozen: imports nothing of the product."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: older controllers still run on the result. NULL: nothing was pushed beside them."""
    with op.batch_alter_table("version") as table:
        table.add_column(sa.Column("spec", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Back to the revision before; versions with a spec could not be built as they were."""
    with op.batch_alter_table("version") as table:
        table.drop_column("spec")
