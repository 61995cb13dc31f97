"""Which finished workflows may be deleted, as far as their families are concerned.

A parent that has not recorded its child's result calls the child again when it goes on: had the child been deleted, it
would do its work twice. So a child stays while its parent has not completed, and goes with it, in one transaction. And
a parent stays while a child of its lives, or a run that is started later under the parent's name would find that child.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, exists, literal, not_, select
from sqlalchemy.sql import Select

from orchestrator_state.database import is_addressable, is_moment
from orchestrator_state.domain import FINISHED, WorkflowStatus
from orchestrator_state.models import workflow_states
from orchestrator_state.records import is_time

_w = workflow_states.c
_parent = workflow_states.alias("parent")
_child = workflow_states.alias("child")


class Family(NamedTuple):
    """A workflow that may be deleted, and all that descend from it, which are deleted with it."""

    ids: list[UUID]
    """The eldest first."""
    is_over: bool
    """Whether all of them are finished, and old enough. Else none of them may be deleted."""


def _is_over(row: Any, older_than: datetime) -> ColumnElement[bool]:
    """What ended at a time that nobody can read is not known to be old."""
    return and_(row.status.in_(sorted(FINISHED)), row.updated_at < older_than, is_moment(row.updated_at))


# Of the same namespace: a row of another one that says it is a child is nobody's.
_IS_CHILD: Final = and_(_child.c.parent_id == _w.id, _child.c.namespace == _w.namespace)
_HAS_PARENT: Final = and_(_parent.c.id == _w.parent_id, _parent.c.namespace == _w.namespace)
_HAS_CHILDREN: Final = exists().where(_IS_CHILD)


def _over(namespace: str, older_than: datetime) -> tuple[ColumnElement[bool], ...]:
    has_living = exists().where(_IS_CHILD, not_(_is_over(_child.c, older_than)))
    return _w.namespace == namespace, is_addressable(_w.id), _is_over(_w, older_than), not_(has_living)


def eldest_finished(namespace: str, older_than: datetime) -> Select[Any]:
    """(id, has_children) of workflows that are over, that no parent wants, and of which no child lives."""
    wanted = exists().where(_HAS_PARENT, _parent.c.status != WorkflowStatus.COMPLETED.value)
    return select(_w.id, _HAS_CHILDREN.label("has_children")).where(*_over(namespace, older_than), not_(wanted))


def finished(namespace: str, older_than: datetime) -> Select[Any]:
    """The ids of workflows that are over and go soon: either at once, or with their parent, which is over as well."""
    parent_stays = exists().where(
        _HAS_PARENT,
        _parent.c.status != WorkflowStatus.COMPLETED.value,
        not_(_is_over(_parent.c, older_than)),
    )
    return select(_w.id).where(*_over(namespace, older_than), not_(parent_stays))


CHILDREN_TO_DELETE: Final = (
    select(_w.id, _w.parent_id, _w.status, _w.updated_at)
    .where(_w.namespace == bindparam("namespace"), _w.parent_id.in_(bindparam("parents", expanding=True)))
    .order_by(_w.id)
    .with_for_update()
)


# A sound line of ancestors may be as long as it likes, and is walked from each of its members.
_LONGEST_RING: Final = 100


def _descended_from_themselves() -> Select[Any]:
    of_ids = _w.id.in_(bindparam("ids", expanding=True))
    line = select(_w.id, _w.parent_id, literal(1).label("length")).where(of_ids).cte("line", recursive=True)
    above = and_(_parent.c.id == line.c.parent_id, _parent.c.namespace == bindparam("namespace"))
    goes_on = and_(line.c.parent_id != line.c.id, line.c.length < _LONGEST_RING)
    line = line.union_all(select(line.c.id, _parent.c.parent_id, line.c.length + 1).where(above, goes_on))
    return select(line.c.id).where(line.c.parent_id == line.c.id).order_by(line.c.id)


DESCENDED_FROM_THEMSELVES: Final = _descended_from_themselves()
"""Those of the workflows `ids` that are among their next hundred ancestors, which only damage makes them."""


class FamilyTree:
    """Families of which a generation at a time is read."""

    def __init__(self, eldest: Iterable[UUID], older_than: datetime) -> None:
        self._older_than = older_than
        self._members = {workflow_state_id: [workflow_state_id] for workflow_state_id in eldest}
        self._eldest_of = {workflow_state_id: workflow_state_id for workflow_state_id in self._members}
        self._living: set[UUID] = set()

    def add(self, children: Iterable[Any]) -> list[UUID]:
        """Add rows of `CHILDREN_TO_DELETE`, and return the ids of those that were not known."""
        return [row.id for row in children if self._add(row)]

    def _add(self, row: Any) -> bool:
        is_new = row.id not in self._eldest_of
        eldest = self._eldest_of[row.parent_id]
        # Perhaps it was taken for an eldest itself: a completed parent does not keep its children.
        joining = [row.id] if is_new else self._members.get(row.id, [])
        if eldest not in joining:  # else its damaged row makes it a child of its own
            self._members.pop(row.id, None)
            self._eldest_of.update(dict.fromkeys(joining, eldest))
            self._members[eldest] += joining
        if row.status not in FINISHED or not is_time(row.updated_at) or row.updated_at >= self._older_than:
            self._living.add(eldest)
        return is_new

    @property
    def families(self) -> Sequence[Family]:
        living = {self._eldest_of[eldest] for eldest in self._living}
        return [Family(ids, eldest not in living) for eldest, ids in self._members.items()]
