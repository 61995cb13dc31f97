"""The original design's three tables and indexes.

They are made only where they are missing, so that a database of the original software is taken over as it is.

Revision ID: 20261122_initial
Revises: none
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Identifier, UtcTimestamp

revision = "20261122_initial"
down_revision = None
branch_labels = None
depends_on = None

INDEXES: tuple[tuple[str, str, list[str | sa.TextClause]], ...] = (
    ("idx_workflow_id_status", "workflow_states", ["workflow_id", "status"]),
    ("idx_status", "workflow_states", ["status"]),
    ("idx_user_id", "workflow_states", ["user_id"]),
    ("idx_updated_at", "workflow_states", [sa.text("updated_at DESC")]),
    ("idx_step_workflow_state", "step_states", ["workflow_state_id"]),
    ("idx_checkpoint_workflow_timestamp", "checkpoints", ["workflow_state_id", sa.text("timestamp DESC")]),
    ("idx_checkpoint_id", "checkpoints", ["id"]),
)


def upgrade() -> None:
    op.create_table(
        "workflow_states",
        sa.Column("id", Identifier, primary_key=True),
        sa.Column("workflow_id", sa.String(255), nullable=False),
        sa.Column("workflow_name", sa.String(255), nullable=False),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("started_at", UtcTimestamp, nullable=False),
        sa.Column("updated_at", UtcTimestamp, nullable=False),
        sa.Column("completed_at", UtcTimestamp),
        sa.Column("context", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        if_not_exists=True,
    )
    op.create_table(
        "step_states",
        sa.Column(
            "workflow_state_id",
            Identifier,
            sa.ForeignKey("workflow_states.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("step_id", sa.String(255), primary_key=True),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("started_at", UtcTimestamp),
        sa.Column("completed_at", UtcTimestamp),
        sa.Column("outputs", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("retry_count", sa.Integer, server_default="0"),
        if_not_exists=True,
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", Identifier, primary_key=True),
        sa.Column(
            "workflow_state_id",
            Identifier,
            sa.ForeignKey("workflow_states.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("step_id", sa.String(255), nullable=False),
        sa.Column("timestamp", UtcTimestamp, nullable=False),
        sa.Column("snapshot", sa.Text, nullable=False),
        if_not_exists=True,
    )
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns, if_not_exists=True)


def downgrade() -> None:
    op.drop_table("checkpoints")
    op.drop_table("step_states")
    op.drop_table("workflow_states")
