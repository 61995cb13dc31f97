"""Digests of payloads, and the schema version of the user's state.

Software that still runs on the previous revision goes on working: every new column may be NULL. It writes payloads
without their digests; `digested_at` then differs from `updated_at`, which tells such a row from a damaged one.

Revision ID: 20261123_payloads
Revises: 20261122_runs
"""

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import UtcTimestamp

revision = "20261123_payloads"
down_revision = "20261122_runs"
branch_labels = None
depends_on = None

DIGESTS = {
    "workflow_states": ("context_digest", "initial_context_digest", "result_digest", "error_digest"),
    "step_states": ("outputs_digest", "error_digest", "context_patch_digest"),
    "checkpoints": ("snapshot_digest",),
    "signals": ("payload_digest",),
}
VERSIONED = ("workflow_states", "step_states", "checkpoints")


def upgrade() -> None:
    for table, columns in DIGESTS.items():
        for column in columns:
            op.add_column(table, sa.Column(column, sa.String(64)))
    for table in VERSIONED:
        op.add_column(table, sa.Column("schema_version", sa.Integer))
    op.add_column("workflow_states", sa.Column("digested_at", UtcTimestamp))


def downgrade() -> None:
    op.drop_column("workflow_states", "digested_at")
    for table in VERSIONED:
        op.drop_column(table, "schema_version")
    for table, columns in DIGESTS.items():
        for column in reversed(columns):
            op.drop_column(table, column)
