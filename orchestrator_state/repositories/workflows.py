"""The three repositories: they add and flush, and never commit.

A repository works in the transaction of the session it is given. `get` raises when there is nothing, `find`
returns None. Every statement is confined to one namespace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import CursorResult, Delete, Executable, Result, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import hooks
from orchestrator_state.arguments import as_count, as_instance, as_name, as_utc, as_uuid
from orchestrator_state.concurrency import LONG
from orchestrator_state.database import ReadingSession, announce, database_errors, unless_committed
from orchestrator_state.domain import FINISHED, Checkpoint, StepState, WorkflowState
from orchestrator_state.errors import (
    AlreadyExists,
    CheckpointNotFound,
    CorruptPayload,
    LeaseHeld,
    PayloadError,
    SchemaMismatch,
    StaleVersion,
    StepNotFound,
    WorkflowNotFound,
)
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.payloads import PLAIN, Payloads, Reference, Sealed
from orchestrator_state.records import (
    Columns,
    Delta,
    DeltaBase,
    SavedRows,
    Stamps,
    as_stored,
    check_fields,
    check_state,
    checkpoint_columns,
    checkpoint_from_row,
    checkpoint_identity,
    corrupt_cells,
    is_count,
    loaded_from,
    open_snapshot,
    payload_bytes,
    payloads_in,
    prepared_workflow,
    seal_step,
    seal_workflow,
    state_columns,
    states_from_rows,
    step_from_row,
    upcast_state,
    upcast_step,
)
from orchestrator_state.repositories.expressions import (
    ACTIVE_STATES,
    CHECKPOINT_BY_ID,
    CHECKPOINT_IDS_OF,
    CHECKPOINT_OWNER,
    CHECKPOINTS_OF,
    CHILDREN_OF,
    CURRENT_VERSION,
    DAMAGED_BY_WORKFLOW_ID,
    DELETE_OLDEST_SIGNALS,
    DELETE_SUPERSEDED,
    DELTAS_OF,
    GUARDED_UPDATE,
    HANGING,
    HELD_WORKFLOW,
    LATEST_CHECKPOINT_OF,
    LEASES_OF,
    NEXT_CHECKPOINT_SEQ,
    REFERENCES_OF,
    STAMPED_UPDATE,
    STATE_BY_ID,
    STATE_BY_WORKFLOW_ID,
    STEP_BY_ID,
    STEP_ROWS_OF,
    STEPS_OF,
    UNNUMBERED_CHECKPOINTS_OF,
    WAKE,
    WHOLE_CHECKPOINT_IDS_OF,
    WORKFLOW_ROW,
    Children,
    digest_of_envelope,
    insert_checkpoint,
    insert_workflow,
    insert_workflow_now,
    reference_columns,
    surplus_checkpoints,
    upsert_step,
)
from orchestrator_state.repositories.families import CHILDREN_TO_DELETE, Family, FamilyTree, eldest_finished, finished
from orchestrator_state.repositories.undeclared import UndeclaredPayloads
from orchestrator_state.settings import DEFAULT_NAMESPACE
from orchestrator_state.state_schema import NO_SCHEMAS, Schemas

OnDamaged = Callable[[PayloadError], object]

# asyncpg allows 32,767 parameters in a statement, older SQLite 999.
_MAX_IDS: Final = 500
_SEEN_BY_DELTAS: Final = frozenset({"workflow_id", "workflow_name", "user_id", "started_at", "context"})


class Repository:
    """A session, a namespace, and errors of ours."""

    def __init__(
        self,
        session: AsyncSession,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        schema: str | None = None,
        payloads: Payloads = PLAIN,
        schemas: Schemas = NO_SCHEMAS,
    ) -> None:
        self._session = session
        self._payloads = payloads
        self._schemas = schemas
        self._namespace = namespace
        self._options: dict[str, Any] = {"schema_translate_map": {None: schema}} if schema else {}

    async def _execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> Result[Any]:
        payloads = self._payloads
        if payloads.offload is not None and payloads.offload.has_uploads:
            await payloads.offload.settle()  # before a row refers to them
        if isinstance(payloads, UndeclaredPayloads) and payloads.is_to_be_checked:
            await payloads.check(self._session, self._namespace, self._options)
        with database_errors():
            return await self._session.execute(statement, parameters, execution_options=self._options)

    async def _fetch(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> Sequence[Any]:
        """The rows of a query, with the payloads that they have in the blob store."""

        async def query() -> Sequence[Any]:
            return (await self._execute(statement, parameters)).all()

        return await self._with_blobs(query)

    async def _with_blobs(
        self, query: Callable[[], Awaitable[Sequence[Any]]], *, for_many: bool = False
    ) -> Sequence[Any]:
        """The rows of `query`, which is made again if a blob is gone: a rekey may have written that row anew."""
        rows, offload = await query(), self._payloads.offload
        if offload is not None:
            await offload.fetch(rows, for_many=for_many)
            if offload.lacks(rows):
                rows = await query()
                await offload.fetch(rows, for_many=for_many)
        return rows

    async def _fetch_states(
        self, statement: Executable, on_damaged: Callable[[PayloadError], object] | None = None, **parameters: Any
    ) -> list[WorkflowState]:
        """The states that one of the statements for states selects, as they are stored."""
        parameters["namespace"] = self._namespace

        async def query() -> Sequence[Any]:
            rows: Sequence[Any] | None = None
            if isinstance(self._session, ReadingSession):
                with database_errors():
                    rows = await self._session.rows(statement, parameters)
            return (await self._execute(statement, parameters)).all() if rows is None else rows

        rows = await self._with_blobs(query, for_many=on_damaged is not None)
        building = partial(states_from_rows, rows, self._payloads, on_damaged)
        return await self._payloads.aside.call(building, self._payloads.length(payloads_in(rows)))

    async def _sealed_workflow(self, workflow_state_id: UUID, columns: Columns) -> Columns:
        """See `seal_workflow`; what is long about it is done beside the event loop."""
        prepared = await prepared_workflow(self._payloads, workflow_state_id, columns)
        return seal_workflow(self._payloads, workflow_state_id, prepared)

    async def _delete(self, statement: Delete, parameters: Mapping[str, Any] | None = None) -> int:
        """Delete rows, and their blobs once that has committed. Returns how many rows."""
        offload = self._payloads.offload
        if offload is None:
            return rowcount(await self._execute(statement, parameters))
        rows = (await self._execute(statement.returning(*reference_columns(statement.table)), parameters)).all()
        offload.discard(rows)
        return len(rows)

    async def _begin_without_history(self, workflow_state_id: UUID, created: Any) -> None:
        """Delete what hangs on the id of a workflow that was just `created`: it is no history of the new one."""
        if created.has_leftovers:
            for table in HANGING:
                await self._delete(delete(table).where(table.c.workflow_state_id == workflow_state_id))

    @property
    def _dialect(self) -> str:
        return self._session.get_bind().dialect.name

    async def _number_checkpoints(self, workflow_state_id: UUID, free: int) -> int:
        """Number what older software inserted since, from `free` on, and return the next number."""
        for checkpoint_id in (
            (await self._execute(UNNUMBERED_CHECKPOINTS_OF, {"workflow_state_id": workflow_state_id})).scalars().all()
        ):
            await self._execute(update(checkpoints).where(checkpoints.c.id == checkpoint_id).values(seq=free))
            free += 1
        await self._execute(
            update(workflow_states).where(workflow_states.c.id == workflow_state_id).values(checkpoint_seq=free)
        )
        return free

    async def _source(self, workflow_state_id: UUID) -> DeltaBase:
        of_workflow = {"workflow_state_id": workflow_state_id}
        rows = await self._fetch(WORKFLOW_ROW, of_workflow)
        if not rows:
            raise self._workflow_not_found(workflow_state_id)
        return DeltaBase(rows[0], await self._fetch(STEP_ROWS_OF, of_workflow), self._payloads)

    async def _make_whole(self, workflow_state_id: UUID) -> None:
        """Before finished steps or the first context change: let the deltas of the workflow not refer to them.

        A delta that does not fit what it refers to is left, to be refused when it is read.
        """
        rows = await self._fetch(DELTAS_OF, {"workflow_state_id": workflow_state_id})
        source = await self._source(workflow_state_id) if rows else None
        whole: list[tuple[UUID, Sealed]] = []  # all are sealed before any is written: their blobs move together
        for row in rows:
            try:
                text = _whole_text(row, source, self._payloads)
            except CorruptPayload:
                continue
            whole.append((row.id, self._payloads.seal(text, checkpoint_identity(workflow_state_id, row.id))))
        for checkpoint_id, sealed in whole:
            await self._execute(
                update(checkpoints)
                .where(checkpoints.c.id == checkpoint_id)
                .values(snapshot=sealed.text, snapshot_digest=sealed.digest, position=None)
            )

    async def _wake(self, workflow_state_id: UUID) -> None:
        await self._execute(WAKE, {"of_id": workflow_state_id, "of_namespace": self._namespace})
        await self._announce()

    async def _announce(self) -> None:
        """Wake the workers with this commit: a run can be claimed."""
        with database_errors():
            await announce(self._session, self._namespace)

    def _workflow_not_found(self, workflow_state_id: UUID | str) -> WorkflowNotFound:
        return WorkflowNotFound(
            f"there is no workflow with id {workflow_state_id} in namespace {self._namespace!r}",
            workflow_state_id=workflow_state_id,
        )


class WorkflowRepository(Repository):
    """Workflows with their steps."""

    async def save(self, state: WorkflowState) -> None:
        """Insert a new state (`version` 0), or update the rows that changed since it was loaded or saved.

        Afterwards the database equals the state: steps that it no longer has are removed. `state.version` grows by
        one if anything was written, and goes back if the transaction does. `updated_at` becomes now, by the database's
        clock, unless the caller moved it.

        Raises `InvalidPayload` before any SQL; `StaleVersion` if the stored version is not `state.version`;
        `LeaseHeld` if it is a run that a worker owns now;
        `WorkflowNotFound` if the row is gone; `AlreadyExists` if another namespace has that id.
        """
        check_state(state, self._schemas, self._payloads)
        # In one go: somebody else may have it.
        await self._save(state, self._schemas.version_of(state.workflow_name), *state_columns(state, self._payloads))

    async def save_as_of(self, state: WorkflowState, version: int | None) -> None:
        """Like `save`, for a state that is nobody else's, of an older schema version: the next load upcasts it."""
        columns = await self._payloads.aside.call(partial(state_columns, state, self._payloads), LONG)
        await self._save(state, version, *columns)

    async def _save(
        self, state: WorkflowState, version: int | None, columns: Columns, steps: dict[str, Columns]
    ) -> None:
        self._payloads.limits.check_workflow(payload_bytes(columns, steps), len(steps))
        saved: SavedRows | None = state._saved
        known: Mapping[str, Mapping[str, Any]] = {} if saved is None else saved.steps
        check_fields(state)
        for step_id, row in steps.items():
            if row != known.get(step_id):
                check_fields(state.steps[step_id])
        if state.version == 0:
            await self._create(state, columns, steps, version)
        else:
            await self._update(state, columns, steps, version)

    async def find(self, workflow_state_id: UUID | str) -> WorkflowState | None:
        return await self._one(STATE_BY_ID, id=as_uuid(workflow_state_id, "workflow_state_id"))

    async def get(self, workflow_state_id: UUID | str) -> WorkflowState:
        """Raises `WorkflowNotFound`."""
        state = await self.find(workflow_state_id)
        if state is None:
            raise self._workflow_not_found(workflow_state_id)
        return state

    async def find_by_workflow_id(self, workflow_id: str) -> WorkflowState | None:
        """The most recently updated state of that `workflow_id`."""
        name = as_name(workflow_id, "workflow_id")
        found = await self._one(STATE_BY_WORKFLOW_ID, workflow_id=name)
        return found or await self._one(DAMAGED_BY_WORKFLOW_ID, workflow_id=name)

    async def get_by_workflow_id(self, workflow_id: str) -> WorkflowState:
        """The most recently updated state of that `workflow_id`. Raises `WorkflowNotFound`."""
        state = await self.find_by_workflow_id(workflow_id)
        if state is None:
            raise WorkflowNotFound(
                f"there is no workflow {workflow_id!r} in namespace {self._namespace!r}", workflow_id=workflow_id
            )
        return state

    async def list_active(self, on_damaged: OnDamaged | None = None) -> list[WorkflowState]:
        """Pending, running and paused workflows with their steps, most recently updated first: one statement.

        One that cannot be read does not hide the others: `on_damaged` is called with its error. By default that is
        logged, and the first of them is raised if there is nothing else to return.
        """
        damaged: list[PayloadError] = []
        states = []
        for state in await self._fetch_states(ACTIVE_STATES, damaged.append):
            try:
                states.append(upcast_state(state, self._schemas))
            except SchemaMismatch as error:
                damaged.append(error)
        if damaged and not states and on_damaged is None:
            raise damaged[0]
        for each in damaged:
            (on_damaged or _log_damage)(each)
        return states

    async def get_as_stored(self, workflow_state_id: UUID) -> WorkflowState:
        """Like `get`, but at the version that it was stored at. Raises `WorkflowNotFound`."""
        state = next(iter(await self._fetch_states(STATE_BY_ID, id=workflow_state_id)), None)
        if state is None:
            raise self._workflow_not_found(workflow_state_id)
        return state

    async def list_blobs(self, workflow_state_ids: Sequence[UUID]) -> set[str]:
        """The names of all blobs that these workflows refer to, as of one moment for each 500 of them."""
        found: set[str] = set()
        for chunk in chunks(workflow_state_ids):
            found |= {blob.name for blob in Reference.all_in(await self._execute(REFERENCES_OF, {"among": chunk}))}
        return found

    async def delete_finished(self, *, older_than: datetime, limit: int) -> int:
        """Delete up to `limit` finished workflows last updated before `older_than`, and all that hangs on them.

        A child run goes with its parent, beyond `limit`, unless the parent has completed: then it may go before.
        Returns how many workflows were deleted.
        """
        families = await self.lock_finished(older_than=older_than, limit=limit)
        ids = [member for family in families if family.is_over for member in family.ids]
        await self.delete_locked(ids)
        return len(ids)

    async def count_finished(self, *, older_than: datetime) -> int:
        """How many finished workflows were last updated before `older_than` and may be deleted."""
        query = finished(self._namespace, as_utc(older_than, "older_than"))
        counted: int = (await self._execute(select(func.count()).select_from(query.subquery()))).scalar_one()
        return counted

    async def lock_finished(
        self, *, older_than: datetime, limit: int, spare: Collection[UUID] = ()
    ) -> Sequence[Family]:
        """The oldest workflows that may be deleted, but for those to `spare`, each with the child runs that go with it.

        They are locked until the transaction ends; what others lock is passed over.
        """
        cutoff = as_utc(older_than, "older_than")
        query = eldest_finished(self._namespace, cutoff).order_by(workflow_states.c.updated_at)
        if spare:
            query = query.where(workflow_states.c.id.not_in(sorted(spare)))
        locked = query.limit(as_count(limit, "limit")).with_for_update(skip_locked=True, of=workflow_states)
        eldest = (await self._execute(locked)).all()
        tree = FamilyTree((row.id for row in eldest), cutoff)
        parents = [row.id for row in eldest if row.has_children]
        while parents:
            parents = [
                child
                for chunk in chunks(parents)
                for child in tree.add(
                    await self._execute(CHILDREN_TO_DELETE, {"parents": chunk, "namespace": self._namespace})
                )
            ]
        return tree.families

    async def count_children(self, ids: Sequence[UUID]) -> list[Children]:
        """How many rows hang on each of these workflows."""
        counts = {workflow_state_id: dict.fromkeys(Children._fields, 0) for workflow_state_id in ids}
        for chunk in chunks(ids):
            for row in await self._execute(CHILDREN_OF, {"ids": chunk}):
                counts[row.workflow_state_id][row.kind] += row.number
        return [Children(**count) for count in counts.values()]

    async def delete(self, ids: Sequence[UUID]) -> None:
        """Delete these workflows with their steps, checkpoints and signals. Those of other namespaces are left alone.

        Raises `LeaseHeld` if a worker owns one of them.
        """
        for chunk in chunks(ids):
            await self.delete_locked(await self._lock_free(chunk))

    async def delete_locked(self, ids: Sequence[UUID]) -> None:
        """Like `delete`, for workflows that `lock_finished` has returned in this transaction."""
        for chunk in chunks(ids):
            # Not left to the cascade: an application's own SQLite engine may have foreign keys off.
            for table, owner in (
                (step_states, step_states.c.workflow_state_id),
                (checkpoints, checkpoints.c.workflow_state_id),
                (signals, signals.c.workflow_state_id),
                (workflow_states, workflow_states.c.id),
            ):
                await self._delete(delete(table).where(owner.in_(chunk)))

    async def _lock_free(self, ids: Sequence[UUID]) -> Sequence[UUID]:
        """Those of `ids` that are in this namespace, locked until the transaction ends. Raises `LeaseHeld`."""
        rows = (await self._execute(LEASES_OF, {"ids": ids, "namespace": self._namespace})).all()
        for row in rows:
            if not row.lease_is_free:
                raise lease_held(row.id, row)
        return [row.id for row in rows]

    async def delete_signals(self, workflow_state_id: UUID, *, limit: int) -> int:
        """Delete the oldest signals of a workflow, at most `limit`. Returns how many were deleted."""
        parameters = {"workflow_state_id": workflow_state_id, "namespace": self._namespace, "number": limit}
        return await self._delete(DELETE_OLDEST_SIGNALS, parameters)

    async def list_surplus_checkpoints(
        self, keep: int, *, after: UUID | None, only: UUID | None, limit: int
    ) -> Sequence[tuple[UUID, int]]:
        """Workflows with more than `keep` checkpoints and how many they have, in order of id from `after` on."""
        query = surplus_checkpoints(self._namespace, keep)
        owner = checkpoints.c.workflow_state_id
        if after is not None:
            query = query.where(owner > after)
        if only is not None:
            query = query.where(owner == only)
        return [(row.workflow_state_id, row.number) for row in await self._execute(query.order_by(owner).limit(limit))]

    async def count_surplus_checkpoints(self, keep: int) -> int:
        """How many checkpoints there are beyond the newest `keep` of each workflow."""
        surplus = surplus_checkpoints(self._namespace, keep).subquery()
        query = select(func.coalesce(func.sum(surplus.c.number - keep), 0))
        return int((await self._execute(query)).scalar_one())

    async def _one(self, statement: Executable, **parameters: Any) -> WorkflowState | None:
        state = next(iter(await self._fetch_states(statement, **parameters)), None)
        return None if state is None else upcast_state(state, self._schemas)

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
        statement = insert_workflow
        if is_now := state.updated_at == state._touched_at:
            del row["updated_at"], row["digested_at"]
            statement = insert_workflow_now
        created = (await self._execute(statement(self._dialect), row)).first()
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
        stamps, shown = as_stored(columns, steps, saved, version)
        changed = {name: value for name, value in columns.items() if value != saved.workflow[name]}
        positions = _positions(list(steps), saved.positions)
        if stamps.get(None) != saved.stamps.get(None):
            changed["schema_version"] = stamps.get(None)
        changed_steps = _changed_steps(steps, positions, stamps, saved)
        removed = [step_id for step_id in saved.steps if step_id not in steps]
        if not (changed or changed_steps or removed):
            row = await self._current(state.id)
            if row is None or row.version != state.version:
                raise await self._why_not_written(state)
            return
        if saved.outdated:
            # Afterwards the workflow's digests count again, so none that is out of date may be left.
            changed, changed_steps = changed | columns, steps
        if removed and saved.has_patches:  # what they did to the context would go with them
            changed["context"] = columns["context"]
        if "context" in changed:
            changed["context_position"] = saved.next_position - 1
        is_now = columns["updated_at"] in (saved.workflow["updated_at"], state._touched_at)
        changed |= {"updated_at": columns["updated_at"], "digested_at": columns["updated_at"]}
        if saved.may_have_deltas and (changed_steps or removed or _SEEN_BY_DELTAS & changed.keys()):
            await self._make_whole(state.id)
        columns["updated_at"] = await self._guarded_update(state, changed, is_now=is_now)
        if saved.outdated:
            await self._forget_digests(state.id)
        await self._delete_steps(state.id, removed)
        await self._write_steps(state.id, changed_steps, positions, stamps)
        self._remember(
            state,
            SavedRows(
                columns,
                steps,
                positions,
                stamps,
                shown,
                may_have_deltas=saved.may_have_deltas,
                has_patches=saved.has_patches and "context" not in changed,
            ),
        )

    async def _guarded_update(self, state: WorkflowState, changed: Columns, *, is_now: bool) -> datetime:
        """Returns what became of `updated_at`: the present time if that `is_now`."""
        if not is_count(state.version):
            raise corrupt_cells(["version"], state.id)
        guard = {"of_id": state.id, "of_namespace": self._namespace, "of_version": state.version}
        values = await self._sealed_workflow(state.id, changed) | {"version": state.version + 1} | guard
        updated_at: datetime = values["updated_at"]
        if is_now:
            del values["updated_at"], values["digested_at"]
        row = (await self._execute(STAMPED_UPDATE if is_now else GUARDED_UPDATE, values)).first()
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
            kept = {f"{name}_digest": digest_of_envelope(table, name) for name in names}
            await self._execute(update(table).where(owner == workflow_state_id).values(kept))

    async def _delete_steps(self, workflow_state_id: UUID, step_ids: Sequence[str]) -> None:
        for chunk in chunks(step_ids):
            await self._delete(
                delete(step_states).where(
                    step_states.c.workflow_state_id == workflow_state_id, step_states.c.step_id.in_(chunk)
                )
            )

    async def _write_steps(
        self, workflow_state_id: UUID, steps: dict[str, Columns], positions: Mapping[str, int], stamps: Stamps
    ) -> None:
        if not steps:
            return
        sealing = partial(_sealed_steps, self._payloads, workflow_state_id, steps)
        sealed = await self._payloads.aside.call(sealing, sum(len(row["outputs"]) for row in steps.values()))
        rows = [
            row | {"position": positions[row["step_id"]], "schema_version": stamps.get(row["step_id"])}
            for row in sealed
        ]
        await self._execute(upsert_step(self._dialect), rows)

    async def _saved_rows(self, state: WorkflowState) -> SavedRows:
        """The base to compare with for a state that did not come from here, such as one sent over a wire."""
        live = await self._one(STATE_BY_ID, id=state.id)
        if live is None or live.version != state.version:
            raise await self._why_not_written(state)
        return loaded_from(live)

    async def _current(self, workflow_state_id: UUID) -> Any:
        """Version and lease of a workflow, or None."""
        parameters = {"id": workflow_state_id, "namespace": self._namespace}
        return (await self._execute(CURRENT_VERSION, parameters)).first()

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


