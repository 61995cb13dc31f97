"""Durable runs: leases, attempts, timers, requests, results, lineage, context by step, and signals.

Software that still runs on the previous revision goes on working: every new column has a default or may be NULL.

Revision ID: 20261122_runs
Revises: 20261122_store_guards
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Identifier, UtcTimestamp

revision = "20261122_runs"
down_revision = "20261122_store_guards"
branch_labels = None
depends_on = None


def workflow_columns() -> list[sa.Column[object]]:
    """Made anew for each use: a column belongs to the table that it was first added to."""
    return [
        sa.Column("lease_owner", Identifier),
        sa.Column("lease_process", sa.String(255)),
        sa.Column("lease_token", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_expires_at", UtcTimestamp),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("wake_at", UtcTimestamp),
        sa.Column("request", sa.String(50)),
        sa.Column("result", sa.Text),
        sa.Column("initial_context", sa.Text),
        sa.Column("context_position", sa.Integer, nullable=False, server_default="-1"),
        sa.Column("signal_seq", sa.Integer, nullable=False, server_default="0"),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("parent_id", Identifier),
        sa.Column("forked_from_id", Identifier),
        sa.Column("forked_from_seq", sa.Integer),
    ]


def upgrade() -> None:
    for column in workflow_columns():
        op.add_column("workflow_states", column)
    op.add_column("step_states", sa.Column("context_patch", sa.Text))
    op.create_index(
        "idx_workflow_states_namespace_idempotency_key",
        "workflow_states",
        ["namespace", "idempotency_key"],
        unique=True,
    )
    op.create_index("idx_workflow_states_parent_id", "workflow_states", ["parent_id"])
    op.create_table(
        "signals",
        sa.Column("id", Identifier, primary_key=True),
        sa.Column(
            "workflow_state_id",
            Identifier,
            sa.ForeignKey("workflow_states.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("sent_at", UtcTimestamp, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.UniqueConstraint("workflow_state_id", "seq", name=op.f("signals_workflow_state_id_seq_key")),
        sa.CheckConstraint("length(name) <= 255", name=op.f("signals_name_length_check")),
    )


def downgrade() -> None:
    op.drop_table("signals")
    op.drop_index("idx_workflow_states_parent_id", "workflow_states")
    op.drop_index("idx_workflow_states_namespace_idempotency_key", "workflow_states")
    op.drop_column("step_states", "context_patch")
    for column in reversed(workflow_columns()):
        op.drop_column("workflow_states", column.name)
