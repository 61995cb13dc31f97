"""Versions, namespaces, checkpoint order, the cancelled status, and checks that SQLite does not make by itself.

Software that still runs on the previous revision goes on working: every new column has a default or may be
NULL, and a checkpoint inserted without `seq` counts as newer than the numbered ones.

Revision ID: 20261122_store_guards
Revises: 20261122_initial
"""

from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

from orchestrator_state.column_types import Identifier, UtcTimestamp

revision = "20261122_store_guards"
down_revision = "20261122_initial"
branch_labels = None
depends_on = None

WORKFLOW_STATUSES = "'pending', 'running', 'paused', 'completed', 'failed', 'cancelled'"
STEP_STATUSES = "'pending', 'running', 'completed', 'failed', 'skipped'"

# SQLite keeps a type as it was written, and SQLAlchemy reads the original software's `UUID` and `TIMESTAMP WITH TIME
# ZONE` as NUMERIC. A rebuilt table gets the types and the names that a new one has.
TYPES = {
    "id": Identifier,
    "workflow_state_id": Identifier,
    "started_at": UtcTimestamp,
    "updated_at": UtcTimestamp,
    "completed_at": UtcTimestamp,
    "timestamp": UtcTimestamp,
}
NAMES = {"pk": "%(table_name)s_pkey", "fk": "%(table_name)s_%(column_0_name)s_fkey"}

# Batch mode rebuilds a table with the indexes that SQLite reports, and SQLite does not report DESC.
DESCENDING: tuple[tuple[str, str, list[str | sa.TextClause]], ...] = (
    ("idx_updated_at", "workflow_states", [sa.text("updated_at DESC")]),
    ("idx_checkpoint_workflow_timestamp", "checkpoints", ["workflow_state_id", sa.text("timestamp DESC")]),
)


def rebuild(table: str) -> AbstractContextManager[BatchOperations]:
    """SQLite cannot add a constraint to a table: batch mode builds a new one and moves the rows over."""
    listeners = [("column_reflect", _as_in_a_new_table)]
    return op.batch_alter_table(table, reflect_kwargs={"listeners": listeners}, naming_convention=NAMES)


def _as_in_a_new_table(_inspector: object, _table: object, column: dict[str, Any]) -> None:
    column["type"] = TYPES.get(column["name"], column["type"])
    column["nullable"] = column["nullable"] and not column["primary_key"]


def upgrade() -> None:
    for name, table, _ in DESCENDING:
        op.drop_index(name, table)
    with rebuild("workflow_states") as workflows:
        workflows.add_column(sa.Column("namespace", sa.String(255), nullable=False, server_default="default"))
        workflows.add_column(sa.Column("version", sa.Integer, nullable=False, server_default="1"))
        workflows.add_column(sa.Column("checkpoint_seq", sa.Integer, nullable=False, server_default="0"))
        workflows.create_check_constraint(op.f("workflow_states_status_check"), f"status IN ({WORKFLOW_STATUSES})")
        for column in ("workflow_id", "workflow_name", "user_id", "namespace"):
            workflows.create_check_constraint(
                op.f(f"workflow_states_{column}_length_check"), f"length({column}) <= 255"
            )
    with rebuild("step_states") as steps:
        steps.add_column(sa.Column("position", sa.Integer, nullable=False, server_default="0"))
        steps.create_check_constraint(op.f("step_states_status_check"), f"status IN ({STEP_STATUSES})")
        steps.create_check_constraint(op.f("step_states_step_id_length_check"), "length(step_id) <= 255")
    _number_the_checkpoints()
    op.create_index("idx_workflow_states_namespace_status", "workflow_states", ["namespace", "status", "updated_at"])
    op.create_index(
        "idx_workflow_states_namespace_workflow_id", "workflow_states", ["namespace", "workflow_id", "updated_at"]
    )
    for name, table, columns in DESCENDING:
        op.create_index(name, table, columns)
    op.drop_index("idx_checkpoint_id", "checkpoints")  # the primary key has that index already


def _number_the_checkpoints() -> None:
    op.add_column("checkpoints", sa.Column("seq", sa.Integer))
    op.execute(
        """
        UPDATE checkpoints SET seq = numbered.seq
        FROM (
            SELECT id, row_number() OVER (PARTITION BY workflow_state_id ORDER BY timestamp, id) AS seq
            FROM checkpoints
        ) AS numbered
        WHERE checkpoints.id = numbered.id
        """
    )
    op.execute(
        """
        UPDATE workflow_states SET checkpoint_seq = counted.seq
        FROM (SELECT workflow_state_id, max(seq) AS seq FROM checkpoints GROUP BY workflow_state_id) AS counted
        WHERE workflow_states.id = counted.workflow_state_id
        """
    )
    with rebuild("checkpoints") as checkpoints:
        checkpoints.create_unique_constraint(
            op.f("checkpoints_workflow_state_id_seq_key"), ["workflow_state_id", "seq"]
        )
        checkpoints.create_check_constraint(op.f("checkpoints_step_id_length_check"), "length(step_id) <= 255")


def downgrade() -> None:
    # A cancelled workflow is finished; "failed" is the finished status that the previous revision knows.
    op.execute("UPDATE workflow_states SET status = 'failed' WHERE status = 'cancelled'")
    op.create_index("idx_checkpoint_id", "checkpoints", ["id"])
    for name, table, _ in DESCENDING:
        op.drop_index(name, table)
    op.drop_index("idx_workflow_states_namespace_workflow_id", "workflow_states")
    op.drop_index("idx_workflow_states_namespace_status", "workflow_states")
    with rebuild("checkpoints") as checkpoints:
        checkpoints.drop_constraint(op.f("checkpoints_step_id_length_check"), type_="check")
        checkpoints.drop_constraint(op.f("checkpoints_workflow_state_id_seq_key"), type_="unique")
        checkpoints.drop_column("seq")
    with rebuild("step_states") as steps:
        steps.drop_constraint(op.f("step_states_step_id_length_check"), type_="check")
        steps.drop_constraint(op.f("step_states_status_check"), type_="check")
        steps.drop_column("position")
    with rebuild("workflow_states") as workflows:
        for column in ("namespace", "user_id", "workflow_name", "workflow_id"):
            workflows.drop_constraint(op.f(f"workflow_states_{column}_length_check"), type_="check")
        workflows.drop_constraint(op.f("workflow_states_status_check"), type_="check")
        workflows.drop_column("checkpoint_seq")
        workflows.drop_column("version")
        workflows.drop_column("namespace")
    for name, table, columns in DESCENDING:
        op.create_index(name, table, columns)
