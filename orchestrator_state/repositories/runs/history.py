"""What is recorded of a run: its steps, and how they changed its context."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Final
from uuid import UUID

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.orm import outerjoin

from orchestrator_state.collector import collector_paused
from orchestrator_state.database import marking, setting_idle_limit, takes_marks
from orchestrator_state.domain import StepStatus
from orchestrator_state.models import CheckpointRow, StepRow, WorkflowRow
from orchestrator_state.records import (
    WAITS,
    Columns,
    Lease,
    Opener,
    OpenStep,
    SealedStep,
)
from orchestrator_state.repositories.base import chunks
from orchestrator_state.repositories.runs.fence import FIRST_CONTEXT_KEPT, FencedRepository
from orchestrator_state.repositories.steps import SET_STEP, record_step_once

_position: Final = attrgetter("position")
_CONVERTED: Final = ("outputs", "outputs_digest", "context_patch", "context_patch_digest")


# In no order: the database would sort whole rows, payloads included.
_STORED_STEPS_OF: Final = select(*(getattr(StepRow, name) for name in SealedStep._fields)).where(
    StepRow.workflow_state_id.in_(bindparam("workflow_state_ids", expanding=True))
)


class HistoryRepository(FencedRepository):
    """The steps of runs, and their contexts."""

    async def list_steps_of(self, ids: Sequence[UUID]) -> dict[UUID, list[SealedStep]]:
        """The steps of each of these runs, in order of position: one statement for up to 500 runs."""
        steps: dict[UUID, list[SealedStep]] = {workflow_state_id: [] for workflow_state_id in ids}
        for chunk in chunks(ids):
            found = await self._rows(_STORED_STEPS_OF, {"workflow_state_ids": chunk})
            with collector_paused():
                for row in map(SealedStep._make, found):
                    steps[row.workflow_state_id].append(row)
        for rows in steps.values():
            try:
                rows.sort(key=_position)
            except TypeError:  # damage, which is found when the run is loaded
                rows.sort(key=lambda step: step.position if type(step.position) is int else -1)
        return steps

    async def find_completed_step(
        self, workflow_state_id: UUID, step_id: str, *, idle_limit: timedelta | None = None
    ) -> OpenStep | None:
        """A step, if it is recorded as completed.

        With an `idle_limit`, Postgres ends this transaction once nothing has happened in it for so long. It is marked
        then, see `open_transactions`.
        """
        query = select(StepRow)
        completed = (
            StepRow.workflow_state_id == workflow_state_id,
            StepRow.step_id == step_id,
            StepRow.status == "completed",
        )
        if idle_limit is None or not takes_marks(self._session):
            query = query.where(*completed)
        else:  # in the same round trip
            limited = select(setting_idle_limit(idle_limit).label("limit"), marking().label("mark"))
            begun = limited.subquery("begun")
            query = query.add_columns(begun.c.limit, begun.c.mark).select_from(
                outerjoin(begun, StepRow, and_(*completed))
            )
        rows = await self._rows_with_blobs(query)
        if not rows or rows[0].step_id is None:
            return None
        (row,) = rows
        # Whatever was out of date when the run was loaded has been written anew.
        opener = Opener(self._payloads, workflow_state_id, outdated=False)
        return OpenStep.of(SealedStep.of(row), opener)

    async def list_intents(self, workflow_state_id: UUID) -> list[str]:
        """The steps that were begun, by their own word, and are not over; none that only waits."""
        query = select(StepRow.step_id).where(
            StepRow.workflow_state_id == workflow_state_id,
            StepRow.status == StepStatus.RUNNING.value,
            func.coalesce(StepRow.kind, "").not_in(sorted(WAITS)),
        )
        return [step_id for (step_id,) in await self._rows(query.order_by(StepRow.position))]

    async def start_context_anew(self, lease: Lease, context: str) -> None:
        """Make `context` what the run starts with, and let the recorded steps leave it alone. Raises `LeaseLost`."""
        await self._make_whole(lease.workflow_state_id)
        await self._write_fenced(lease, {"context": context, "initial_context": context})
        await self._execute(
            update(StepRow)
            .where(StepRow.workflow_state_id == lease.workflow_state_id)
            .values(context_patch=None, context_patch_digest=None)
        )

    async def fold_context(self, lease: Lease, context: str, position: int) -> None:
        """Store the whole context, patches up to `position` included. Raises `LeaseLost`."""
        await self._write_fenced(lease, {"context": context, "context_position": position})

    async def convert(
        self, lease: Lease, *, initial: str, context: str, version: int, steps: Sequence[OpenStep]
    ) -> None:
        """Store a run's whole history at another schema version. Raises `LeaseLost`."""
        position = max((step.position for step in steps), default=-1)
        columns = {"initial_context": initial, "context": context, "context_position": position}
        await self._make_whole(lease.workflow_state_id)
        await self._write_fenced(lease, columns | {"schema_version": version})
        if steps:
            rows = [
                {"of_workflow": lease.workflow_state_id, "of_step": sealed.step_id, "schema_version": version}
                | {name: getattr(sealed, name) for name in _CONVERTED}
                for sealed in self._sealed(lease, [step._replace(error=None) for step in steps])
            ]
            await self._execute(SET_STEP, rows)

    async def replace_steps(self, lease: Lease, damaged: Collection[str], steps: Collection[OpenStep]) -> None:
        """Put `steps` in the place of damaged rows. Raises `LeaseLost`."""
        await self._make_whole(lease.workflow_state_id)
        await self._write_fenced(lease, {})
        for chunk in chunks(sorted(damaged)):
            await self._delete(
                delete(StepRow).where(StepRow.workflow_state_id == lease.workflow_state_id, StepRow.step_id.in_(chunk))
            )
        for sealed in self._sealed(lease, steps):
            await self._execute(record_step_once(self._dialect), sealed._asdict())

    async def renew_digests(self, lease: Lease, columns: Columns, steps: Collection[OpenStep]) -> None:
        """Write payloads that older software wrote once more, with digests that count. Raises `LeaseLost`."""
        renewed = self._sealed(lease, steps)  # their blobs move together
        # A run that goes on has no result; older software takes one back without its digest.
        await self._write_fenced(lease, columns | {"result_digest": None}, renews_digests=True)
        for sealed in renewed:
            of_step = {"of_workflow": lease.workflow_state_id, "of_step": sealed.step_id}
            values = {name: getattr(sealed, name) for name in (*_CONVERTED, "error", "error_digest")}
            await self._execute(SET_STEP, of_step | values)

    async def keep_initial_context(self, workflow_state_id: UUID) -> None:
        """Before the context is replaced: a resumed handler starts with the first one."""
        await self._execute(update(WorkflowRow).where(WorkflowRow.id == workflow_state_id).values(FIRST_CONTEXT_KEPT))

    async def forget_patches(self, workflow_state_id: UUID, *, keep: Collection[str]) -> None:
        """Forget how all steps but those of `keep` changed the context."""
        of_steps = select(StepRow.step_id).where(
            StepRow.workflow_state_id == workflow_state_id, StepRow.context_patch.is_not(None)
        )
        for chunk in chunks(sorted({step_id for (step_id,) in await self._rows(of_steps)} - {*keep})):
            await self._execute(
                update(StepRow)
                .where(StepRow.workflow_state_id == workflow_state_id, StepRow.step_id.in_(chunk))
                .values(context_patch=None, context_patch_digest=None)
            )

    async def forget_checkpoints_after(self, workflow_state_id: UUID, seq: int) -> None:
        """Delete the checkpoints of a line that a rewind gave up: the patches of its steps are gone with the steps."""
        await self._delete(
            delete(CheckpointRow).where(CheckpointRow.workflow_state_id == workflow_state_id, CheckpointRow.seq > seq)
        )

    def _sealed(self, lease: Lease, steps: Collection[OpenStep]) -> list[SealedStep]:
        id_text = str(lease.workflow_state_id)
        return [step.sealed(self._payloads, lease.workflow_state_id, id_text) for step in steps]
