"""Keep what a version is for. Frozen: imports nothing of the product."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand: older controllers still run on the result. NULL is classification."""
    op.add_column("version", sa.Column("task", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Back to the revision before; what versions are for is lost."""
    op.drop_column("version", "task")
