"""Checkpoints that refer to the steps on record instead of copying them.

Software that still runs on the previous revision goes on working: the new column may be NULL. It reads such a
checkpoint as a snapshot that is no workflow's state, and refuses to restore it.

Revision ID: 20261123_deltas
Revises: 20261123_payloads
"""

import sqlalchemy as sa
from alembic import op

revision = "20261123_deltas"
down_revision = "20261123_payloads"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("position", sa.Integer))


def downgrade() -> None:
    # What only refers to steps means nothing to the older software.
    op.execute(sa.text("DELETE FROM checkpoints WHERE position IS NOT NULL"))
    op.drop_column("checkpoints", "position")
