"""What happens to a run because of a relative: its parent, its children, the run that it was forked from."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import and_, func, select, update

from orchestrator_state.database import database_now, one_more
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import step_states, workflow_states
from orchestrator_state.payloads import Payloads
from orchestrator_state.records import Columns, Opener, seal_step
from orchestrator_state.repositories.base import Repository, chunks
from orchestrator_state.repositories.claimable import IS_ACTIVE
from orchestrator_state.repositories.counts import IS_WRITABLE
from orchestrator_state.repositories.expressions import OUTDATED
from orchestrator_state.repositories.runs.fence import RELEASED, STILL_DIGESTED_AT
from orchestrator_state.repositories.runs.requests import CANCEL, cancelled

_w = workflow_states.c

_REVIVED: Final[Columns] = RELEASED | {
    "status": WorkflowStatus.PENDING.value,
    "attempts": 0,
    "version": one_more(_w.version),
    "lease_token": one_more(_w.lease_token),
    "updated_at": database_now(),
    "digested_at": STILL_DIGESTED_AT,
    **dict.fromkeys(("error", "error_digest", "completed_at", "wake_at", "request")),
}


class LineageRepository(Repository):
    """Families of runs."""

    async def cancel_descendants(self, workflow_state_id: UUID) -> None:
        """Cancel all unfinished runs that descend from a run: at once, or, where they are owned, by asking for it.

        A run is locked before its children are looked for: it starts no other meanwhile.
        """
        parents: list[UUID] = [workflow_state_id]
        seen = {workflow_state_id}  # damaged rows may be parents of each other
        while parents:
            children: list[UUID] = []
            for chunk in chunks(parents):
                children_of = (_w.namespace == self._namespace, _w.parent_id.in_(chunk))
                # All of them: one that has failed may be resumed, and start others, before those are looked for.
                locked = select(_w.id).where(*children_of).order_by(_w.id).with_for_update(key_share=True)
                children += (await self._execute(locked)).scalars()
                if children:
                    await self._execute(
                        update(workflow_states).where(*children_of, IS_ACTIVE, IS_WRITABLE).values(cancelled())
                    )
            parents = [child for child in dict.fromkeys(children) if child not in seen]
            seen.update(parents)

    async def revive_descendants(self, workflow_state_id: UUID, *, was_cancelled: bool = False) -> None:
        """Let the failed children of a run that is to try again be tried again with it, and theirs.

        If it `was_cancelled`, those too that were cancelled with it, and those whose owners have still to hear of it.
        """
        over = [WorkflowStatus.FAILED.value, *([WorkflowStatus.CANCELLED.value] if was_cancelled else [])]
        parents: list[UUID] = [workflow_state_id]
        while parents:
            revived: list[UUID] = []
            for chunk in chunks(parents):
                child = and_(_w.namespace == self._namespace, _w.parent_id.in_(chunk), IS_WRITABLE)
                updates = [update(workflow_states).where(child, _w.status.in_(over)).values(_REVIVED)]
                if was_cancelled:
                    asked = and_(child, IS_ACTIVE, _w.request == CANCEL)
                    updates.append(update(workflow_states).where(asked).values(request=None))
                for revival in updates:
                    revived += (await self._execute(revival.returning(_w.id))).scalars()
            parents = revived

    async def spare_ancestors(self, parent_id: UUID | None) -> None:
        """Give the runs above a child their budgets back: what vanished over it did so over them as well."""
        seen: set[UUID] = set()
        while parent_id is not None and parent_id not in seen:
            seen.add(parent_id)
            spared = await self._execute(
                update(workflow_states)
                .where(_w.id == parent_id, _w.namespace == self._namespace, IS_ACTIVE)
                .values(has_progressed=1)
                .returning(_w.parent_id)
            )
            parent_id = spared.scalar()

    async def note_fork(self, fork_id: UUID, source: UUID, seq: int | None, step_ids: Collection[str]) -> None:
        """Write where a fork came from, and copy how these of its steps, which are finished, changed the context."""
        lineage = {"forked_from_id": source, "forked_from_seq": seq}
        await self._copy_context_history(fork_id, source, step_ids, lineage)
        last = select(func.max(step_states.c.position)).where(step_states.c.workflow_state_id == fork_id)
        await self._execute(
            update(workflow_states)
            .where(_w.id == fork_id)
            .values(context_position=func.coalesce(last.scalar_subquery(), -1))
        )
        await self._announce()

    async def _copy_context_history(
        self, fork_id: UUID, source: UUID, step_ids: Collection[str], columns: Columns
    ) -> None:
        """Through here and not inside the database: a payload is bound to the row that it is in."""
        of_source = select(workflow_states, OUTDATED).where(_w.id == source)
        rows = await self._rows_with_blobs(of_source)
        if not rows:
            return
        (row,) = rows
        opener = Opener(self._payloads, source, outdated=row.outdated)
        opening = partial(opener.workflow, "initial_context", row.initial_context, row.initial_context_digest)
        if row.initial_context is None and row.initial_context_digest is None:
            opening = partial(opener.workflow, "context", row.context, row.context_digest)
        first = await self._payloads.aside.call(opening, self._payloads.length([row.context, row.initial_context]))
        columns = columns | await self._sealed_workflow(fork_id, {"initial_context": first})
        await self._execute(update(workflow_states).where(_w.id == fork_id).values(columns))
        for chunk in chunks(sorted(step_ids)):
            steps = select(step_states).where(
                step_states.c.workflow_state_id == source, step_states.c.step_id.in_(chunk)
            )
            for step in await self._rows_with_blobs(steps):
                sealing = partial(_sealed_patch, self._payloads, opener, step, fork_id)
                sealed = await self._payloads.aside.call(sealing, self._payloads.length([step.context_patch]))
                await self._execute(
                    update(step_states)
                    .where(step_states.c.workflow_state_id == fork_id, step_states.c.step_id == step.step_id)
                    .values(sealed | {"position": step.position})
                )


def _sealed_patch(payloads: Payloads, opener: Opener, step: Any, workflow_state_id: UUID) -> Columns:
    """How a step changed the context, for the step of the same id of another workflow."""
    patch = opener.step(step.step_id, "context_patch", step.context_patch, step.context_patch_digest)
    return seal_step(payloads, workflow_state_id, step.step_id, {"context_patch": patch})
