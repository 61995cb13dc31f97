"""The shop's own history, in `alembic_version`; that of the runs is in `orchestrator_state_version`."""

from alembic import context

import orchestrator_state
from examples.orders.models import Base


def is_ours(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or name not in orchestrator_state.metadata.tables


context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, include_name=is_ours
)
with context.begin_transaction():
    context.run_migrations()
