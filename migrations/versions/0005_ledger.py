"""What waits for the ledger, days of the access log, and what of records is looked for.

Revision 0005, after 0004.
"""
# ruff: noqa: INP001 - Alembic reads these files by path; they are no package

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_EXCEPTION = """CASE kind
    WHEN 'drill'::text THEN CASE WHEN jsonb_typeof(predicate -> 'mutation'::text) = 'string'::text
        THEN COALESCE(outcome, ''::text) <> 'failed'::text ELSE COALESCE(outcome, ''::text) <> 'passed'::text END
    WHEN 'backup'::text THEN COALESCE(outcome, ''::text) <> 'complete'::text
    WHEN 'restore'::text THEN COALESCE(outcome, ''::text) <> 'restored'::text
    WHEN 'probe'::text THEN COALESCE(outcome, ''::text) <> 'passed'::text
    WHEN 'retention'::text THEN COALESCE(outcome, ''::text) <> ALL (ARRAY['applied'::text, 'marked'::text])
    WHEN 'approval'::text THEN COALESCE(predicate ->> 'decision'::text, ''::text) <> 'approved'::text
    ELSE kind = ANY (ARRAY['missed'::text, 'failure'::text]) END"""


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_table(
        "ledger_event",
        sa.Column("number", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=True),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("fields", sa.dialects.postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("drservice_now()"), nullable=False),
        sa.Column("entry", sa.BigInteger(), nullable=True),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("ledger_event_pkey")),
        sa.UniqueConstraint("event", name=op.f("ledger_event_event_key")),
    )
    op.create_index("ledger_event_open_idx", "ledger_event", ["number"], postgresql_where=sa.text("entry IS NULL"))
    op.create_table(
        "access_day",
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("log", sa.Text(), nullable=True),
        sa.Column("entry", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("day", name=op.f("access_day_pkey")),
    )
    op.add_column("access", sa.Column("day", sa.Text(), nullable=True))
    op.create_index(op.f("access_day_id_idx"), "access", ["day", "id"])
    op.create_index("access_open_idx", "access", ["at"], postgresql_where=sa.text("day IS NULL"))
    for name in ("event", "obligation"):
        computed = sa.Computed(f"predicate ->> '{name}'::text", persisted=True)
        op.add_column("record", sa.Column(name, sa.Text(), computed, nullable=True))
    op.add_column(
        "record", sa.Column("exception", sa.Boolean(), sa.Computed(_EXCEPTION, persisted=True), nullable=False)
    )
    op.create_index(op.f("record_kind_entry_idx"), "record", ["kind", "entry"])
    op.create_index("record_event_idx", "record", ["event"], postgresql_where=sa.text("event IS NOT NULL"))
    op.create_index(
        "record_obligation_idx", "record", ["obligation", "kind"], postgresql_where=sa.text("obligation IS NOT NULL")
    )
    op.create_index("record_exception_idx", "record", ["entry"], postgresql_where=sa.text("exception"))


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    for name in ("record_exception_idx", "record_obligation_idx", "record_event_idx", "record_kind_entry_idx"):
        op.drop_index(name, "record")
    for name in ("exception", "obligation", "event"):
        op.drop_column("record", name)
    op.drop_index("access_open_idx", "access")
    op.drop_index("access_day_id_idx", "access")
    op.drop_column("access", "day")
    op.drop_table("access_day")
    op.drop_table("ledger_event")
