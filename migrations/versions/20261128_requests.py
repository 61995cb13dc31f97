"""Request ids, so that a call whose answer was lost finds what it did; and how often a run met faults in a row.

Software that still runs on the previous revision goes on working: it neither writes nor reads the new table, and the
new column has a default.

Revision ID: 20261128_requests
Revises: 20261123_deltas
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Identifier, UtcTimestamp

revision = "20261128_requests"
down_revision = "20261123_deltas"
branch_labels = None
depends_on = None


_PARTIAL_INDEXES = {
    "idx_workflow_states_request": "request IS NOT NULL",
    "idx_workflow_states_suspects": "attempts > 1 AND status IN ('pending', 'running')",
}


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("id", Identifier, primary_key=True),
        sa.Column("namespace", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(50), nullable=False),
        sa.Column("made_at", UtcTimestamp, nullable=False),
        sa.CheckConstraint("length(namespace) <= 255", name=op.f("requests_namespace_length_check")),
    )
    op.create_index("idx_requests_made_at", "requests", ["made_at"])
    op.add_column("workflow_states", sa.Column("faults", sa.Integer, nullable=False, server_default="0"))
    op.add_column("workflow_states", sa.Column("has_progressed", sa.Integer, nullable=False, server_default="0"))
    for name, condition in _PARTIAL_INDEXES.items():
        where = sa.text(condition)
        op.create_index(name, "workflow_states", ["namespace"], postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    for name in _PARTIAL_INDEXES:
        op.drop_index(name, "workflow_states")
    op.drop_column("workflow_states", "has_progressed")
    op.drop_column("workflow_states", "faults")
    op.drop_index("idx_requests_made_at", "requests")
    op.drop_table("requests")
