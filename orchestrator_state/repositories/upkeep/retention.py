"""What is too old, or too much: counted, locked and deleted. Which it is of a family, `families` says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    String,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    select,
    union_all,
)

from orchestrator_state.arguments import as_count, as_utc
from orchestrator_state.models import CheckpointRow, SignalRow, StepRow, WorkflowRow
from orchestrator_state.payloads import Reference
from orchestrator_state.repositories.base import Repository, chunks
from orchestrator_state.repositories.expressions import HANGING, IN_NAMESPACE, is_reference, payload_columns
from orchestrator_state.repositories.upkeep.families import (
    CHILDREN,
    CHILDREN_TO_DELETE,
    Cutoffs,
    DueRow,
    Family,
    FamilyTree,
    Place,
    all_before,
    finished,
    lives,
    next_due,
)


class Hanging(NamedTuple):
    """How many rows hang on a workflow."""

    steps: int
    checkpoints: int
    signals: int


def _count_of(rows: type[StepRow | CheckpointRow | SignalRow], kind: str) -> Select[UUID, str, int]:
    owner = rows.workflow_state_id
    named: ColumnElement[str] = literal_column(f"'{kind}'", String).label("kind")
    return (
        select(owner, named, func.count().label("number"))
        .where(owner.in_(bindparam("ids", expanding=True)))
        .group_by(owner)
    )


_HANGING_ON: Final = union_all(
    _count_of(StepRow, "steps"), _count_of(SignalRow, "signals"), _count_of(CheckpointRow, "checkpoints")
)

_AMONG: Final = bindparam("among", type_=WorkflowRow.id.type, expanding=True)
_OWNERS: Final = (
    (WorkflowRow, WorkflowRow.id),
    *((hanging, hanging.workflow_state_id) for hanging in HANGING),
)
_REFERENCES_OF: Final = union_all(
    *(
        select(column).where(owner.in_(_AMONG), is_reference(column))
        for rows, owner in _OWNERS
        for column in payload_columns(rows.__table__)
    )
)
"""All references to blobs of the workflows, as of one moment."""

_DELETE_OLDEST_SIGNALS: Final = delete(SignalRow).where(
    SignalRow.id.in_(
        select(SignalRow.id)
        .join(WorkflowRow, WorkflowRow.id == SignalRow.workflow_state_id)
        .where(IN_NAMESPACE, SignalRow.workflow_state_id == bindparam("workflow_state_id"))
        .order_by(SignalRow.seq)
        .limit(bindparam("number", type_=BigInteger))
    )
)


class RetentionRepository(Repository):
    """For the store's own deletions, which lock what they delete before they do."""

    async def count_finished(self, *, older_than: datetime) -> int:
        """How many finished workflows were last updated before `older_than` and may be deleted."""
        query = finished(self._namespace, all_before(as_utc(older_than, "older_than")))
        (counted,) = await self._row(select(func.count()).select_from(query.subquery()))
        return int(counted)

    async def lock_finished(
        self, *, older_than: datetime, limit: int, after: Place | None = None
    ) -> tuple[Sequence[DueRow], Sequence[Family]]:
        """The oldest workflows that may be deleted, from a place on; and each with the child runs that go with it.

        They are locked until the transaction ends; what others lock is passed over.
        """
        cutoffs = all_before(as_utc(older_than, "older_than"))
        query = next_due(self._namespace, cutoffs, after, as_count(limit, "limit"))
        rows = await self._rows(query.with_for_update(skip_locked=True, of=WorkflowRow))
        eldest = [DueRow(*row) for row in rows]
        return eldest, await self.families_of(eldest, cutoffs, locked=True)

    async def families_of(self, eldest: Sequence[Any], cutoffs: Cutoffs, *, locked: bool) -> Sequence[Family]:
        """The rows of `eldest_finished`, each with all that descend from it; `locked`: those, too."""
        tree = FamilyTree((row.id for row in eldest), keeps=partial(lives, cutoffs=cutoffs))
        query = CHILDREN_TO_DELETE if locked else CHILDREN
        parents = [row.id for row in eldest if row.has_children]
        while parents:
            parents = [
                child
                for chunk in chunks(parents)
                for child in tree.add(await self._rows(query, {"parents": chunk, "namespace": self._namespace}))
            ]
        return tree.families

    async def delete_locked(self, ids: Sequence[UUID]) -> None:
        """Delete workflows that this transaction has locked, with all that hangs on them."""
        for chunk in chunks(ids):
            # Not left to the cascade: an application's own SQLite engine may have foreign keys off.
            for hanging in HANGING:
                await self._delete(delete(hanging).where(hanging.workflow_state_id.in_(chunk)))
            await self._delete(delete(WorkflowRow).where(WorkflowRow.id.in_(chunk)))

    async def count_hanging(self, ids: Sequence[UUID]) -> list[Hanging]:
        """How many rows hang on each of these workflows, of whichever namespace they are."""
        counts = {workflow_state_id: dict.fromkeys(Hanging._fields, 0) for workflow_state_id in ids}
        for chunk in chunks(ids):
            for row in await self._rows(_HANGING_ON, {"ids": chunk}):
                counts[row.workflow_state_id][row.kind] += row.number
        return [Hanging(**count) for count in counts.values()]

    async def delete_signals(self, workflow_state_id: UUID, *, limit: int) -> int:
        """Delete the oldest signals of a workflow, at most `limit`. Returns how many were deleted."""
        parameters = {"workflow_state_id": workflow_state_id, "namespace": self._namespace, "number": limit}
        return await self._delete(_DELETE_OLDEST_SIGNALS, parameters)

    async def list_surplus_checkpoints(
        self, keep: int, *, after: UUID | None, only: UUID | None, limit: int
    ) -> Sequence[tuple[UUID, int]]:
        """Workflows with more than `keep` checkpoints and how many they have, in order of id from `after` on."""
        owner = CheckpointRow.workflow_state_id
        query = self._surplus(keep)
        if after is not None:
            query = query.where(owner > after)
        if only is not None:
            query = query.where(owner == only)
        return [(row.workflow_state_id, row.number) for row in await self._rows(query.order_by(owner).limit(limit))]

    async def count_surplus_checkpoints(self, keep: int) -> int:
        """How many checkpoints there are beyond the newest `keep` of each workflow."""
        surplus = self._surplus(keep).subquery()
        (counted,) = await self._row(select(func.coalesce(func.sum(surplus.c.number - keep), 0)))
        return int(counted)

    def _surplus(self, keep: int) -> Select[UUID, int]:
        """Workflows that have more than `keep` checkpoints, and their `number`."""
        owner = CheckpointRow.workflow_state_id
        return (
            select(owner, func.count().label("number"))
            .join(WorkflowRow, WorkflowRow.id == owner)
            .where(WorkflowRow.namespace == self._namespace)
            .group_by(owner)
            .having(func.count() > literal(keep, BigInteger))
        )

    async def list_blobs(self, workflow_state_ids: Sequence[UUID]) -> set[str]:
        """The names of all blobs that these workflows refer to, as of one moment for each 500 of them.

        Of whichever namespace they are: a blob that any row refers to is no garbage.
        """
        found: set[str] = set()
        for chunk in chunks(workflow_state_ids):
            found |= {blob.name for blob in Reference.all_in(await self._rows(_REFERENCES_OF, {"among": chunk}))}
        return found
