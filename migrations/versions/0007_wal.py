"""Holes in the archived WAL, and how receivers of WAL are.

Revision 0007, after 0006.
"""
# ruff: noqa: INP001 - Alembic reads these files by path; they are no package

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "wal_hole",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("timeline", sa.BigInteger(), nullable=False),
        sa.Column("from_lsn", sa.BigInteger(), nullable=False),
        sa.Column("to_lsn", sa.BigInteger(), nullable=False),
        sa.Column("first_segment", sa.Text(), nullable=False),
        sa.Column("segments", sa.BigInteger(), nullable=False),
        sa.Column("is_open", sa.Boolean(), nullable=False),
        sa.Column("cost", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service", "component", "timeline", "from_lsn", name=op.f("wal_hole_pkey")),
    )
    op.create_table(
        "wal_stream",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("is_synchronous", sa.Boolean(), nullable=False),
        sa.Column("timeline", sa.BigInteger(), nullable=True),
        sa.Column("durable_lsn", sa.BigInteger(), nullable=True),
        sa.Column("server_lsn", sa.BigInteger(), nullable=True),
        sa.Column("durable_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seconds_at_risk", sa.Float(), nullable=True),
        sa.Column("bytes_at_risk", sa.BigInteger(), nullable=True),
        sa.Column("slot_status", sa.Text(), nullable=True),
        sa.Column("safe_wal_bytes", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("remedy", sa.Text(), nullable=True),
        sa.Column("told_at", sa.DateTime(timezone=True), server_default=sa.text("drservice_now()"), nullable=False),
        sa.PrimaryKeyConstraint("service", "component", name=op.f("wal_stream_pkey")),
    )


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    op.drop_table("wal_stream")
    op.drop_table("wal_hole")
