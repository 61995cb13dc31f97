"""What a retention policy asks: which runs are due, which are held, what they take, and when it was last done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Insert,
    Select,
    String,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from orchestrator_state.database import conflict_aware_insert, database_now, database_time_in, stored_bytes
from orchestrator_state.models import CheckpointRow, RequestRow, StepRow, WorkflowRow, requests
from orchestrator_state.payloads import Reference
from orchestrator_state.records import (
    CELLS,
    STEP_PAYLOADS,
    checkpoint_identity,
    damaged_columns,
    step_identity,
    workflow_identity,
)
from orchestrator_state.repositories.base import Repository, chunks, rowcount
from orchestrator_state.repositories.calls import RETENTION_SUCCESS, RETENTION_TURN
from orchestrator_state.repositories.checkpointed import superseded
from orchestrator_state.repositories.checkpoints import HELD_WORKFLOW
from orchestrator_state.repositories.expressions import (
    HANGING,
    IN_NAMESPACE,
    NEWEST_CHECKPOINT_FIRST,
    OUTDATED,
    is_reference,
    payload_columns,
)
from orchestrator_state.repositories.upkeep.families import Cutoffs, DueRow, Place, next_due
from orchestrator_state.repositories.upkeep.payloads import StoredPayload

_NOTES: Final = UUID("4a9f1c0e-6a53-4f0e-9d2b-5d0b7f6f8c11")
"""The ids of a namespace's two rows are made of its name."""


class KinRow(NamedTuple):
    """A workflow, and what it may be held by."""

    id: UUID
    parent_id: UUID | None
    attributes: Any


class Size(NamedTuple):
    """How much is stored of some workflows, or checkpoints."""

    runs: int = 0
    checkpoints: int = 0
    bytes: int = 0


class CheckpointParts(NamedTuple):
    """A checkpoint, and all that it is put together from."""

    seq: int | None
    is_damaged: bool
    outdated: bool
    snapshot: StoredPayload
    refers_to: Sequence[StoredPayload]
    blobs: Mapping[str, str | None]
    """What the snapshot refers to: the content by name; None: it is gone. Empty without a blob store."""


def _stored(rows: Any) -> ColumnElement[int]:
    lengths = (func.coalesce(stored_bytes(column), 0) for column in payload_columns(rows.__table__))
    length: ColumnElement[Any] = sum(lengths, literal(0))
    return func.coalesce(func.sum(length), 0)


def _size_of(rows: Any, owner: Any) -> Select[Any, Any, Any]:
    kind: ColumnElement[str] = literal_column(f"'{rows.__tablename__}'", String).label("kind")
    among = bindparam("among", type_=WorkflowRow.id.type, expanding=True)
    return select(kind, func.count().label("number"), _stored(rows).label("length")).where(owner.in_(among))


_SIZES: Final = union_all(
    _size_of(WorkflowRow, WorkflowRow.id),
    *(_size_of(rows, rows.workflow_state_id) for rows in HANGING if payload_columns(rows.__table__)),
)
_KIN: Final = select(WorkflowRow.id, WorkflowRow.parent_id, WorkflowRow.attributes).where(IN_NAMESPACE)
_BY_ID: Final = _KIN.where(WorkflowRow.id.in_(bindparam("ids", type_=WorkflowRow.id.type, expanding=True)))
_BY_PARENT: Final = _KIN.where(WorkflowRow.parent_id.in_(bindparam("ids", type_=WorkflowRow.id.type, expanding=True)))

_CONTEXTS: Final = ("context", "initial_context")
_OF_WORKFLOW: Final = bindparam("workflow_state_id", type_=WorkflowRow.id.type)
_CHECKPOINT_AT: Final = (
    select(
        CheckpointRow.__table__,
        OUTDATED,
        *(WorkflowRow.__table__.c[name] for column in _CONTEXTS for name in (column, f"{column}_digest")),
    )
    .join(WorkflowRow, WorkflowRow.id == CheckpointRow.workflow_state_id)
    .where(IN_NAMESPACE, CheckpointRow.workflow_state_id == _OF_WORKFLOW)
    .order_by(*NEWEST_CHECKPOINT_FIRST)
    .limit(1)
    .offset(bindparam("place", type_=BigInteger))
)
_STEPS_UP_TO: Final = select(StepRow.__table__).where(
    StepRow.workflow_state_id == _OF_WORKFLOW, StepRow.position <= bindparam("position", type_=BigInteger)
)
_SURPLUS: Final = CheckpointRow.id.in_(superseded(_OF_WORKFLOW, bindparam("keep", type_=BigInteger)))
_SIZE_OF_SURPLUS: Final = select(func.count().label("number"), _stored(CheckpointRow).label("length")).where(_SURPLUS)
_REFERENCES_OF_SURPLUS: Final = select(CheckpointRow.snapshot).where(
    _SURPLUS, is_reference(CheckpointRow.__table__.c.snapshot)
)
_DELETE_SURPLUS: Final = delete(CheckpointRow).where(_SURPLUS)

