"""How captures of documents are.

Revision 0008, after 0007.
"""
# ruff: noqa: INP001 - Alembic reads these files by path; they are no package

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "document_stream",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("durable_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seconds_at_risk", sa.Float(), nullable=True),
        sa.Column("pending", sa.BigInteger(), nullable=True),
        sa.Column("missing", sa.BigInteger(), nullable=True),
        sa.Column("corrupt", sa.BigInteger(), nullable=True),
        sa.Column("in_database", sa.BigInteger(), nullable=True),
        sa.Column("not_covered", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("remedy", sa.Text(), nullable=True),
        sa.Column("told_at", sa.DateTime(timezone=True), server_default=sa.text("drservice_now()"), nullable=False),
        sa.PrimaryKeyConstraint("service", "component", name=op.f("document_stream_pkey")),
    )


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    op.drop_table("document_stream")
