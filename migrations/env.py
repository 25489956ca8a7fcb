"""How alembic runs our migrations: on the connection it is given, or on the configured URL.

Migrations are frozen text: they import nothing of the product.
"""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection

from controller.store.session import make_engine
from controller.store.tables import metadata
from controller.store.types import UtcDateTime


def render_item(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Write our own column types as what the database stores."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run(connection: Connection) -> None:
    """Run what alembic asked for inside the caller's transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        render_item=render_item,
        # SQLite alters a table by copying it.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.config.get_main_option("sqlalchemy.url")
    if url is None:
        raise SystemExit("no database: run `lighterman-controller migrate`")
    engine = make_engine(url)
    with engine.begin() as own:
        run(own)
    engine.dispose()
