"""What pages of a large estate are read by: indexes of runs, and columns of what is judged of records.

Revision 0004, after 0003.
"""
# ruff: noqa: INP001 - Alembic reads these files by path; they are no package

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NUMBER = "CASE WHEN jsonb_typeof(predicate -> '{0}') = 'number' THEN (predicate ->> '{0}')::numeric END"


def upgrade() -> None:
    """Bring the schema to this revision."""
    op.create_index(op.f("run_state_id_idx"), "run", ["state", "id"])
    op.create_index(
        "run_done_idx",
        "run",
        ["service", "kind", "plan", "ended_at"],
        postgresql_where=sa.text("state IN ('succeeded', 'partial')"),
    )
    op.drop_index(op.f("record_service_kind_recorded_at_idx"), table_name="record")
    op.create_index(op.f("record_service_kind_entry_idx"), "record", ["service", "kind", "entry"])
    op.add_column("record", sa.Column("mutation", sa.Text(), sa.Computed("predicate ->> 'mutation'", persisted=True)))
    for name in ("rpo_ms", "rto_ms"):
        op.add_column("record", sa.Column(name, sa.Numeric(), sa.Computed(_NUMBER.format(name), persisted=True)))


def downgrade() -> None:
    """Bring the schema back to the revision before."""
    for name in ("rto_ms", "rpo_ms", "mutation"):
        op.drop_column("record", name)
    op.drop_index(op.f("record_service_kind_entry_idx"), table_name="record")
    op.create_index(op.f("record_service_kind_recorded_at_idx"), "record", ["service", "kind", "recorded_at"])
    op.drop_index("run_done_idx", table_name="run")
    op.drop_index(op.f("run_state_id_idx"), table_name="run")
