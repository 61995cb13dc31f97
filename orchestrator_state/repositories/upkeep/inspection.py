"""What `verify` asks of workflows, beside their payloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, bindparam, literal, select
from sqlalchemy.orm import aliased

from orchestrator_state.database import is_addressable
from orchestrator_state.domain import ACTIVE
from orchestrator_state.models import WorkflowRow
from orchestrator_state.repositories.base import Repository

# A sound line of ancestors may be as long as it likes, and is walked from each of its members.
_LONGEST_RING: Final = 100


class Named(NamedTuple):
    """A workflow by its two names."""

    id: UUID
    workflow_id: str


def _descended_from_themselves() -> Select[tuple[UUID]]:
    parent = aliased(WorkflowRow, name="parent")
    of_ids = WorkflowRow.id.in_(bindparam("ids", expanding=True))
    start = select(WorkflowRow.id, WorkflowRow.parent_id, literal(1).label("length")).where(of_ids)
    line = start.cte("line", recursive=True)
    above = and_(parent.id == line.c.parent_id, parent.namespace == bindparam("namespace"))
    goes_on = and_(line.c.parent_id != line.c.id, line.c.length < _LONGEST_RING)
    line = line.union_all(select(line.c.id, parent.parent_id, line.c.length + 1).where(above, goes_on))
    return select(line.c.id).where(line.c.parent_id == line.c.id).order_by(line.c.id)


_DESCENDED_FROM_THEMSELVES: Final = _descended_from_themselves()


class InspectionRepository(Repository):
    """Pages of workflows in the order of their ids."""

    async def list_active(self, after: UUID | None, limit: int) -> Sequence[Named]:
        """The next unfinished workflows."""
        return await self._page(WorkflowRow.status.in_(sorted(ACTIVE)), after, limit)

    async def list_children(self, after: UUID | None, limit: int) -> Sequence[Named]:
        """The next workflows that have a parent."""
        return await self._page(WorkflowRow.parent_id.is_not(None), after, limit)

    async def list_descended_from_themselves(self, ids: Sequence[UUID]) -> Sequence[UUID]:
        """Those of `ids` that are among their next hundred ancestors, which only damage makes them."""
        rows = await self._rows(_DESCENDED_FROM_THEMSELVES, {"ids": ids, "namespace": self._namespace})
        return [row.id for row in rows]

    async def _page(self, wanted: ColumnElement[bool], after: UUID | None, limit: int) -> Sequence[Named]:
        query = select(WorkflowRow.id, WorkflowRow.workflow_id).where(
            WorkflowRow.namespace == self._namespace, wanted, is_addressable(WorkflowRow.id)
        )
        if after is not None:
            query = query.where(WorkflowRow.id > after)
        rows: Sequence[Any] = await self._rows(query.order_by(WorkflowRow.id).limit(limit))
        return [Named(*row) for row in rows]