class StepRepository(Repository):
    """Steps of saved workflows, for reading. They are written with their workflow, whose version guards them."""

    async def list(self, workflow_state_id: UUID | str) -> list[StepState]:
        """In the order in which they were first saved; empty if there is no such workflow."""
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "namespace": self._namespace,
        }
        return [self._step(row) for row in await self._fetch(STEPS_OF, parameters)]

    async def find(self, workflow_state_id: UUID | str, step_id: str) -> StepState | None:
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "step_id": as_name(step_id, "step_id"),
            "namespace": self._namespace,
        }
        rows = await self._fetch(STEP_BY_ID, parameters)
        return self._step(rows[0]) if rows else None

    async def get(self, workflow_state_id: UUID | str, step_id: str) -> StepState:
        """Raises `StepNotFound`."""
        step = await self.find(workflow_state_id, step_id)
        if step is None:
            raise StepNotFound(
                f"workflow {workflow_state_id} has no step {step_id!r}",
                workflow_state_id=workflow_state_id,
                step_id=step_id,
            )
        return step

    def _step(self, row: Any) -> StepState:
        step, schema = step_from_row(row, self._payloads), self._schemas.find(row.workflow_name)
        if schema is not None:
            try:
                upcast_step(schema, step, row.schema_version)
            except SchemaMismatch as error:
                raise error.concerning(workflow_state_id=row.workflow_state_id) from None
        return step


