"""What an operator sees without opening a payload: what a run is found by, what it failed of, waits for and does now.

Software that still runs on the previous revision goes on working: it neither writes nor reads what is new, all of which
may be missing.

Revision ID: 20261130_operator
Revises: 20261128_requests
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from orchestrator_state.column_types import Attributes, Identifier, UtcTimestamp
from orchestrator_state.schema import view_statements

revision = "20261130_operator"
down_revision = "20261128_requests"
branch_labels = None
depends_on = None

WIDENED = (
    ("idx_status", "workflow_states", ["status"], ["status", "namespace", "started_at", "id"]),
    ("idx_user_id", "workflow_states", ["user_id"], ["user_id", "namespace", "started_at", "id"]),
    ("idx_step_workflow_state", "step_states", ["workflow_state_id"], ["workflow_state_id", "position"]),
)
ADDED = (
    ("idx_workflow_states_namespace_started_at", ["namespace", "started_at", "id"]),
    ("idx_workflow_states_namespace_name", ["namespace", "workflow_name", "status", "started_at", "id"]),
)
PARENT = "idx_workflow_states_parent_id"
COMPLETED = "idx_workflow_states_completed_at"
ATTRIBUTES = "idx_workflow_states_attributes"
RUNNING = "idx_step_states_running"
VIEWS = ("step_durations", "workflow_overview")


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
    for name, table, _, columns in WIDENED:
        op.drop_index(name, table)
        op.create_index(name, table, columns)
    for name, columns in ADDED:
        op.create_index(name, "workflow_states", columns)
    op.drop_index(PARENT, "workflow_states")
    create_partial_index(PARENT, "workflow_states", ["parent_id"], "parent_id IS NOT NULL")
    create_partial_index(COMPLETED, "workflow_states", ["namespace", "completed_at"], "completed_at IS NOT NULL")
    create_partial_index(
        ATTRIBUTES,
        "workflow_states",
        ["attributes"],
        "attributes IS NOT NULL",
        postgresql_using="gin",
        postgresql_ops={"attributes": "jsonb_path_ops"},
    )
    create_partial_index(RUNNING, "step_states", ["workflow_state_id"], "status = 'running'")
    for statement in view_statements(op.get_context().dialect.name):
        op.execute(statement)


def create_partial_index(name: str, table: str, columns: list[str], condition: str, **options: Any) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, postgresql_where=where, sqlite_where=where, **options)


def downgrade() -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW IF EXISTS {view}")
    op.drop_index(RUNNING, "step_states")
    for name in (ATTRIBUTES, COMPLETED, PARENT, *(name for name, _ in ADDED)):
        op.drop_index(name, "workflow_states")
    op.create_index(PARENT, "workflow_states", ["parent_id"])
    for name, table, columns, _ in WIDENED:
        op.drop_index(name, table)
        op.create_index(name, table, columns)
    op.drop_table("current_steps")
    op.drop_column("step_states", "waits_until")
    op.drop_column("step_states", "kind")
    op.drop_column("workflow_states", "attributes")
    op.drop_column("workflow_states", "error_type")
