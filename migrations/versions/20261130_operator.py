"""What an operator sees without opening a payload: what a run is found by, what it failed of, waits for and does now.

Software that still runs on the previous revision goes on working: it neither writes nor reads what is new, all of which
may be missing.

Revision ID: 20261130_operator
Revises: 20261128_requests
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Attributes, Identifier, UtcTimestamp

revision = "20261130_operator"
down_revision = "20261128_requests"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workflow_states", sa.Column("error_type", sa.String(255)))
    op.add_column("workflow_states", sa.Column("attributes", Attributes))
    op.add_column("step_states", sa.Column("kind", sa.String(50)))
    op.add_column("step_states", sa.Column("waits_until", UtcTimestamp))
    op.create_table(
        "current_steps",
        sa.Column("workflow_state_id", Identifier, nullable=False),
        sa.Column("step_id", sa.String(255), nullable=False),
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("started_at", UtcTimestamp, nullable=False),
        sa.PrimaryKeyConstraint("workflow_state_id", "step_id", name=op.f("current_steps_pkey")),
        sa.ForeignKeyConstraint(
            ["workflow_state_id"],
            ["workflow_states.id"],
            name=op.f("current_steps_workflow_state_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("length(step_id) <= 255", name=op.f("current_steps_step_id_length_check")),
    )


def downgrade() -> None:
    op.drop_table("current_steps")
    op.drop_column("step_states", "waits_until")
    op.drop_column("step_states", "kind")
    op.drop_column("workflow_states", "attributes")
    op.drop_column("workflow_states", "error_type")
