"""Messages for runs, first in, first out."""

from __future__ import annotations

from functools import cache, partial
from typing import Final
from uuid import UUID

from sqlalchemy import Insert, or_, select, update

from orchestrator_state.database import conflict_aware_insert, database_now
from orchestrator_state.domain import ACTIVE, StepStatus
from orchestrator_state.errors import AlreadyExists, Conflict, PayloadError
from orchestrator_state.models import SignalRow, StepRow, WorkflowRow, signals
from orchestrator_state.payloads import Sealed
from orchestrator_state.records import Signal, SignalPlace, is_call_of
from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.claimable import IS_ACTIVE
from orchestrator_state.repositories.counts import next_count
from orchestrator_state.repositories.expressions import NOW_IF_ASLEEP, OF_WORKFLOW
from orchestrator_state.repositories.runs.claims import MOST_LOOKS

_TAKE_NUMBER: Final = (
    update(WorkflowRow)
    .where(*OF_WORKFLOW, IS_ACTIVE)
    .values(signal_seq=next_count(WorkflowRow.signal_seq, SignalRow), wake_at=NOW_IF_ASLEEP)
    .returning(WorkflowRow.signal_seq, WorkflowRow.status)
)
_STATUS: Final = select(WorkflowRow.status).where(*OF_WORKFLOW)


@cache
def _insert_signal(dialect: str) -> Insert:
    insert = conflict_aware_insert(dialect, signals).values(sent_at=database_now())
    return insert.on_conflict_do_nothing(index_elements=["id"])


class SignalRepository(Repository):
    """Signals that no run has consumed yet."""

    async def next(self, workflow_state_id: UUID, name: str) -> Signal | None:
        """The oldest signal of that name."""
        query = (
            select(SignalRow.id, SignalRow.payload, SignalRow.payload_digest)
            .where(SignalRow.workflow_state_id == workflow_state_id, SignalRow.name == name)
            .order_by(SignalRow.seq)
            .limit(1)
        )
        rows = await self._rows_with_blobs(query)
        if not rows:
            return None
        (row,) = rows
        place = SignalPlace(workflow_state_id, row.id, self._namespace, name)
        try:
            opening = partial(place.open, self._payloads, row.payload, row.payload_digest, f"signal {name!r}")
            payload = await self._payloads.aside.call(opening, self._payloads.length([row.payload]))
        except PayloadError as error:
            raise error.concerning(workflow_state_id=workflow_state_id) from None
        return Signal(id=row.id, payload=payload)

    async def send(
        self, workflow_state_id: UUID, signal_id: UUID, name: str, payload: str | Sealed, *, once: bool = False
    ) -> str | None:
        """Store a signal and wake the run. Returns the workflow's status, None if there is no such workflow.

        Nothing is stored for a finished workflow. Sending the same `signal_id` again changes nothing. `once`: raises
        `AlreadyExists` if one of that name is there, or was consumed. In a transaction that commits all the same, the
        number that this one has taken is nobody's, and the run is woken in vain.
        """
        seq, status = await self._take_number(workflow_state_id)
        if seq is None:
            return status
        if once and await self._was_accepted(workflow_state_id, name):
            message = f"run {workflow_state_id} was sent a signal {name!r} before, and this one is to be the only one"
            raise AlreadyExists(message, workflow_state_id=workflow_state_id, name=name)
        place = SignalPlace(workflow_state_id, signal_id, self._namespace, name)
        sealed = place.seal(self._payloads, payload)
        values = {
            "id": signal_id,
            "workflow_state_id": workflow_state_id,
            "name": name,
            "payload": sealed.text,
            "payload_digest": sealed.digest,
            "seq": seq,
        }
        await self._execute(_insert_signal(self._dialect), values)
        await self._announce()
        return status

    async def _was_accepted(self, workflow_state_id: UUID, name: str) -> bool:
        """Whether a signal of that name waits for the run, or a finished step has it. For who has locked the run's row.

        Whoever consumes one writes that row as well: in these statements it is still there, or it is a step's.
        """
        unread = select(SignalRow.id).where(SignalRow.workflow_state_id == workflow_state_id, SignalRow.name == name)
        if await self._row(unread.limit(1)) is not None:
            return True
        step_id = f"signal:{name}"
        finished = select(StepRow.step_id).where(
            StepRow.workflow_state_id == workflow_state_id,
            StepRow.status == StepStatus.COMPLETED.value,  # one that is skipped has waited in vain
            or_(StepRow.step_id == step_id, StepRow.step_id.startswith(f"{step_id}#", autoescape=True)),
        )
        return any(is_call_of(step_id, row.step_id) for row in await self._rows(finished))

    async def _take_number(self, workflow_state_id: UUID) -> tuple[int | None, str | None]:
        """The next signal's number, if the workflow is unfinished, and its status, if there is one. Wakes the run."""
        of_workflow = {"of_id": workflow_state_id, "of_namespace": self._namespace}
        for _ in range(MOST_LOOKS):
            if (row := await self._row(_TAKE_NUMBER, of_workflow)) is not None:
                return row.signal_seq, row.status
            found = await self._row(_STATUS, of_workflow)
            status: str | None = found.status if found else None
            if status not in ACTIVE:  # or it was resumed between the two statements
                return None, status
        message = f"the signal for run {workflow_state_id} is not stored: a trigger, or others, keep the row from it"
        raise Conflict(message, workflow_state_id=workflow_state_id)
