"""How Alembic runs a migration here: on the connection and in the transaction that the caller holds.

Started by ``drservice.catalogue.database.migrate``, never by a URL of its own. The queue's tables belong to
procrastinate, which has migrations of its own.
"""
# ruff: noqa: INP001 - Alembic reads these files by path; they are no package

from __future__ import annotations

from alembic import context
from sqlalchemy.sql.schema import SchemaItem

from drservice.catalogue.tables import Base


def _is_ours(_: SchemaItem, name: str | None, kind: str, *__: object) -> bool:
    return not (kind == "table" and (name or "").startswith("procrastinate_"))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    include_object=_is_ours,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
