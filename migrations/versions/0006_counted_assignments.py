"""Count assignments by wave and state as they change. Frozen: imports nothing of the product.

A migration that makes the table `assignment` anew (SQLite's way to alter one) drops its triggers:
it has to put them back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KEY = "rollout_id, wave, state, exposed, activated"
_INDEXES = (
    ("ix_assignment_unsettled", "assignment", "rollout_id",
     "state IN ('ROLLED_BACK','FAILED','REFUSED','SUPERSEDED') AND finished_at IS NULL"),
    ("ix_assignment_returning", "assignment", "device_id", "state = 'ROLLING_BACK'"),
    ("ix_device_retired", "device", "device_id", "state = 'RETIRED'"),
)  # fmt: skip


def upgrade() -> None:
    """Expand: older controllers still run on the result."""
    op.create_table(
        "assignment_count",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("exposed", sa.Boolean(), nullable=False),
        sa.Column("activated", sa.Boolean(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.CheckConstraint("devices >= 0", name=op.f("ck_assignment_count_devices")),
        sa.PrimaryKeyConstraint(
            "rollout_id", "wave", "state", "exposed", "activated",
            name=op.f("pk_assignment_count"),
        ),
    )  # fmt: skip
    op.execute(
        f"INSERT INTO assignment_count ({_KEY}, devices) "
        "SELECT rollout_id, wave, state, exposed, activated_at IS NOT NULL, count(*) "
        "FROM assignment GROUP BY rollout_id, wave, state, exposed, activated_at IS NOT NULL"
    )
    if op.get_bind().dialect.name == "postgresql":
        _count_in_postgresql()
    else:
        _count_in_sqlite()
    op.create_index(
        op.f("ix_assignment_rollout_id_state_position"),
        "assignment",
        ["rollout_id", "state", "position"],
    )
    for name, table, column, where in _INDEXES:
        condition = sa.text(where)
        op.create_index(name, table, [column], sqlite_where=condition, postgresql_where=condition)


def _one_more(row: str) -> str:
    return (
        f"INSERT INTO assignment_count ({_KEY}, devices) VALUES ({row}.rollout_id, {row}.wave, "
        f"{row}.state, {row}.exposed, {row}.activated_at IS NOT NULL, 1) "
        f"ON CONFLICT ({_KEY}) DO UPDATE SET devices = assignment_count.devices + 1;"
    )


def _one_less(row: str) -> str:
    return (
        f"UPDATE assignment_count SET devices = devices - 1 WHERE rollout_id = {row}.rollout_id "
        f"AND wave = {row}.wave AND state = {row}.state AND exposed = {row}.exposed "
        f"AND activated = ({row}.activated_at IS NOT NULL);"
    )


def _count_in_sqlite() -> None:
    more, less = _one_more("NEW"), _one_less("OLD")
    for name, when, steps in (
        ("new", "INSERT", more),
        ("moved", "UPDATE OF wave, state, exposed, activated_at", less + more),
        ("gone", "DELETE", less),
    ):
        op.execute(f"CREATE TRIGGER assignment_{name} AFTER {when} ON assignment BEGIN {steps} END")


def _count_in_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION count_assignment() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF TG_OP <> 'INSERT' THEN {_one_less('OLD')} END IF; "
        f"IF TG_OP <> 'DELETE' THEN {_one_more('NEW')} END IF; "
        "RETURN NULL; END $$"
    )
    op.execute(
        "CREATE TRIGGER assignment_counted "
        "AFTER INSERT OR DELETE OR UPDATE OF wave, state, exposed, activated_at ON assignment "
        "FOR EACH ROW EXECUTE FUNCTION count_assignment()"
    )


def downgrade() -> None:
    """Back to the revision before."""
    for name, table, _, _ in _INDEXES:
        op.drop_index(name, table_name=table)
    op.drop_index(op.f("ix_assignment_rollout_id_state_position"), table_name="assignment")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER assignment_counted ON assignment")
        op.execute("DROP FUNCTION count_assignment()")
    else:
        for name in ("new", "moved", "gone"):
            op.execute(f"DROP TRIGGER assignment_{name}")
    op.drop_table("assignment_count")
