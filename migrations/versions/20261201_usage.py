"""What calls of models have used: tokens and money, by run, user, model and day.

Software that still runs on the previous revision goes on working: it records none.

Revision ID: 20261201_usage
Revises: 20261130_questions
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Identifier, UtcTimestamp

revision = "20261201_usage"
down_revision = "20261130_questions"
branch_labels = None
depends_on = None

_NAMES = ("namespace", "workflow_id", "workflow_name", "user_id", "step_id", "model", "provider")


def upgrade() -> None:
    op.create_table(
        "run_usage",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("namespace", sa.String(255), nullable=False),
        sa.Column("workflow_state_id", Identifier, nullable=False),
        sa.Column("workflow_id", sa.String(255), nullable=False),
        sa.Column("workflow_name", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("step_id", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("provider", sa.String(255)),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("recorded_at", UtcTimestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("run_usage_pkey")),
        *(sa.CheckConstraint(f"length({name}) <= 255", name=op.f(f"run_usage_{name}_length_check")) for name in _NAMES),
    )
    op.create_index("idx_run_usage_namespace_recorded_at", "run_usage", ["namespace", "recorded_at"])
    op.create_index("idx_run_usage_workflow_state", "run_usage", ["workflow_state_id"])
    where = sa.text("user_id IS NOT NULL")
    op.create_index(
        "idx_run_usage_user_id",
        "run_usage",
        ["namespace", "user_id", "recorded_at"],
        postgresql_where=where,
        sqlite_where=where,
    )


def downgrade() -> None:
    op.drop_table("run_usage")