_OF_NOTE: Final = RequestRow.id == bindparam("note", type_=RequestRow.id.type)
_MADE_AT: Final = select(RequestRow.made_at, database_now().label("now")).where(_OF_NOTE)
_AGO: Final = select(database_time_in(-bindparam("every", type_=Float))).scalar_subquery()
_AHEAD: Final = select(database_time_in(bindparam("every", type_=Float))).scalar_subquery()
_RENEW: Final = update(RequestRow).where(_OF_NOTE).values(made_at=database_now())
# A moment further off than the interval is no pass of this fleet's: the database's clock was put back since.
_TAKE: Final = _RENEW.where(or_(RequestRow.made_at <= _AGO, RequestRow.made_at > _AHEAD))


@cache
def _note(dialect: str) -> Insert:
    return conflict_aware_insert(dialect, requests).values(made_at=database_now()).on_conflict_do_nothing()


class PolicyRepository(Repository):
    """For retention by a policy, a page at a time."""

    # --- what is due -------------------------------------------------------------------------------------------------

    async def list_due(
        self, status: str, cutoffs: Cutoffs, after: Place | None, limit: int, *, locked: bool
    ) -> Sequence[DueRow]:
        """The oldest workflows of a status that may be deleted, after those of the pages before."""
        query = next_due(self._namespace, cutoffs, after, limit)
        query = query.where(WorkflowRow.status == status, WorkflowRow.updated_at < cutoffs[status])
        if locked:
            query = query.with_for_update(skip_locked=True, of=WorkflowRow)
        return [DueRow(*row) for row in await self._rows(query)]

    async def list_kin(self, ids: Iterable[UUID]) -> dict[UUID, KinRow]:
        """These workflows and all their relatives: ancestors, and whatever descends from any of those."""
        kin: dict[UUID, KinRow] = {}
        sought = set(ids)
        while sought:
            found = await self._kin(_BY_ID, sought)
            kin.update((row.id, row) for row in found)
            sought = {row.parent_id for row in found if row.parent_id is not None} - kin.keys()
        sought = set(kin)
        while sought:
            found = [row for row in await self._kin(_BY_PARENT, sought) if row.id not in kin]
            kin.update((row.id, row) for row in found)
            sought = {row.id for row in found}
        return kin

    async def _kin(self, query: Select[Any], ids: set[UUID]) -> list[KinRow]:
        parameters = {"namespace": self._namespace}
        return [
            KinRow(*row)
            for chunk in chunks(sorted(ids))
            for row in await self._rows(query, parameters | {"ids": chunk})
        ]

    async def size_of(self, ids: Sequence[UUID]) -> Size:
        """Workflows, checkpoints, and the bytes of all payloads that are in the database."""
        counts, length = {WorkflowRow.__tablename__: 0, CheckpointRow.__tablename__: 0}, 0
        for chunk in chunks(ids):
            for row in await self._rows(_SIZES, {"among": chunk}):
                length += int(row.length)
                if row.kind in counts:
                    counts[row.kind] += row.number
        return Size(counts[WorkflowRow.__tablename__], counts[CheckpointRow.__tablename__], length)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    async def checkpoint_at(self, workflow_state_id: UUID, place: int) -> CheckpointParts | None:
        """The checkpoint before which there are `place` newer ones."""
        of_workflow = {"workflow_state_id": workflow_state_id}
        parameters = of_workflow | {"place": place, "namespace": self._namespace}
        rows = await self._rows_with_blobs(_CHECKPOINT_AT, parameters)
        if not rows:
            return None
        row = rows[0]
        refers_to: list[StoredPayload] = []
        if row.position is not None:
            refers_to += _payloads_of(row, _CONTEXTS, partial(workflow_identity, workflow_state_id))
            steps = await self._rows(_STEPS_UP_TO, of_workflow | {"position": row.position})
            for step in steps:
                refers_to += _payloads_of(step, STEP_PAYLOADS, partial(step_identity, workflow_state_id, step.step_id))
        identity = checkpoint_identity(workflow_state_id, row.id)
        return CheckpointParts(
            seq=row.seq,
            is_damaged=bool(damaged_columns(row, CELLS["checkpoints"])),
            outdated=row.outdated,
            snapshot=StoredPayload("snapshot", row.snapshot, row.snapshot_digest, identity),
            refers_to=refers_to,
            blobs=self._blobs_in(row.snapshot),
        )

    def _blobs_in(self, snapshot: str | None) -> Mapping[str, str | None]:
        offload = self._payloads.offload
        if offload is None:
            return {}
        names = [found.name for found in Reference.all_in([[snapshot]])]
        return {name: offload.text(name) for name in names if offload.has(name)}

    async def hold(self, workflow_state_id: UUID) -> bool:
        """Whether the workflow is there: then no rewind of it begins until the transaction ends."""
        of_workflow = {"workflow_state_id": workflow_state_id, "namespace": self._namespace}
        return await self._row(HELD_WORKFLOW, of_workflow) is not None

    async def size_of_surplus(self, workflow_state_id: UUID, keep: int) -> Size:
        """The checkpoints that `delete_surplus` deletes, and their bytes."""
        row = await self._row(_SIZE_OF_SURPLUS, _surplus(workflow_state_id, keep))
        return Size(checkpoints=row.number, bytes=int(row.length))

    async def list_surplus_references(self, workflow_state_id: UUID, keep: int) -> Sequence[Any]:
        """Rows of the references to blobs in the checkpoints that `delete_surplus` deletes."""
        return await self._rows(_REFERENCES_OF_SURPLUS, _surplus(workflow_state_id, keep))

    async def delete_surplus(self, workflow_state_id: UUID, keep: int) -> int:
        """Delete all checkpoints but the newest `keep`. Returns how many were deleted."""
        return await self._delete(_DELETE_SURPLUS, _surplus(workflow_state_id, keep))

    # --- whose turn it is --------------------------------------------------------------------------------------------

    async def seconds_since(self, kind: str) -> float | None:
        """How long ago a pass began, or succeeded, by the database's clock; None if that never was."""
        row = await self._row(_MADE_AT, {"note": self._note_of(kind)})
        return None if row is None else (row.now - row.made_at).total_seconds()

    async def find_success(self) -> datetime | None:
        """When a pass last succeeded."""
        row = await self._row(_MADE_AT, {"note": self._note_of(RETENTION_SUCCESS)})
        return None if row is None else row.made_at

    async def take_turn(self, every: timedelta) -> bool:
        """Whether no pass has begun, or gone on, for so long: then it is the caller's to do."""
        if await self._insert_note(RETENTION_TURN):
            return True
        parameters = {"note": self._note_of(RETENTION_TURN), "every": every.total_seconds()}
        return rowcount(await self._execute(_TAKE, parameters)) == 1

    async def note(self, kind: str) -> None:
        """Note that a pass goes on, or has succeeded, now."""
        if not await self._insert_note(kind):
            await self._execute(_RENEW, {"note": self._note_of(kind)})

    async def _insert_note(self, kind: str) -> bool:
        values = {"id": self._note_of(kind), "namespace": self._namespace, "kind": kind}
        return rowcount(await self._execute(_note(self._dialect), values)) == 1

    def _note_of(self, kind: str) -> UUID:
        return uuid5(_NOTES, f"{kind} {self._namespace}")


def _payloads_of(row: Any, columns: Iterable[str], identity: Callable[[str], str]) -> Iterable[StoredPayload]:
    for column in columns:
        text, digest = getattr(row, column), getattr(row, f"{column}_digest")
        if text is not None or digest is not None:
            yield StoredPayload(column, text, digest, identity(column))


def _surplus(workflow_state_id: UUID, keep: int) -> dict[str, Any]:
    return {"workflow_state_id": workflow_state_id, "keep": keep}
