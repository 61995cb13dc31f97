"""The save: insert a state, or update the rows of it that changed, if nobody else has changed them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Insert, bindparam, case, delete, func, select, update

from orchestrator_state.database import conflict_aware_insert, database_now, one_more, unless_committed
from orchestrator_state.domain import FINISHED, WorkflowState
from orchestrator_state.errors import AlreadyExists, LeaseHeld, StaleVersion
from orchestrator_state.models import QuestionRow, SignalRow, StepRow, WorkflowRow, step_states, workflow_states
from orchestrator_state.payloads import ENVELOPE_MARKER, Payloads
from orchestrator_state.records import ASKS, Columns, answer_signal, corrupt_cells, is_count, question_id_of, seal_step
from orchestrator_state.records.states import (
    ChangedRows,
    SavedRows,
    Stamps,
    as_stored,
    check_fields,
    loaded_from,
    payload_bytes,
)
from orchestrator_state.repositories.base import chunks
from orchestrator_state.repositories.checkpointed import CheckpointedRepository
from orchestrator_state.repositories.claimable import LEASE_IS_FREE
from orchestrator_state.repositories.expressions import IN_NAMESPACE, OF_WORKFLOW, has_leftovers
from orchestrator_state.repositories.states.loading import STATE_BY_ID, StateReader
from orchestrator_state.repositories.steps import save_step

_VERSION_AND_LEASE: Final = select(
    WorkflowRow.version, WorkflowRow.lease_owner, WorkflowRow.lease_process, WorkflowRow.lease_expires_at
).where(IN_NAMESPACE, WorkflowRow.id == bindparam("id"))

_GUARDED_UPDATE: Final = (
    update(WorkflowRow)
    .where(*OF_WORKFLOW, WorkflowRow.version == bindparam("of_version"), LEASE_IS_FREE)
    # A worker whose lease ended, but which does not know yet, must not write over this save.
    .values({WorkflowRow.lease_token: one_more(WorkflowRow.lease_token)})
    .returning(WorkflowRow.parent_id)
)
"""Sets the columns that it is given values for."""

_NOW: Final = dict.fromkeys(("updated_at", "digested_at"), database_now())
_STAMPED_UPDATE: Final = _GUARDED_UPDATE.values(_NOW).returning(WorkflowRow.updated_at)
"""Like `_GUARDED_UPDATE`, with the time of the statement; returns it."""


@cache
def _insert_workflow(dialect: str) -> Insert:
    """Returns `updated_at` and `has_leftovers` of `of_id`, which is the id; nothing if that is taken."""
    of_id = bindparam("of_id", type_=WorkflowRow.id.type)
    insert = conflict_aware_insert(dialect, workflow_states).on_conflict_do_nothing()
    return insert.returning(workflow_states.c.updated_at, has_leftovers(of_id))


@cache
def _insert_workflow_now(dialect: str) -> Insert:
    """Like `_insert_workflow`, updated at the time of the statement."""
    return _insert_workflow(dialect).values(_NOW)


def lease_held(workflow_state_id: UUID, row: Any) -> LeaseHeld:
    return LeaseHeld(
        f"run {workflow_state_id} is owned by worker {row.lease_owner} until {row.lease_expires_at:%H:%M:%S} UTC",
        workflow_state_id=workflow_state_id,
        owner=row.lease_owner,
        process=row.lease_process,
        expires_at=row.lease_expires_at,
    )


class StateWriter(StateReader, CheckpointedRepository):
    """Saves states."""

    def _save(
        self, state: WorkflowState, version: int | None, columns: Columns, steps: dict[str, Columns]
    ) -> Coroutine[Any, Any, None]:
        """See `WorkflowRepository.save`. `version` is that of what changed, `columns` and `steps` are all of it."""
        self._payloads.limits.check_workflow(payload_bytes(columns, steps), len(steps))
        saved: SavedRows | None = state._saved
        known: Mapping[str, Mapping[str, Any]] = {} if saved is None else saved.steps
        check_fields(state)
        for step_id, row in steps.items():
            if row != known.get(step_id):
                check_fields(state.steps[step_id])
        if state.version == 0:
            return self._create(state, columns, steps, version)
        return self._update(state, columns, steps, version)

    async def _create(
        self, state: WorkflowState, columns: Columns, steps: dict[str, Columns], version: int | None
    ) -> None:
        stamps, shown = as_stored(columns, steps, None, version)
        row = await self._sealed_workflow(state.id, columns) | {
            "id": state.id,
            "namespace": self._namespace,
            "version": 1,
            "schema_version": version,
            "digested_at": columns["updated_at"],
            "of_id": state.id,
        }
        statement = _insert_workflow
        if is_now := state.updated_at == state._touched_at:
            del row["updated_at"], row["digested_at"]
            statement = _insert_workflow_now
        created = await self._row(statement(self._dialect), row)
        if created is None:
            raise await self._why_not_written(state)
        if is_now:
            columns["updated_at"] = created.updated_at
        await self._begin_without_history(state.id, created)
        positions = {step_id: position for position, step_id in enumerate(steps)}
        await self._write_steps(state.id, steps, positions, stamps)
        self._remember(state, SavedRows(columns, steps, positions, stamps, shown))

    async def _update(
        self, state: WorkflowState, columns: Columns, steps: dict[str, Columns], version: int | None
    ) -> None:
        saved: SavedRows | None = state._saved
        if saved is None:
            saved = await self._saved_rows(state)
        changes = ChangedRows.since(saved, columns, steps, version)
        if changes.are_none:
            await self._require_current(state)
            return
        changes.add_what_follows(saved, columns, steps)
        is_now = columns["updated_at"] in (saved.workflow["updated_at"], state._touched_at)
        # Read before the update, and written after it: that is what tells whether anything may be written.
        deltas = await self._whole_deltas(state.id) if saved.may_have_deltas and changes.are_seen_by_deltas else []
        columns["updated_at"] = await self._guarded_update(state, changes.columns, is_now=is_now)
        if deltas:
            await self._replace_deltas(deltas)
        if saved.outdated:
            await self._forget_digests(state.id)
        if changes.removed:
            await self._delete_steps(state.id, changes.removed)
        await self._write_steps(state.id, changes.steps, changes.positions, changes.stamps)
        self._remember(
            state,
            SavedRows(
                columns,
                steps,
                changes.positions,
                changes.stamps,
                changes.shown,
                may_have_deltas=saved.may_have_deltas,
                has_patches=saved.has_patches and "context" not in changes.columns,
            ),
        )

    async def _guarded_update(self, state: WorkflowState, changed: Columns, *, is_now: bool) -> datetime:
        """Returns what became of `updated_at`: the present time if that `is_now`."""
        if not is_count(state.version):
            raise corrupt_cells(["version"], state.id)
        guard = {"of_id": state.id, "of_namespace": self._namespace, "of_version": state.version}
        if "error" in changed:
            changed = changed | {"error_type": None}  # that of another error
        values = await self._sealed_workflow(state.id, changed) | {"version": state.version + 1} | guard
        updated_at: datetime = values["updated_at"]
        if is_now:
            del values["updated_at"], values["digested_at"]
        row = await self._row(_STAMPED_UPDATE if is_now else _GUARDED_UPDATE, values)
        if row is None:
            raise await self._why_not_written(state)
        if row.parent_id is not None and changed.get("status") in FINISHED:
            await self._wake(row.parent_id)
        return row.updated_at if is_now else updated_at

    async def _forget_digests(self, workflow_state_id: UUID) -> None:
        """Of the payloads that a save does not write, as older software may have. It writes no envelopes."""
        for table, owner, names in (
            (workflow_states, workflow_states.c.id, ("initial_context", "result")),
            (step_states, step_states.c.workflow_state_id, ("context_patch",)),
        ):
            kept = {f"{name}_digest": _digest_of_envelope(table, name) for name in names}
            await self._execute(update(table).where(owner == workflow_state_id).values(kept))

    async def _delete_steps(self, workflow_state_id: UUID, step_ids: Sequence[str]) -> None:
        for chunk in chunks(step_ids):
            await self._delete(
                delete(StepRow).where(StepRow.workflow_state_id == workflow_state_id, StepRow.step_id.in_(chunk))
            )
            # What they asked is not asked any more, and an answer to it is none to what may be asked in its place.
            asked = [question_id_of(workflow_state_id, each) for each in chunk if each.startswith(ASKS)]
            if asked:
                answers = [answer_signal(question_id) for question_id in asked]
                of_run = SignalRow.workflow_state_id == workflow_state_id
                await self._delete(delete(SignalRow).where(of_run, SignalRow.name.in_(answers)))
                await self._delete(delete(QuestionRow).where(QuestionRow.id.in_(asked)))

    async def _write_steps(
        self, workflow_state_id: UUID, steps: dict[str, Columns], positions: Mapping[str, int], stamps: Stamps
    ) -> None:
        if not steps:
            return
        sealing = partial(_sealed_steps, self._payloads, workflow_state_id, steps)
        sealed = await self._payloads.aside.call(sealing, sum([len(row["outputs"]) for row in steps.values()]))
        rows = [
            row | {"position": positions[row["step_id"]], "schema_version": stamps.get(row["step_id"])}
            for row in sealed
        ]
        await self._execute(save_step(self._dialect), rows)

    async def _saved_rows(self, state: WorkflowState) -> SavedRows:
        """The base to compare with for a state that did not come from here, such as one sent over a wire."""
        live = await self._state(STATE_BY_ID, id=state.id)
        if live is None or live.version != state.version:
            raise await self._why_not_written(state)
        return loaded_from(live)

    async def _current(self, workflow_state_id: UUID) -> Any:
        """Version and lease of a workflow, or None."""
        parameters = {"id": workflow_state_id, "namespace": self._namespace}
        return await self._row(_VERSION_AND_LEASE, parameters)

    async def _require_current(self, state: WorkflowState) -> None:
        row = await self._current(state.id)
        if row is None or row.version != state.version:
            raise await self._why_not_written(state)

    async def _why_not_written(self, state: WorkflowState) -> Exception:
        row = await self._current(state.id)
        if row is not None and row.version == state.version and row.lease_expires_at is not None:
            return lease_held(state.id, row)
        if row is not None:
            return StaleVersion(
                f"workflow {state.id} is at version {row.version}, this copy at {state.version}; load it again",
                workflow_state_id=state.id,
                expected=state.version,
                found=row.version,
            )
        if state.version == 0:
            return AlreadyExists(f"the id {state.id} is taken; let the store choose one", workflow_state_id=state.id)
        return self._workflow_not_found(state.id)

    def _remember(self, state: WorkflowState, rows: SavedRows) -> None:
        before = (state.version, state.updated_at, state._saved)

        def forget() -> None:
            state.version, state.updated_at, state._saved = before

        unless_committed(self._session, forget)
        state.version += 1
        state.updated_at = rows.workflow["updated_at"]
        state._saved = rows


def _sealed_steps(payloads: Payloads, workflow_state_id: UUID, steps: Mapping[str, Columns]) -> list[Columns]:
    return [
        seal_step(payloads, workflow_state_id, step_id, row)
        | {"workflow_state_id": workflow_state_id, "step_id": step_id}
        for step_id, row in steps.items()
    ]


def _digest_of_envelope(table: FromClause, name: str) -> ColumnElement[Any]:
    """The digest of a payload column where it holds an envelope, else NULL."""
    is_envelope = func.substr(table.c[name], 1, len(ENVELOPE_MARKER)) == ENVELOPE_MARKER
    return case((is_envelope, table.c[f"{name}_digest"]), else_=None)
