"""What a run may spend on models before it asks.

Software that still runs on the previous revision goes on working, and asks nothing.

Revision ID: 20261201_budget
Revises: 20261201_usage
"""

import sqlalchemy as sa
from alembic import op

revision = "20261201_budget"
down_revision = "20261201_usage"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workflow_states", sa.Column("budget_cost", sa.BigInteger))
    op.add_column("workflow_states", sa.Column("budget_tokens", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("workflow_states", "budget_tokens")
    op.drop_column("workflow_states", "budget_cost")