class CheckpointRepository(Repository):
    """Checkpoints, ordered by `seq`: a number per workflow that only grows, whatever the clocks do."""

    async def add(self, checkpoint: Checkpoint) -> None:
        """Insert `checkpoint` with the workflow's next `seq`, which it is given once the transaction commits.

        Raises `InvalidPayload` before any SQL, `WorkflowNotFound`, or `AlreadyExists` if the id is taken.
        """
        columns = checkpoint_columns(as_instance(checkpoint, Checkpoint, "checkpoint"), self._payloads)
        numbered = await self._execute(
            NEXT_CHECKPOINT_SEQ, {"of_id": checkpoint.workflow_state_id, "of_namespace": self._namespace}
        )
        row = numbered.first()
        if row is None:
            raise self._workflow_not_found(checkpoint.workflow_state_id)
        seq: int = row.checkpoint_seq
        if row.has_unnumbered:
            seq = await self._number_checkpoints(checkpoint.workflow_state_id, seq)
        # Without a schema a snapshot is of the same version as what it was made from.
        version = self._schemas.version_of(row.workflow_name) or row.schema_version
        stamped = columns | {"seq": seq, "schema_version": version}
        added = await self._execute(insert_checkpoint(self._dialect), stamped)
        if rowcount(added) == 0:
            raise AlreadyExists(f"there is a checkpoint {checkpoint.id} already", checkpoint_id=checkpoint.id)
        before = checkpoint.seq

        def forget() -> None:
            checkpoint.seq = before

        unless_committed(self._session, forget)
        checkpoint.seq = seq

    async def find(self, checkpoint_id: UUID | str) -> Checkpoint | None:
        return await self._one(CHECKPOINT_BY_ID, id=as_uuid(checkpoint_id, "checkpoint_id"))

    async def get(self, checkpoint_id: UUID | str) -> Checkpoint:
        """Raises `CheckpointNotFound`."""
        checkpoint = await self.find(checkpoint_id)
        if checkpoint is None:
            raise self._not_found(checkpoint_id)
        return checkpoint

    async def find_latest(self, workflow_state_id: UUID | str) -> Checkpoint | None:
        return await self._one(LATEST_CHECKPOINT_OF, workflow_state_id=as_uuid(workflow_state_id, "workflow_state_id"))

    async def list(self, workflow_state_id: UUID | str) -> list[Checkpoint]:
        """Newest first."""
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "namespace": self._namespace,
        }
        return [*await self._checkpoints(CHECKPOINTS_OF, parameters)]

    async def get_as_of(self, checkpoint_id: UUID | str, version: int) -> Checkpoint:
        """Like `get`, its snapshot at a schema version of the past: that of the row beside which it is needed."""
        parameters = {"id": as_uuid(checkpoint_id, "checkpoint_id"), "namespace": self._namespace}
        found = await self._checkpoints(CHECKPOINT_BY_ID, parameters, version)
        if not found:
            raise self._not_found(checkpoint_id)
        return found[0]

    async def get_owner(self, checkpoint_id: UUID | str) -> UUID:
        """The id of the workflow that a checkpoint is of. Raises `CheckpointNotFound`."""
        parameters = {"id": as_uuid(checkpoint_id, "checkpoint_id"), "namespace": self._namespace}
        owner: UUID | None = (await self._execute(CHECKPOINT_OWNER, parameters)).scalar()
        if owner is None:
            raise self._not_found(checkpoint_id)
        return owner

    async def list_ids(self, workflow_state_id: UUID | str) -> Sequence[UUID]:
        """Newest first."""
        return await self._ids(CHECKPOINT_IDS_OF, workflow_state_id)

    async def list_whole_ids(self, workflow_state_id: UUID | str) -> Sequence[UUID]:
        """Those that hold copies of steps, newest first; a damaged one must not hide the others."""
        return await self._ids(WHOLE_CHECKPOINT_IDS_OF, workflow_state_id)

    async def _ids(self, statement: Executable, workflow_state_id: UUID | str) -> Sequence[UUID]:
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "namespace": self._namespace,
        }
        return [row.id for row in await self._execute(statement, parameters)]

    async def prune(self, workflow_state_id: UUID | str, *, keep: int) -> int:
        """Delete all but the newest `keep` checkpoints of a workflow. Returns how many were deleted.

        Waits for a rewind, which deletes the newest: counted among those to keep, they would take all others along.
        """
        parameters = {
            "workflow_state_id": as_uuid(workflow_state_id, "workflow_state_id"),
            "namespace": self._namespace,
        }
        kept = as_count(keep, "keep")
        await self._execute(HELD_WORKFLOW, parameters)
        return await self._delete(DELETE_SUPERSEDED, parameters | {"keep": kept})

    async def _one(self, statement: Executable, **parameters: Any) -> Checkpoint | None:
        return next(iter(await self._checkpoints(statement, parameters | {"namespace": self._namespace})), None)

    async def _checkpoints(
        self, statement: Executable, parameters: Mapping[str, Any], version: int | None = None
    ) -> Sequence[Checkpoint]:
        """The checkpoints of one workflow that `statement` selects.

        What deltas refer to is read by a second statement. A change in between makes the deltas whole, or deletes
        them: so what does not fit is read once more.
        """
        rows = await self._fetch(statement, parameters)
        try:
            return await self._whole(rows, version)
        except CorruptPayload:
            again = await self._fetch(statement, parameters)
            if [(row.id, row.position) for row in again] == [(row.id, row.position) for row in rows]:
                raise
            return await self._whole(again, version)

    async def _whole(self, rows: Sequence[Any], version: int | None) -> Sequence[Checkpoint]:
        source = None
        if any(row.position is not None for row in rows):
            source = await self._source(rows[0].workflow_state_id)
        return [await self._upcast(row, source, version) for row in rows]

    async def _upcast(self, row: Any, source: DeltaBase | None, version: int | None) -> Checkpoint:
        texts = (row.snapshot,) if source is None else (row.snapshot, *source.texts)
        length = self._payloads.length(texts)
        try:
            checkpoint = await self._payloads.aside.call(partial(_checkpoint, row, source, self._payloads), length)
            checkpoint.snapshot = self._schemas.upcast_snapshot(checkpoint.snapshot, row.schema_version, version)
        except PayloadError as error:
            raise error.concerning(workflow_state_id=row.workflow_state_id, checkpoint_id=row.id) from None
        return checkpoint

    def _not_found(self, checkpoint_id: UUID | str) -> CheckpointNotFound:
        return CheckpointNotFound(
            f"there is no checkpoint {checkpoint_id} in namespace {self._namespace!r}", checkpoint_id=checkpoint_id
        )


