"""Environments on hosts, as their hosts tell.

Revision 0003, after 0002.
"""
# ruff: noqa: INP001 - Alembic reads these files by path; they are no package

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "environment",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("dsn", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("environment_pkey")),
    )
    op.create_index(op.f("environment_service_id_idx"), "environment", ["service", "id"])


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    op.drop_table("environment")
