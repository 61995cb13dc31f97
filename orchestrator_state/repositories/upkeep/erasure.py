"""Runs that are to be gone whatever their status, each with all that descend from it: found, locked, and stopped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, exists, not_, select, update
from sqlalchemy.orm import aliased

from orchestrator_state.database import is_addressable
from orchestrator_state.models import WorkflowRow
from orchestrator_state.repositories.base import Repository, chunks
from orchestrator_state.repositories.claimable import IS_ACTIVE, LEASE_IS_FREE
from orchestrator_state.repositories.counts import IS_WRITABLE
from orchestrator_state.repositories.expressions import IN_NAMESPACE
from orchestrator_state.repositories.runs.requests import cancelled
from orchestrator_state.repositories.upkeep.families import Family, FamilyTree

_parent = aliased(WorkflowRow, name="parent")

_MEMBERS: Final = (
    select(
        WorkflowRow.id,
        WorkflowRow.parent_id,
        WorkflowRow.lease_owner,
        WorkflowRow.lease_process,
        WorkflowRow.lease_expires_at,
        LEASE_IS_FREE.label("lease_is_free"),
    )
    .where(IN_NAMESPACE, is_addressable(WorkflowRow.id))
    .order_by(WorkflowRow.id)
)
_ELDEST: Final = _MEMBERS.where(WorkflowRow.id.in_(bindparam("ids", expanding=True)))
_CHILDREN: Final = _MEMBERS.where(WorkflowRow.parent_id.in_(bindparam("ids", expanding=True)))

_OF_USER: Final = (
    select(WorkflowRow.id, WorkflowRow.parent_id)
    .where(IN_NAMESPACE, is_addressable(WorkflowRow.id), WorkflowRow.user_id == bindparam("user_id"))
    .order_by(WorkflowRow.id)
)
_HAS_PARENT_OF_USER: Final = exists().where(
    _parent.id == WorkflowRow.parent_id,
    _parent.namespace == WorkflowRow.namespace,
    _parent.user_id == WorkflowRow.user_id,
)
_CANCEL: Final = update(WorkflowRow).where(IS_ACTIVE, IS_WRITABLE).values(cancelled(force=True))


class OfUser(NamedTuple):
    """A run of a user's."""

    id: UUID
    parent_id: UUID | None


class FoundFamilies(NamedTuple):
    """Runs and all that descend from them."""

    families: Sequence[Family]
    """One that `is_over` is nobody's. A run that descends from another of those asked for is in its family."""
    owned: Sequence[Any]
    """The rows of those runs that have a live owner."""
    parents: Collection[UUID]
    """Runs outside of the families that have called one of the eldest."""


class ErasureRepository(Repository):
    """Families of runs, whether they are over or not."""

    async def find(self, eldest: Sequence[UUID], *, locked: bool) -> FoundFamilies:
        """Those of the runs `eldest` that there are, with all their descendants; `locked` until the transaction ends.

        A run is locked before its children are looked for: it starts no other meanwhile.
        """
        statements = (_ELDEST, _CHILDREN)
        of_eldest, of_children = (each.with_for_update() for each in statements) if locked else statements
        rows = [row for chunk in chunks(eldest) for row in await self._rows(of_eldest, self._among(chunk))]
        tree = FamilyTree((row.id for row in rows), keeps=_is_owned)
        tree.note_kept(row.id for row in rows if _is_owned(row))
        known = {row.id: row for row in rows}
        parents = list(known)
        while parents:
            found = [row for chunk in chunks(parents) for row in await self._rows(of_children, self._among(chunk))]
            parents = tree.add(found)
            known |= {row.id: row for row in found}
        callers = {row.parent_id for row in rows if row.parent_id is not None and row.parent_id not in known}
        return FoundFamilies(tree.families, [row for row in known.values() if _is_owned(row)], callers)

    async def cancel(self, ids: Sequence[UUID]) -> None:
        """Cancel those of these runs that are unfinished, and take their leases: nobody goes on with them."""
        for chunk in chunks(ids):
            await self._execute(_CANCEL.where(WorkflowRow.id.in_(chunk)))

    async def list_of_user(self, user_id: str, after: UUID | None, limit: int, *, eldest: bool) -> Sequence[OfUser]:
        """The next runs of a user's, in the order of their ids; the `eldest` are those that none of the others called.

        Rows that damage has made each other's parents have no eldest among them.
        """
        query = _OF_USER.where(not_(_HAS_PARENT_OF_USER)) if eldest else _OF_USER
        if after is not None:
            query = query.where(WorkflowRow.id > after)
        rows = await self._rows(query.limit(limit), {"namespace": self._namespace, "user_id": user_id})
        return [OfUser(*row) for row in rows]

    def _among(self, ids: Sequence[UUID]) -> dict[str, Any]:
        return {"namespace": self._namespace, "ids": ids}


def _is_owned(row: Any) -> bool:
    return not row.lease_is_free
