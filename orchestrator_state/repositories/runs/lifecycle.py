"""What durable runs read and write. Like the other repositories it never commits.

Every write of a run is fenced: it matches the row only while the run's lease token is the row's, and the run was not
let go of since. A worker that lost its lease changes nothing and gets `LeaseLost`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    Result,
    and_,
    case,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
    update,
)

from orchestrator_state.arguments import as_uuid
from orchestrator_state.collector import collector_paused
from orchestrator_state.database import (
    announce,
    conflict_aware_insert,
    database_errors,
    database_now,
    database_time_in,
    marking,
    one_more,
    setting_idle_limit,
    takes_marks,
    time_after,
    writes_alone,
)
from orchestrator_state.domain import FINISHED, StepStatus, WorkflowStatus
from orchestrator_state.errors import Conflict, LeaseLost, PayloadError
from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.payloads import Payloads, Sealed
from orchestrator_state.records import (
    SEALED_STEP_COLUMNS,
    Columns,
    Lease,
    Opener,
    Owner,
    Renewal,
    RunNames,
    Signal,
    SignalPlace,
    StepRecord,
    StoredStep,
    open_signal,
    seal_signal,
    seal_step,
    sealed_step,
    step_record,
)
from orchestrator_state.repositories.claimable import IS_AWAKE, IS_LEASED, LEASE_IS_FREE, lease_was_good
from orchestrator_state.repositories.counts import COUNTS, IS_WRITABLE, next_count
from orchestrator_state.repositories.expressions import NOW_IF_ASLEEP, OUTDATED, STORED_STEPS_OF
from orchestrator_state.repositories.runs.fence import (
    CONVERT_STEP,
    FENCE,
    FIND_RUN,
    FIRST_CONTEXT_KEPT,
    LET_GO,
    STILL_DIGESTED_AT,
    going_on,
    run_insert,
    step_upsert,
)
from orchestrator_state.repositories.runs.requests import CANCEL, IS_ACTIVE, cancelled, heeded
from orchestrator_state.repositories.runs.requests import finish as finished_update
from orchestrator_state.repositories.runs.requests import let_go as letting_go
from orchestrator_state.repositories.runs.suspects import ATTEMPTS_ONCE_CLAIMED, IS_SUSPECT, Suspect, rested_suspects
from orchestrator_state.repositories.workflows import Repository, chunks, rowcount
from orchestrator_state.state_schema import FIRST

_w = workflow_states.c
MOST_LOOKS: Final = 10
"""At a row that others change between two of our statements. One that stays contradictory is not theirs to change."""

_CLAIMABLE_STATUSES: Final = (WorkflowStatus.PENDING.value, WorkflowStatus.RUNNING.value)
_UNHEEDED: Final = (_w.request.is_not(None), IS_ACTIVE, LEASE_IS_FREE, IS_WRITABLE)
# The last owner and its token stay: a commit that is repeated because its outcome was unknown finds itself again.
_RELEASED: Final[Columns] = {"lease_expires_at": None, "faults": 0}

_REVIVED: Final[Columns] = _RELEASED | {
    "status": WorkflowStatus.PENDING.value,
    "attempts": 0,
    "version": one_more(_w.version),
    "lease_token": one_more(_w.lease_token),
    "updated_at": database_now(),
    "digested_at": STILL_DIGESTED_AT,
    **dict.fromkeys(("error", "error_digest", "completed_at", "wake_at", "request")),
}


class RunRepository(Repository):
    """Leases, step commits, requests and signals."""

    async def database_time(self) -> datetime:
        """The present time by the database's clock."""
        now: datetime = (await self._execute(select(database_now()))).scalar_one()
        return now

    # --- finding and claiming ------------------------------------------------------------------------------------

    async def find(self, names: RunNames) -> Any:
        """The row of a run by any of its names, with `now` and `lease_is_free`; None if there is none."""
        parameters = {
            "namespace": self._namespace,
            "ids": names.ids,
            "idempotency_key": names.idempotency_key,
            "workflow_id": names.workflow_id,
        }
        return (await self._execute(FIND_RUN, parameters)).first()

    async def create(self, columns: Columns, owner: Owner | None) -> Any:
        """Insert a run, leased to `owner` at once if there is one. Returns the row; None if its id or key is taken."""
        row = await self._sealed_workflow(columns["id"], columns) | {"namespace": self._namespace}
        statement = run_insert(self._dialect, frozenset(row), leased=owner is not None)
        parameters = {f"new_{name}": value for name, value in row.items()}
        if owner is not None:
            parameters |= {"owner": owner.id, "process": owner.process, "seconds": owner.term.total_seconds()}
        created = (await self._execute(statement, parameters)).first()
        if owner is None:
            await self._announce()
        if created is not None:
            await self._begin_without_history(created.id, created)
        return created

    async def is_taken_elsewhere(self, workflow_state_id: UUID) -> bool:
        """Whether a run of another namespace has the id."""
        elsewhere = select(_w.id).where(_w.id == workflow_state_id, _w.namespace.is_distinct_from(self._namespace))
        return (await self._execute(elsewhere)).first() is not None

    async def claim(self, seen: Any, owner: Owner) -> Any:
        """Take the lease of a row that was `seen`, unless that changed since: then None.

        It may have been taken, the run may have ended, or its owner, who was late, has renewed the lease after all.
        """
        unchanged = [_w.id == seen.id, _w.lease_token == seen.lease_token, _w.status == seen.status]
        if seen.lease_is_free:
            unchanged.append(LEASE_IS_FREE)
        claimed = await self._execute(
            update(workflow_states)
            .where(*unchanged)
            .values(self._taken_by(owner))
            .returning(workflow_states, database_now().label("now"))
        )
        return claimed.first()

    async def claim_abandoned(self, names: Collection[str], owner: Owner, limit: int) -> Sequence[Any]:
        """Claim up to `limit` runs that nobody owns and that are not asleep, longest untouched first.

        Those that newer code has written are left to it, those whose id or counts are damaged cannot be written to,
        and those that may kill their workers are for `claim_suspects`.
        """
        return await self._claim(owner, limit, *self._claimable(names), not_(IS_SUSPECT))

    async def claim_suspects(
        self,
        names: Collection[str],
        owner: Owner,
        limit: int,
        choose: Callable[[Sequence[Suspect]], Sequence[UUID]],
        *,
        patient: bool,
    ) -> Sequence[Any]:
        """Like `claim_abandoned`, for the runs that may kill their workers: as many as may be tried together.

        Who is `patient` lets each of them rest before, for longer each time. Of those that may be tried now, `choose`
        returns the ids of the ones to claim.
        """
        claimable = self._claimable(names)
        rested = await self._execute(rested_suspects(*claimable, patient=patient))
        chosen = choose([Suspect(row.id, row.attempts) for row in rested.all()])
        return await self._claim(owner, limit, *claimable, _w.id.in_(chosen)) if chosen else []

    def _claimable(self, names: Collection[str]) -> tuple[ColumnElement[bool], ...]:
        return (
            _w.namespace == self._namespace,
            _w.status.in_(_CLAIMABLE_STATUSES),
            _w.workflow_name.in_(sorted(names)),
            self._has_readable_version(names),
            LEASE_IS_FREE,
            IS_AWAKE,
            IS_WRITABLE,
        )

    async def _claim(self, owner: Owner, limit: int, *conditions: ColumnElement[bool]) -> Sequence[Any]:
        """The ids are picked in a materialized CTE: as a plain subquery Postgres may evaluate it once for each row of a
        nested loop, and claim far more than `limit`.

        Passed over is a row that is being changed, and not one that is kept from being deleted.
        """
        free = (
            select(_w.id)
            .where(*conditions)
            .order_by(_w.updated_at)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True)
            .cte("free")
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
        claimed = await self._execute(
            update(workflow_states)
            .where(_w.id == free.c.id)
            .values(self._taken_by(owner))
            .returning(workflow_states, database_now().label("now"))
        )
        return claimed.all()

    async def list_claimed(self, ids: Collection[UUID], owner: Owner) -> Sequence[Any]:
        """Those of these runs that `owner` has by now, once no claim of them is under way any more."""
        claimed: list[Any] = []
        for chunk in chunks(sorted(ids)):
            of_owner = select(workflow_states, database_now().label("now")).where(
                _w.id.in_(chunk),
                _w.lease_owner == owner.id,
                IS_LEASED,
                _w.status == WorkflowStatus.RUNNING.value,
            )
            locked = await self._execute(select(_w.id).where(_w.id.in_(chunk)).order_by(_w.id).with_for_update())
            await self._wait_for_creations({*chunk} - {*locked.scalars()})
            claimed += (await self._execute(of_owner)).all()
        return claimed

    async def _wait_for_creations(self, ids: Collection[UUID]) -> None:
        """A row that a transaction under way creates is not there to be locked. Another of the same id waits for it."""
        if writes_alone(self._session):
            return
        for run_id in sorted(ids):
            columns = {"workflow_id": "", "workflow_name": "", "status": WorkflowStatus.PENDING.value, "context": "{}"}
            savepoint = await self._session.begin_nested()
            await self.create(columns | {"id": run_id}, None)
            await savepoint.rollback()

    async def list_unclaimable_names(self, names: Collection[str], limit: int = 100) -> Sequence[Any]:
        """Free runs whose handler is none of `names`, or is older, or whose id or counts are damaged.

        As (id, workflow_id, workflow_name, schema_version, and the counts).
        """
        query = (
            select(_w.id, _w.workflow_id, _w.workflow_name, _w.schema_version, *COUNTS)
            .where(
                _w.namespace == self._namespace,
                _w.status.in_(_CLAIMABLE_STATUSES),
                or_(
                    _w.workflow_name.not_in(sorted(names)),
                    not_(self._has_readable_version(names)),
                    not_(IS_WRITABLE),
                ),
                LEASE_IS_FREE,
                IS_AWAKE,
            )
            .order_by(_w.updated_at)
            .limit(limit)
        )
        return (await self._execute(query)).all()

    async def list_lease_processes(self, machine: str) -> list[str]:
        """The processes of `machine` that hold a lease which has not ended."""
        query = (
            select(_w.lease_process)
            .where(
                _w.namespace == self._namespace,
                _w.status == WorkflowStatus.RUNNING.value,
                IS_LEASED,
                _w.lease_process.startswith(machine, autoescape=True),
            )
            .distinct()
        )
        return [process for process in (await self._execute(query)).scalars() if process]

    async def end_leases_of(self, processes: Collection[str]) -> int:
        """End the leases of processes that are known to be dead."""
        ended = await self._execute(
            update(workflow_states)
            .where(
                _w.namespace == self._namespace,
                _w.lease_process.in_(sorted(processes)),
                IS_LEASED,
            )
            .values(lease_expires_at=database_now())
        )
        if rowcount(ended):
            await self._announce()
        return rowcount(ended)

    async def list_leases_of(self, owner: UUID) -> list[Lease]:
        """The leases of `owner` which have not ended."""
        query = select(_w.id, _w.lease_owner, _w.lease_token, _w.version).where(
            _w.namespace == self._namespace,
            _w.status == WorkflowStatus.RUNNING.value,
            _w.lease_owner == owner,
            IS_LEASED,
        )
        rows = await self._execute(query)
        return [Lease.of(row) for row in rows]

    async def renew(self, owner: Owner, ids: Collection[UUID], *, wait: bool = True) -> dict[UUID, Renewal]:
        """Extend the leases `owner` still has among `ids`.

        Without `wait`, rows that somebody has locked are passed over: nothing is known of their leases.
        """
        renewed: dict[UUID, Renewal] = {}
        for chunk in chunks(list(ids)):
            owned = (
                _w.namespace == self._namespace,
                _w.id.in_(chunk),
                _w.lease_owner == owner.id,
                _w.lease_expires_at.is_not(None),  # one that was let go is anybody's
            )
            free = select(_w.id).where(*owned).with_for_update(skip_locked=True, key_share=True)
            cte = free.cte("free").prefix_with("MATERIALIZED", dialect="postgresql")
            rows = await self._execute(
                update(workflow_states)
                .where(*(owned if wait else (_w.id == cte.c.id,)))
                .values(lease_expires_at=database_time_in(literal(owner.term.total_seconds(), Float)))
                .returning(_w.id, _w.lease_token, _w.request, database_now().label("now"))
            )
            renewed |= {row.id: Renewal(row.lease_token, row.request, row.now) for row in rows}
        return renewed

    async def prolong_leases(self, held: timedelta) -> None:
        """For a unit that has kept everybody else from writing for as long as `held`: let no lease have ended by that.

        Neither could their owners renew them meanwhile, nor anybody take them over. Of all namespaces.
        """
        seconds = held.total_seconds()
        await self._execute(
            update(workflow_states)
            .where(
                _w.status == WorkflowStatus.RUNNING.value,
                lease_was_good(held),
            )
            .values(lease_expires_at=time_after(_w.lease_expires_at, literal(seconds, Float)))
        )

    async def list_steps_of(self, ids: Sequence[UUID]) -> dict[UUID, list[StoredStep]]:
        """The steps of each of these runs, in order of position: one statement for up to 500 runs."""
        steps: dict[UUID, list[StoredStep]] = {workflow_state_id: [] for workflow_state_id in ids}
        for chunk in chunks(ids):
            found = await self._execute(STORED_STEPS_OF, {"workflow_state_ids": chunk})
            with collector_paused():
                for row in map(StoredStep._make, found.all()):
                    steps[row.workflow_state_id].append(row)
        for rows in steps.values():
            rows.sort(key=_position)
        return steps

    # --- committing ----------------------------------------------------------------------------------------------

    async def find_completed_step(
        self, workflow_state_id: UUID, step_id: str, *, idle_limit: timedelta | None = None
    ) -> StepRecord | None:
        """A step, if it is recorded as completed.

        With an `idle_limit`, Postgres ends this transaction once nothing has happened in it for so long. It is marked
        then, see `open_transactions`.
        """
        query = select(step_states)
        completed = (
            step_states.c.workflow_state_id == workflow_state_id,
            step_states.c.step_id == step_id,
            step_states.c.status == "completed",
        )
        if idle_limit is None or not takes_marks(self._session):
            query = query.where(*completed)
        else:  # in the same round trip
            limited = select(setting_idle_limit(idle_limit).label("limit"), marking().label("mark"))
            begun = limited.subquery("begun")
            query = query.add_columns(begun.c.limit, begun.c.mark).select_from(
                begun.outerjoin(step_states, and_(*completed))
            )
        rows = await self._fetch(query)
        if not rows or rows[0].step_id is None:
            return None
        (row,) = rows
        # Whatever was out of date when the run was loaded has been written anew.
        opener = Opener(self._payloads, workflow_state_id, outdated=False)
        return step_record(row, opener.step_row(row))

    async def list_intents(self, workflow_state_id: UUID) -> list[str]:
        """The steps that were begun, by their own word, and are not over."""
        query = select(step_states.c.step_id).where(
            step_states.c.workflow_state_id == workflow_state_id, step_states.c.status == StepStatus.RUNNING.value
        )
        return list((await self._execute(query.order_by(step_states.c.position))).scalars())

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

    async def wait_for_commits(self, lease: Lease) -> None:
        """Wait until no other transaction of this run is under way. Raises `LeaseLost`."""
        locked = select(_w.id).where(*FENCE).with_for_update()
        if (await self._execute(locked, fence(lease))).first() is None:
            raise lease_lost(lease)

    async def release(self, lease: Lease, pause: timedelta = timedelta(), *, faults: int | None = None) -> bool:
        """Let go of an unfinished run, if it is still ours, for the next worker to find once `pause` is over.

        Returns whether it was: a run that has ended, say, has nobody's lease.
        If a pause or a cancellation was asked of us, it becomes that instead. `faults` is how many it has met in a row;
        None leaves that as it is.
        """
        columns: Columns = {
            "version": one_more(_w.version),
            **_RELEASED,
            "faults": _w.faults if faults is None else faults,
        }
        columns |= heeded()
        if pause:
            columns["wake_at"] = database_time_in(literal(pause.total_seconds(), Float))
        unfinished = _w.status == WorkflowStatus.RUNNING.value
        released = await self._execute(
            update(workflow_states).where(*FENCE, unfinished).values(columns).returning(_w.status, _w.parent_id),
            fence(lease),
        )
        row = released.first()
        if row is not None:
            await self._tell_of(row, may_be_claimed=not pause)
        return row is not None

    async def finish(self, lease: Lease, columns: Columns, *, parent_id: UUID | None) -> str:
        """Write how the run ended, and that it did now, release it, and wake the run that waits for it.

        Raises `LeaseLost`. Returns the status: a run that fails although it was to be cancelled is cancelled.
        """
        status = str((await self._end_fenced(finished_update, lease, columns)).status)
        if status == WorkflowStatus.RUNNING:
            raise lease_lost(lease)  # let go of, and not by this
        if parent_id is not None:
            await self.wake(parent_id)
        return status

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

    async def let_go(self, lease: Lease) -> str:
        """Do what was asked of the run, and release it. Returns its status then: running, if the request is gone.

        Raises `LeaseLost`.
        """
        row = await self._end_fenced(letting_go, lease, {"wake_at": None})
        await self._tell_of(row, may_be_claimed=True)
        return str(row.status)

    async def heed_requests(self) -> int:
        """Do what was asked of owners that are gone. Returns of how many runs."""
        columns: Columns = {"version": one_more(_w.version), "lease_token": one_more(_w.lease_token), **_RELEASED}
        heard = await self._execute(
            update(workflow_states)
            .where(_w.namespace == self._namespace, *_UNHEEDED)
            .values(columns | heeded())
            .returning(_w.status, _w.parent_id)
        )
        rows = heard.all()
        for row in rows:
            await self._tell_of(row, may_be_claimed=False)
        return len(rows)

    async def has_unheeded_requests(self) -> bool:
        query = select(_w.id).where(_w.namespace == self._namespace, *_UNHEEDED).limit(1)
        return (await self._execute(query)).first() is not None

    async def _tell_of(self, row: Any, *, may_be_claimed: bool) -> None:
        """Wake whoever has to know of a run that was let go."""
        if row.status == WorkflowStatus.CANCELLED.value and row.parent_id is not None:
            await self.wake(row.parent_id)
        elif row.status == WorkflowStatus.RUNNING.value and may_be_claimed:
            await self._announce()

    async def suspend(
        self, lease: Lease, *, wake_at: datetime, signals: Collection[str], children: Collection[UUID]
    ) -> str:
        """Release a waiting run until `wake_at`, or at once if what it waits for came in between. Raises `LeaseLost`.

        A signal, and a child run that ends, lock this row too: they come before the look here, or after, and then wake.
        So does a request, which is heeded here or, after this, at once. Returns the run's status.
        """
        row = await self._end_fenced(letting_go, lease, {"wake_at": wake_at})
        if row.status != WorkflowStatus.RUNNING.value:
            await self._tell_of(row, may_be_claimed=False)
        elif (signals and await self.has_signal(lease.workflow_state_id, signals)) or (
            children and await self.has_finished(children)
        ):
            await self.wake(lease.workflow_state_id)
        return str(row.status)

    async def start_context_anew(self, lease: Lease, context: str) -> None:
        """Make `context` what the run starts with, and let the recorded steps leave it alone. Raises `LeaseLost`."""
        await self._make_whole(lease.workflow_state_id)
        await self._write_fenced(lease, {"context": context, "initial_context": context})
        await self._execute(
            update(step_states)
            .where(step_states.c.workflow_state_id == lease.workflow_state_id)
            .values(context_patch=None, context_patch_digest=None)
        )

    async def fold_context(self, lease: Lease, context: str, position: int) -> None:
        """Store the whole context, patches up to `position` included. Raises `LeaseLost`."""
        await self._write_fenced(lease, {"context": context, "context_position": position})

    async def convert(
        self, lease: Lease, *, initial: str, context: str, version: int, steps: Sequence[StepRecord]
    ) -> None:
        """Store a run's whole history at another schema version. Raises `LeaseLost`."""
        position = max((step.position for step in steps), default=-1)
        columns = {"initial_context": initial, "context": context, "context_position": position}
        await self._make_whole(lease.workflow_state_id)
        await self._write_fenced(lease, columns | {"schema_version": version})
        if steps:
            rows = [
                {"of_workflow": lease.workflow_state_id, "of_step": step.step_id, "schema_version": version}
                | seal_step(
                    self._payloads,
                    lease.workflow_state_id,
                    step.step_id,
                    {"outputs": step.outputs, "context_patch": step.context_patch},
                )
                for step in steps
            ]
            await self._execute(CONVERT_STEP, rows)

    async def replace_steps(self, lease: Lease, damaged: Collection[str], steps: Collection[StepRecord]) -> None:
        """Put `steps` in the place of damaged rows. Raises `LeaseLost`."""
        await self._make_whole(lease.workflow_state_id)
        await self._write_fenced(lease, {})
        for chunk in chunks(sorted(damaged)):
            await self._delete(
                delete(step_states).where(
                    step_states.c.workflow_state_id == lease.workflow_state_id, step_states.c.step_id.in_(chunk)
                )
            )
        for step in steps:
            await self._write_step(lease.workflow_state_id, self._sealed(lease.workflow_state_id, step))

    async def renew_digests(self, lease: Lease, columns: Columns, steps: Collection[StepRecord]) -> None:
        """Write payloads that older software wrote once more, with digests that count. Raises `LeaseLost`."""
        renewed = [self._sealed(lease.workflow_state_id, step) for step in steps]  # their blobs move together
        # A run that goes on has no result; older software takes one back without its digest.
        await self._write_fenced(lease, columns | {"result_digest": None}, renews_digests=True)
        for sealed in renewed:
            await self._execute(
                update(step_states)
                .where(
                    step_states.c.workflow_state_id == lease.workflow_state_id, step_states.c.step_id == sealed.step_id
                )
                .values({name: getattr(sealed, name) for name in SEALED_STEP_COLUMNS})
            )

    # --- signals, requests, lineage ------------------------------------------------------------------------------

    async def next_signal(self, workflow_state_id: UUID, name: str) -> Signal | None:
        """The oldest signal of that name."""
        query = (
            select(signals.c.id, signals.c.payload, signals.c.payload_digest)
            .where(signals.c.workflow_state_id == workflow_state_id, signals.c.name == name)
            .order_by(signals.c.seq)
            .limit(1)
        )
        rows = await self._fetch(query)
        if not rows:
            return None
        (row,) = rows
        place = SignalPlace(workflow_state_id, row.id, self._namespace, name)
        try:
            opening = partial(open_signal, self._payloads, place, row.payload, row.payload_digest, f"signal {name!r}")
            payload = await self._payloads.aside.call(opening, self._payloads.length([row.payload]))
        except PayloadError as error:
            raise error.concerning(workflow_state_id=workflow_state_id) from None
        return Signal(id=row.id, payload=payload)

    async def has_signal(self, workflow_state_id: UUID, names: Collection[str]) -> bool:
        query = select(signals.c.id).where(
            signals.c.workflow_state_id == workflow_state_id, signals.c.name.in_(sorted(names))
        )
        return (await self._execute(query.limit(1))).first() is not None

    async def has_finished(self, workflow_state_ids: Collection[UUID]) -> bool:
        query = select(_w.id).where(
            _w.namespace == self._namespace,
            _w.id.in_(list(workflow_state_ids)),
            _w.status.in_(sorted(FINISHED)),
        )
        return (await self._execute(query.limit(1))).first() is not None

    async def send_signal(
        self, workflow_state_id: UUID, signal_id: UUID, name: str, payload: str | Sealed
    ) -> str | None:
        """Store a signal and wake the run. Returns the workflow's status, None if there is no such workflow.

        Nothing is stored for a finished workflow. Sending the same `signal_id` again changes nothing.
        """
        active = (*_CLAIMABLE_STATUSES, WorkflowStatus.PAUSED.value)
        number = (
            update(workflow_states)
            .where(_w.id == workflow_state_id, _w.namespace == self._namespace, _w.status.in_(active))
            .values(
                signal_seq=next_count(_w.signal_seq, signals),
                wake_at=NOW_IF_ASLEEP,
            )
            .returning(_w.signal_seq, _w.status)
        )
        for _ in range(MOST_LOOKS):
            if (row := (await self._execute(number)).first()) is not None:
                break
            query = select(_w.status).where(_w.id == workflow_state_id, _w.namespace == self._namespace)
            status: str | None = (await self._execute(query)).scalar()
            if status not in active:  # or it was resumed between the two statements
                return status
        else:
            message = (
                f"the signal for run {workflow_state_id} is not stored: a trigger, or others, keep the row from it"
            )
            raise Conflict(message, workflow_state_id=workflow_state_id)
        place = SignalPlace(workflow_state_id, signal_id, self._namespace, name)
        sealed = seal_signal(self._payloads, place, payload)
        await self._execute(
            conflict_aware_insert(self._dialect, signals)
            .values(
                id=signal_id,
                workflow_state_id=workflow_state_id,
                name=name,
                payload=sealed.text,
                payload_digest=sealed.digest,
                sent_at=database_now(),
                seq=row.signal_seq,
            )
            .on_conflict_do_nothing(index_elements=["id"])
        )
        await self._announce()
        return str(row.status)

    async def wake(self, workflow_state_id: UUID) -> None:
        """Let a sleeping run be claimed now. Locks its row in any case: it may be about to fall asleep."""
        await self._wake(workflow_state_id)

    async def request(self, workflow_state_id: UUID, request: str | None) -> None:
        """Leave a request for the live owner, or take it back. A cancel stays."""
        await self._execute(
            update(workflow_states)
            .where(_w.id == workflow_state_id, _w.namespace == self._namespace, _w.request.is_distinct_from(CANCEL))
            .values(request=request)
        )

    async def hold_owned(self, lease: Lease) -> str | None:
        """Keep the run as it is until the transaction ends: no request comes in. Returns that which is there.

        Raises `LeaseLost`.
        """
        held = await self._execute(select(_w.request).where(*FENCE).with_for_update(read=True), fence(lease))
        row = held.first()
        if row is None:
            raise lease_lost(lease)
        request: str | None = row.request
        return request

    async def lock(self, workflow_state_id: UUID) -> Any:
        """The run's row, locked until the transaction ends, with `lease_is_free`; None if there is none."""
        query = (
            select(workflow_states, LEASE_IS_FREE.label("lease_is_free"))
            .where(_w.id == as_uuid(workflow_state_id, "workflow_state_id"), _w.namespace == self._namespace)
            .with_for_update()
        )
        return (await self._execute(query)).first()

    async def set_status(self, workflow_state_id: UUID, columns: Columns) -> None:
        """Change a run that nobody owns; its token grows, so that an owner thought dead cannot write any more.

        `completed_at` is now, if it is finished.
        """
        if columns["status"] in FINISHED:
            columns = columns | {"completed_at": database_now()}
        await self._execute(
            update(workflow_states)
            .where(_w.id == workflow_state_id, _w.namespace == self._namespace)
            .values(
                await self._sealed_workflow(workflow_state_id, columns)
                | _RELEASED
                | {
                    "version": one_more(_w.version),
                    "lease_token": one_more(_w.lease_token),
                    "updated_at": database_now(),
                    "digested_at": STILL_DIGESTED_AT,
                    "request": None,
                }
            )
        )
        if columns["status"] == WorkflowStatus.PENDING.value:
            await self._announce()

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
        rows = await self._fetch(of_source)
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
            for step in await self._fetch(steps):
                sealing = partial(_sealed_patch, self._payloads, opener, step, fork_id)
                sealed = await self._payloads.aside.call(sealing, self._payloads.length([step.context_patch]))
                await self._execute(
                    update(step_states)
                    .where(step_states.c.workflow_state_id == fork_id, step_states.c.step_id == step.step_id)
                    .values(sealed | {"position": step.position})
                )

    async def keep_initial_context(self, workflow_state_id: UUID) -> None:
        """Before the context is replaced: a resumed handler starts with the first one."""
        await self._execute(update(workflow_states).where(_w.id == workflow_state_id).values(FIRST_CONTEXT_KEPT))

    async def forget_patches(self, workflow_state_id: UUID, *, keep: Collection[str]) -> None:
        """Forget how all steps but those of `keep` changed the context."""
        of_steps = select(step_states.c.step_id).where(
            step_states.c.workflow_state_id == workflow_state_id, step_states.c.context_patch.is_not(None)
        )
        for chunk in chunks(sorted({*(await self._execute(of_steps)).scalars()} - {*keep})):
            await self._execute(
                update(step_states)
                .where(step_states.c.workflow_state_id == workflow_state_id, step_states.c.step_id.in_(chunk))
                .values(context_patch=None, context_patch_digest=None)
            )

    async def forget_checkpoints_after(self, workflow_state_id: UUID, seq: int) -> None:
        """Delete the checkpoints of a line that a rewind gave up: the patches of its steps are gone with the steps."""
        await self._delete(
            delete(checkpoints).where(checkpoints.c.workflow_state_id == workflow_state_id, checkpoints.c.seq > seq)
        )

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

    async def _announce(self) -> None:
        """Wake the workers with this commit: a run can be claimed."""
        with database_errors():
            await announce(self._session, self._namespace)

    async def _write_fenced(self, lease: Lease, columns: Columns, *, renews_digests: bool = False) -> None:
        update_row = partial(going_on, stamped=frozenset({"digested_at"} if renews_digests else ()))
        version: int | None = (await self._execute_fenced(update_row, lease, columns)).scalar()
        if version is None:
            raise lease_lost(lease)
        lease.version = version

    async def _end_fenced(self, build: Callable[[frozenset[str]], Executable], lease: Lease, columns: Columns) -> Any:
        """Let go of the run. Returns its row's status and more; raises `LeaseLost`.

        If it was let go of under this lease, that was an earlier attempt, whose answer was lost: its row is returned.
        """
        row = (await self._execute_fenced(build, lease, columns | _RELEASED)).first()
        if row is None:
            row = (await self._execute(LET_GO, fence(lease))).first()
        if row is None:
            raise lease_lost(lease)
        return row

    async def _execute_fenced(
        self, build: Callable[[frozenset[str]], Executable], lease: Lease, columns: Columns
    ) -> Result[Any]:
        columns = await self._sealed_workflow(lease.workflow_state_id, columns)
        return await self._execute(build(frozenset(columns)), fence(lease) | _prefixed(columns))

    def _has_readable_version(self, names: Collection[str]) -> ColumnElement[bool]:
        versions = {name: version for name in names if (version := self._schemas.version_of(name)) is not None}
        known = case(versions, value=_w.workflow_name, else_=FIRST) if versions else literal(FIRST)
        return func.coalesce(_w.schema_version, FIRST) <= known

    # --- parts ---------------------------------------------------------------------------------------------------

    def _sealed(self, workflow_state_id: UUID, step: StepRecord) -> StepRecord:
        return sealed_step(self._payloads, workflow_state_id, step)

    def _taken_by(self, owner: Owner) -> Columns:
        return {
            "status": WorkflowStatus.RUNNING.value,
            "lease_owner": owner.id,
            "lease_process": owner.process,
            "lease_token": one_more(_w.lease_token),
            "lease_expires_at": database_time_in(literal(owner.term.total_seconds(), Float)),
            "attempts": ATTEMPTS_ONCE_CLAIMED,
            "has_progressed": 0,
            "wake_at": None,
            "error": None,
            "error_digest": None,
            "completed_at": None,
            "version": one_more(_w.version),
            "updated_at": database_now(),
            "digested_at": STILL_DIGESTED_AT,
        }

    async def _write_step(self, workflow_state_id: UUID, step: StepRecord) -> bool:
        row = {name: getattr(step, name) for name in StepRecord._fields} | {"workflow_state_id": workflow_state_id}
        return rowcount(await self._execute(step_upsert(self._dialect), row)) == 1


def _position(step: StoredStep) -> int:
    return step.position if type(step.position) is int else -1  # damage, which is found when the run is loaded


def _sealed_patch(payloads: Payloads, opener: Opener, step: Any, workflow_state_id: UUID) -> Columns:
    """How a step changed the context, for the step of the same id of another workflow."""
    patch = opener.step(step.step_id, "context_patch", step.context_patch, step.context_patch_digest)
    return seal_step(payloads, workflow_state_id, step.step_id, {"context_patch": patch})


def lease_lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"this worker no longer owns run {lease.workflow_state_id}; nothing was written",
        workflow_state_id=lease.workflow_state_id,
        owner=lease.owner,
        expected=lease.token,
    )


def fence(lease: Lease) -> Columns:
    """The parameters of `FENCE`."""
    return {"fence_id": lease.workflow_state_id, "fence_owner": lease.owner, "fence_token": lease.token}


def _prefixed(columns: Columns) -> Columns:
    return {f"new_{name}": value for name, value in columns.items()}