def _sealed_steps(payloads: Payloads, workflow_state_id: UUID, steps: Mapping[str, Columns]) -> list[Columns]:
    return [
        seal_step(payloads, workflow_state_id, step_id, row)
        | {"workflow_state_id": workflow_state_id, "step_id": step_id}
        for step_id, row in steps.items()
    ]


def _checkpoint(row: Any, source: DeltaBase | None, payloads: Payloads) -> Checkpoint:
    return checkpoint_from_row(row, _whole_text(row, source, payloads))


def _whole_text(row: Any, source: DeltaBase | None, payloads: Payloads) -> str:
    text = open_snapshot(row, payloads)
    return text if row.position is None or source is None else source.whole(Delta.from_json(text))


def _log_damage(error: PayloadError) -> None:
    hooks.logger.warning("workflow %s cannot be read: %s", error.about.get("workflow_state_id"), error)


def lease_held(workflow_state_id: UUID, row: Any) -> LeaseHeld:
    return LeaseHeld(
        f"run {workflow_state_id} is owned by worker {row.lease_owner} until {row.lease_expires_at:%H:%M:%S} UTC",
        workflow_state_id=workflow_state_id,
        owner=row.lease_owner,
        process=row.lease_process,
        expires_at=row.lease_expires_at,
    )


def rowcount(result: Result[Any]) -> int:
    return cast("CursorResult[Any]", result).rowcount


def _changed_steps(
    steps: dict[str, Columns], positions: Mapping[str, int], stamps: Stamps, saved: SavedRows
) -> dict[str, Columns]:
    return {
        step_id: row
        for step_id, row in steps.items()
        if row != saved.steps.get(step_id)
        or positions[step_id] != saved.positions[step_id]
        or stamps.get(step_id) != saved.stamps.get(step_id)
    }


def _positions(step_ids: Sequence[str], saved: Mapping[str, int]) -> dict[str, int]:
    """Where each step stands: as saved if that is the order of `step_ids`, new ones at the end; else all anew."""
    kept = [saved[step_id] for step_id in step_ids if step_id in saved]
    if kept == sorted(kept) and all(step_id in saved for step_id in step_ids[: len(kept)]):
        free = count(max(saved.values(), default=-1) + 1)
        return {step_id: saved[step_id] if step_id in saved else next(free) for step_id in step_ids}
    return {step_id: position for position, step_id in enumerate(step_ids)}


def chunks(ids: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """`ids` in parts that fit into one statement."""
    return (ids[start : start + _MAX_IDS] for start in range(0, len(ids), _MAX_IDS))
