"""What happens to a run because of a relative: its parent, its children, the run that it was forked from."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Final
from uuid import UUID

from sqlalchemy import and_, bindparam, func, select, update
from sqlalchemy.orm import aliased

from orchestrator_state.database import database_now, one_more
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import StepRow, WorkflowRow
from orchestrator_state.payloads import Payloads
from orchestrator_state.records import Columns, Opener, SealedStep, seal_step
from orchestrator_state.repositories.base import Repository, chunks
from orchestrator_state.repositories.claimable import IS_ACTIVE
from orchestrator_state.repositories.counts import IS_WRITABLE
from orchestrator_state.repositories.runs.fence import RELEASED, STILL_DIGESTED_AT
from orchestrator_state.repositories.runs.requests import CANCEL, cancelled
from orchestrator_state.repositories.steps import SET_STEP

_REVIVED: Final[Columns] = RELEASED | {
    "status": WorkflowStatus.PENDING.value,
    "attempts": 0,
    "version": one_more(WorkflowRow.version),
    "lease_token": one_more(WorkflowRow.lease_token),
    "updated_at": database_now(),
    "digested_at": STILL_DIGESTED_AT,
    **dict.fromkeys(("error", "error_digest", "error_type", "completed_at", "wake_at", "request")),
}

_CONTEXTS: Final = (
    WorkflowRow.id,
    WorkflowRow.updated_at,
    WorkflowRow.digested_at,
    WorkflowRow.context,
    WorkflowRow.context_digest,
    WorkflowRow.initial_context,
    WorkflowRow.initial_context_digest,
    WorkflowRow.attributes,
    WorkflowRow.budget_cost,
    WorkflowRow.budget_tokens,
)
_ORIGINAL: Final = aliased(StepRow)
_IS_ORIGINAL: Final = (_ORIGINAL.workflow_state_id == bindparam("of_source"), _ORIGINAL.step_id == StepRow.step_id)
_COPY_KINDS: Final = (
    update(StepRow)
    .where(StepRow.workflow_state_id == bindparam("of_fork"))
    .values(
        kind=select(_ORIGINAL.kind).where(*_IS_ORIGINAL).scalar_subquery(),
        waits_until=select(_ORIGINAL.waits_until).where(*_IS_ORIGINAL).scalar_subquery(),
    )
)
_SET_LINEAGE: Final = update(WorkflowRow).where(WorkflowRow.id == bindparam("of_id"))
"""Sets the columns that it is given values for."""


class LineageRepository(Repository):
    """Families of runs."""

    async def cancel_descendants(self, workflow_state_id: UUID, *, force: bool = False) -> list[UUID]:
        """Cancel all unfinished runs that descend from a run: at once, or, where they are owned, by asking for it.

        By `force` at once, whoever owns them. Returns their ids. A run is locked before its children are looked for: it
        starts no other meanwhile.
        """
        cancelling = update(WorkflowRow).where(IS_ACTIVE, IS_WRITABLE).values(cancelled(force=force))
        unfinished: list[UUID] = []
        parents: list[UUID] = [workflow_state_id]
        seen = {workflow_state_id}  # damaged rows may be parents of each other
        while parents:
            children: list[UUID] = []
            for chunk in chunks(parents):
                children_of = (WorkflowRow.namespace == self._namespace, WorkflowRow.parent_id.in_(chunk))
                # All of them: one that has failed may be resumed, and start others, before those are looked for.
                listed = select(WorkflowRow.id).where(*children_of).order_by(WorkflowRow.id)
                children += [row.id for row in await self._rows(listed.with_for_update(key_share=True))]
                if children:
                    changed = cancelling.where(*children_of).returning(WorkflowRow.id)
                    unfinished += [row.id for row in await self._rows(changed)]
            parents = [child for child in dict.fromkeys(children) if child not in seen]
            seen.update(parents)
        return unfinished

    async def revive_descendants(self, workflow_state_id: UUID, *, was_cancelled: bool = False) -> None:
        """Let the failed children of a run that is to try again be tried again with it, and theirs.

        If it `was_cancelled`, those too that were cancelled with it, and those whose owners have still to hear of it.
        """
        over = [WorkflowStatus.FAILED.value, *([WorkflowStatus.CANCELLED.value] if was_cancelled else [])]
        parents: list[UUID] = [workflow_state_id]
        while parents:
            revived: list[UUID] = []
            for chunk in chunks(parents):
                child = and_(WorkflowRow.namespace == self._namespace, WorkflowRow.parent_id.in_(chunk), IS_WRITABLE)
                updates = [update(WorkflowRow).where(child, WorkflowRow.status.in_(over)).values(_REVIVED)]
                if was_cancelled:
                    asked = and_(child, IS_ACTIVE, WorkflowRow.request == CANCEL)
                    updates.append(update(WorkflowRow).where(asked).values(request=None))
                for revival in updates:
                    revived += [row.id for row in await self._rows(revival.returning(WorkflowRow.id))]
            parents = revived

    async def spare_ancestors(self, parent_id: UUID | None) -> None:
        """Give the runs above a child their budgets back: what vanished over it did so over them as well."""
        seen: set[UUID] = set()
        while parent_id is not None and parent_id not in seen:
            seen.add(parent_id)
            spared = await self._execute(
                update(WorkflowRow)
                .where(WorkflowRow.id == parent_id, WorkflowRow.namespace == self._namespace, IS_ACTIVE)
                .values(has_progressed=1)
                .returning(WorkflowRow.parent_id)
            )
            parent_id = spared.scalar()

    async def note_fork(self, fork_id: UUID, source: UUID, seq: int | None, step_ids: Collection[str]) -> None:
        """Write where a fork came from, and copy how these of its steps, which are finished, changed the context.

        And of all of them what a snapshot does not say: what was called.
        """
        lineage = {"forked_from_id": source, "forked_from_seq": seq}
        await self._copy_context_history(fork_id, source, step_ids, lineage)
        await self._execute(_COPY_KINDS, {"of_fork": fork_id, "of_source": source})
        last = select(func.max(StepRow.position)).where(StepRow.workflow_state_id == fork_id)
        await self._execute(
            update(WorkflowRow)
            .where(WorkflowRow.id == fork_id)
            .values(context_position=func.coalesce(last.scalar_subquery(), -1))
        )
        await self._announce()

    async def _copy_context_history(
        self, fork_id: UUID, source: UUID, step_ids: Collection[str], columns: Columns
    ) -> None:
        """Through here and not inside the database: a payload is bound to the row that it is in."""
        of_source = select(*_CONTEXTS).where(WorkflowRow.id == source)
        rows = await self._rows_with_blobs(of_source)
        if not rows:
            return
        (row,) = rows
        opener = Opener.of(self._payloads, row)
        opening = partial(opener.workflow, "initial_context", row.initial_context, row.initial_context_digest)
        if row.initial_context is None and row.initial_context_digest is None:
            opening = partial(opener.workflow, "context", row.context, row.context_digest)
        first = await self._payloads.aside.call(opening, self._payloads.length([row.context, row.initial_context]))
        columns = columns | await self._sealed_workflow(fork_id, {"initial_context": first})
        columns |= {"budget_cost": row.budget_cost, "budget_tokens": row.budget_tokens}
        if isinstance(row.attributes, dict):  # the steps that set them are on record, and are not called again
            columns |= {"attributes": row.attributes}
        await self._execute(_SET_LINEAGE, {"of_id": fork_id} | columns)
        for chunk in chunks(sorted(step_ids)):
            steps = select(StepRow).where(StepRow.workflow_state_id == source, StepRow.step_id.in_(chunk))
            for step in map(SealedStep.of, await self._rows_with_blobs(steps)):
                sealing = partial(_sealed_patch, self._payloads, opener, step, fork_id)
                sealed = await self._payloads.aside.call(sealing, self._payloads.length([step.context_patch]))
                of_step = {"of_workflow": fork_id, "of_step": step.step_id}
                await self._execute(SET_STEP, of_step | sealed | {"position": step.position})


def _sealed_patch(payloads: Payloads, opener: Opener, step: SealedStep, workflow_state_id: UUID) -> Columns:
    """How a step changed the context, for the step of the same id of another workflow."""
    patch = opener.step(step.step_id, "context_patch", step.context_patch, step.context_patch_digest)
    return seal_step(payloads, workflow_state_id, step.step_id, {"context_patch": patch})
