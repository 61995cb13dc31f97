"""Orders, and what was charged for them."""

import sqlalchemy as sa
from alembic import op

revision = "first_orders"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("item", sa.String(200), nullable=False),
        sa.Column("cents", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
    )
    op.create_table(
        "charges",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("order_id", sa.Uuid(), sa.ForeignKey("orders.id"), nullable=False, index=True),
        sa.Column("cents", sa.Integer(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("charges")
    op.drop_table("orders")
