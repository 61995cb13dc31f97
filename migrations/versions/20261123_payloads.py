"""The version of the user's state and outputs.

Software that still runs on the previous revision goes on working: every new column may be NULL.

Revision ID: 20261123_payloads
Revises: 20261122_runs
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123_payloads"
down_revision = "20261122_runs"
branch_labels = None
depends_on = None

TABLES = ("workflow_states", "step_states", "checkpoints")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("schema_version", sa.Integer))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "schema_version")
