"""Questions of runs to people: what is asked, until when, and who has answered.

Software that still runs on the previous revision goes on working: it asks nothing.

Revision ID: 20261130_questions
Revises: 20261130_operator
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Identifier, UtcTimestamp

revision = "20261130_questions"
down_revision = "20261130_operator"
branch_labels = None
depends_on = None

_NAMES = ("namespace", "step_id", "name", "answered_by", "refused")


def upgrade() -> None:
    op.create_table(
        "questions",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("workflow_state_id", Identifier, nullable=False),
        sa.Column("namespace", sa.String(255), nullable=False),
        sa.Column("step_id", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("question_digest", sa.String(64)),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("asked_at", UtcTimestamp, nullable=False),
        sa.Column("expires_at", UtcTimestamp),
        sa.Column("closed_at", UtcTimestamp),
        sa.Column("answered_by", sa.String(255)),
        sa.Column("refused", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name=op.f("questions_pkey")),
        sa.ForeignKeyConstraint(
            ["workflow_state_id"],
            ["workflow_states.id"],
            name=op.f("questions_workflow_state_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("status IN ('open', 'answered', 'expired')", name=op.f("questions_status_check")),
        *(sa.CheckConstraint(f"length({name}) <= 255", name=op.f(f"questions_{name}_length_check")) for name in _NAMES),
    )
    op.create_index("idx_questions_workflow_state", "questions", ["workflow_state_id"])
    op.create_index("idx_questions_namespace_status", "questions", ["namespace", "status", "asked_at", "id"])


def downgrade() -> None:
    op.drop_table("questions")
