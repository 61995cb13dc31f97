"""Which finished workflows may be deleted, as far as their families are concerned.

A parent that has not recorded its child's result calls the child again when it goes on: had the child been deleted, it
would do its work twice. So a child stays while its parent has not completed, and goes with it, in one transaction. And
a parent stays while a child of its lives, or a run that is started later under the parent's name would find that child.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, exists, false, not_, or_, select
from sqlalchemy.orm import aliased
from sqlalchemy.sql import Select

from orchestrator_state.database import is_addressable, is_moment
from orchestrator_state.domain import FINISHED, WorkflowStatus
from orchestrator_state.models import WorkflowRow
from orchestrator_state.records import is_time

Cutoffs = Mapping[str, datetime]
"""By status, before when a workflow has to be updated last to be old. One of a status that is absent never is."""

_parent = aliased(WorkflowRow, name="parent")
_child = aliased(WorkflowRow, name="child")


class DueRow(NamedTuple):
    """A workflow that is old enough, and that no relative keeps."""

    id: UUID
    has_children: bool
    updated_at: datetime

    @property
    def place(self) -> Place:
        return self.updated_at, self.id


Place = tuple[datetime, UUID]
"""Where a page of due workflows begins: after this one."""


class Family(NamedTuple):
    """A workflow that may be deleted, and all that descend from it, which are deleted with it."""

    ids: list[UUID]
    """The eldest first."""
    is_over: bool
    """Whether none of them keeps it, as one that is unfinished or too young. Else none of them may be deleted."""


def all_before(older_than: datetime) -> Cutoffs:
    return dict.fromkeys(FINISHED, older_than)


def _is_over(row: type[WorkflowRow], cutoffs: Cutoffs) -> ColumnElement[bool]:
    """What ended at a time that nobody can read is not known to be old."""
    alike: dict[datetime, list[str]] = {}
    for status, cutoff in sorted(cutoffs.items()):
        alike.setdefault(cutoff, []).append(status)
    old = [and_(row.status.in_(statuses), row.updated_at < cutoff) for cutoff, statuses in alike.items()]
    return and_(or_(false(), *old), is_moment(row.updated_at))


# Of the same namespace: a row of another one that says it is a child is nobody's.
_IS_CHILD: Final = and_(_child.parent_id == WorkflowRow.id, _child.namespace == WorkflowRow.namespace)
_HAS_PARENT: Final = and_(_parent.id == WorkflowRow.parent_id, _parent.namespace == WorkflowRow.namespace)
_HAS_CHILDREN: Final = exists().where(_IS_CHILD)


def _over(namespace: str, cutoffs: Cutoffs) -> tuple[ColumnElement[bool], ...]:
    has_living = exists().where(_IS_CHILD, not_(_is_over(_child, cutoffs)))
    return (
        WorkflowRow.namespace == namespace,
        is_addressable(WorkflowRow.id),
        _is_over(WorkflowRow, cutoffs),
        not_(has_living),
    )


def next_due(namespace: str, cutoffs: Cutoffs, after: Place | None, limit: int) -> Select[Any]:
    """The oldest rows of `eldest_finished`, as `DueRow`, from a place on."""
    query = eldest_finished(namespace, cutoffs).add_columns(WorkflowRow.updated_at)
    if after is not None:
        moment, last = after
        at_once = and_(WorkflowRow.updated_at == moment, WorkflowRow.id > last)
        query = query.where(WorkflowRow.updated_at >= moment, or_(WorkflowRow.updated_at > moment, at_once))
    return query.order_by(WorkflowRow.updated_at, WorkflowRow.id).limit(limit)


def eldest_finished(namespace: str, cutoffs: Cutoffs) -> Select[UUID, bool]:
    """(id, has_children) of workflows that are over, that no parent wants, and of which no child lives."""
    wanted = exists().where(_HAS_PARENT, _parent.status != WorkflowStatus.COMPLETED.value)
    return select(WorkflowRow.id, _HAS_CHILDREN.label("has_children")).where(*_over(namespace, cutoffs), not_(wanted))


def finished(namespace: str, cutoffs: Cutoffs) -> Select[UUID]:
    """The ids of workflows that are over and go soon: either at once, or with their parent, which is over as well."""
    parent_stays = exists().where(
        _HAS_PARENT,
        _parent.status != WorkflowStatus.COMPLETED.value,
        not_(_is_over(_parent, cutoffs)),
    )
    return select(WorkflowRow.id).where(*_over(namespace, cutoffs), not_(parent_stays))


CHILDREN: Final = (
    select(WorkflowRow.id, WorkflowRow.parent_id, WorkflowRow.status, WorkflowRow.updated_at)
    .where(
        WorkflowRow.namespace == bindparam("namespace"), WorkflowRow.parent_id.in_(bindparam("parents", expanding=True))
    )
    .order_by(WorkflowRow.id)
)
CHILDREN_TO_DELETE: Final = CHILDREN.with_for_update()


def lives(row: Any, cutoffs: Cutoffs) -> bool:
    """Whether a row of `CHILDREN` is unfinished, or not known to be old enough."""
    cutoff = cutoffs.get(row.status)
    return cutoff is None or not is_time(row.updated_at) or row.updated_at >= cutoff


class FamilyTree:
    """Families of which a generation at a time is read."""

    def __init__(self, eldest: Iterable[UUID], *, keeps: Callable[[Any], bool]) -> None:
        """`keeps` says of the row of a child whether it keeps its family from being deleted."""
        self._keeps = keeps
        self._members = {workflow_state_id: [workflow_state_id] for workflow_state_id in eldest}
        self._eldest_of = {workflow_state_id: workflow_state_id for workflow_state_id in self._members}
        self._kept: set[UUID] = set()

    def add(self, children: Iterable[Any]) -> list[UUID]:
        """Add rows of children, and return the ids of those that were not known."""
        return [row.id for row in children if self._add(row)]

    def note_kept(self, eldest: Iterable[UUID]) -> None:
        """These keep their own families."""
        self._kept.update(eldest)

    def _add(self, row: Any) -> bool:
        is_new = row.id not in self._eldest_of
        eldest = self._eldest_of[row.parent_id]
        # Perhaps it was taken for an eldest itself: a completed parent does not keep its children.
        joining = [row.id] if is_new else self._members.get(row.id, [])
        if eldest not in joining:  # else its damaged row makes it a child of its own
            self._members.pop(row.id, None)
            self._eldest_of.update(dict.fromkeys(joining, eldest))
            self._members[eldest] += joining
        if self._keeps(row):
            self._kept.add(eldest)
        return is_new

    @property
    def families(self) -> Sequence[Family]:
        kept = {self._eldest_of[eldest] for eldest in self._kept}
        return [Family(ids, eldest not in kept) for eldest, ids in self._members.items()]
