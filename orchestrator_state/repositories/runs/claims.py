"""Find runs, create them, and take their leases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, lru_cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Executable,
    Float,
    Row,
    bindparam,
    case,
    or_,
    select,
    update,
)

from orchestrator_state.database import (
    conflict_aware_insert,
    database_now,
    database_time_in,
    is_moment,
    one_more,
    writes_alone,
)
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.models import WorkflowRow, workflow_states
from orchestrator_state.records import (
    ClaimedRun,
    Columns,
    FoundRun,
    Owner,
    RunNames,
    UnclaimableRun,
)
from orchestrator_state.repositories.base import Repository, chunks
from orchestrator_state.repositories.claimable import FOUND, IS_LEASED, LEASE_IS_FREE
from orchestrator_state.repositories.expressions import has_leftovers
from orchestrator_state.repositories.runs.abandoned import Versions, free_runs, rested_runs, unclaimable_runs
from orchestrator_state.repositories.runs.fence import STILL_DIGESTED_AT, prefixed
from orchestrator_state.repositories.runs.suspects import ATTEMPTS_ONCE_CLAIMED, Suspect

MOST_LOOKS: Final = 10
"""At a row that others change between two of our statements. One that stays contradictory is not theirs to change."""

_MOST_UNCLAIMABLE: Final = 100

CLAIMED: Final = (WorkflowRow, database_now().label("now"))
"""What a `ClaimedRun` is made of."""

_HAS_ID: Final = WorkflowRow.id.in_(bindparam("ids", expanding=True))
_FIND: Final = (
    select(*FOUND)
    .where(
        WorkflowRow.namespace == bindparam("namespace"),
        or_(
            _HAS_ID,
            WorkflowRow.idempotency_key == bindparam("idempotency_key"),
            WorkflowRow.workflow_id == bindparam("workflow_id"),
        ),
    )
    .order_by(
        case(
            (WorkflowRow.idempotency_key == bindparam("idempotency_key"), 0),
            (_HAS_ID, 1),
            else_=2,
        ),
        case((is_moment(WorkflowRow.updated_at), 0), else_=1),
        WorkflowRow.updated_at.desc(),
        WorkflowRow.id,
    )
    .limit(1)
)

_LEASED: Final[Columns] = {
    "lease_owner": bindparam("owner", type_=WorkflowRow.lease_owner.type),
    "lease_process": bindparam("process"),
    "lease_expires_at": database_time_in(bindparam("seconds", type_=Float())),
}
"""A lease from now on. Its parameters are `lease_parameters`."""
TAKEN: Final[Columns] = _LEASED | {
    "status": WorkflowStatus.RUNNING.value,
    "lease_token": one_more(WorkflowRow.lease_token),
    "attempts": ATTEMPTS_ONCE_CLAIMED,
    "has_progressed": 0,
    "wake_at": None,
    "error": None,
    "error_digest": None,
    "error_type": None,
    "completed_at": None,
    "version": one_more(WorkflowRow.version),
    "updated_at": database_now(),
    "digested_at": STILL_DIGESTED_AT,
}
"""What a claim sets."""

_CLAIM: Final = (
    update(WorkflowRow)
    .where(
        WorkflowRow.id == bindparam("of_id"),
        WorkflowRow.lease_token == bindparam("of_token"),
        WorkflowRow.status == bindparam("of_status"),
    )
    .values(TAKEN)
    .returning(*CLAIMED)
)
_CLAIM_FREE: Final = _CLAIM.where(LEASE_IS_FREE)


class ClaimRepository(Repository):
    """Runs, on the way to a lease."""

    async def find(self, names: RunNames) -> FoundRun | None:
        """A run by any of its names."""
        parameters = {
            "namespace": self._namespace,
            "ids": names.ids,
            "idempotency_key": names.idempotency_key,
            "workflow_id": names.workflow_id,
        }
        row = await self._row(_FIND, parameters)
        return None if row is None else FoundRun.of(row)

    async def create(self, columns: Columns) -> UUID | None:
        """Insert a run for a worker to claim. Returns its id; None if that or its key is taken."""
        created = await self._insert(columns)
        await self._announce()
        return None if created is None else columns["id"]

    async def create_claimed(self, columns: Columns, owner: Owner) -> ClaimedRun | None:
        """Insert a run that is leased to `owner` at once. None if its id or key is taken."""
        created = await self._insert(columns, lease_parameters(owner))
        return None if created is None else ClaimedRun.of(created)

    async def _insert(self, columns: Columns, lease: Columns | None = None) -> Row[Any] | None:
        run_id = columns["id"]
        values = await self._sealed_workflow(run_id, columns) | {"namespace": self._namespace}
        statement = _insertion(self._dialect, frozenset(values), leased=lease is not None)
        created: Row[Any] | None = await self._row(statement, prefixed(values) | (lease or {}))
        if created is not None:
            await self._begin_without_history(run_id, created)
        return created

    async def is_taken_elsewhere(self, workflow_state_id: UUID) -> bool:
        """Whether a run of another namespace has the id."""
        elsewhere = WorkflowRow.namespace.is_distinct_from(self._namespace)
        query = select(WorkflowRow.id).where(WorkflowRow.id == workflow_state_id, elsewhere)
        return await self._row(query) is not None

    async def claim(self, seen: FoundRun, owner: Owner) -> ClaimedRun | None:
        """Take the lease of a run, unless that has changed since it was `seen`: then None.

        It may have been taken, the run may have ended, or its owner, who was late, has renewed the lease after all.
        """
        unchanged = {"of_id": seen.id, "of_token": seen.lease_token, "of_status": seen.status}
        row = await self._row(_CLAIM_FREE if seen.lease_is_free else _CLAIM, unchanged | lease_parameters(owner))
        return None if row is None else ClaimedRun.of(row)

    async def claim_abandoned(self, names: Collection[str], owner: Owner, limit: int) -> list[ClaimedRun]:
        """Claim up to `limit` runs that nobody owns and that are not asleep, longest untouched first.

        Those that newer code has written are left to it, those whose id or counts are damaged cannot be written to,
        and those that may kill their workers are for `claim_suspects`.
        """
        claiming = _claiming(self._versions(names), of_suspects=False)
        parameters = self._of(names) | lease_parameters(owner) | {"most": limit}
        return [ClaimedRun.of(row) for row in await self._rows(claiming, parameters)]

    async def claim_suspects(
        self,
        names: Collection[str],
        owner: Owner,
        limit: int,
        choose: Callable[[Sequence[Suspect]], Sequence[UUID]],
        *,
        patient: bool,
    ) -> list[ClaimedRun]:
        """Like `claim_abandoned`, for the runs that may kill their workers: as many as may be tried together.

        Who is `patient` lets each of them rest before, for longer each time. Of those that may be tried now, `choose`
        returns the ids of the ones to claim.
        """
        versions, of = self._versions(names), self._of(names)
        rested = await self._rows(rested_runs(versions, patient=patient), of)
        chosen = choose([Suspect(row.id, row.attempts) for row in rested])
        if not chosen:
            return []
        parameters = of | lease_parameters(owner) | {"most": limit, "of_ids": chosen}
        return [ClaimedRun.of(row) for row in await self._rows(_claiming(versions, of_suspects=True), parameters)]

    def _versions(self, names: Collection[str]) -> Versions:
        """Of those that have a schema."""
        return frozenset([(each.workflow_name, each.version) for each in self._schemas if each.workflow_name in names])

    def _of(self, names: Collection[str]) -> Columns:
        return {"of_namespace": self._namespace, "of_names": list(names)}

    async def list_claimed(self, ids: Collection[UUID], owner: Owner) -> list[ClaimedRun]:
        """Those of these runs that `owner` has by now, once no claim of them is under way any more."""
        runs: list[ClaimedRun] = []
        for chunk in chunks(sorted(ids)):
            of_owner = select(*CLAIMED).where(
                WorkflowRow.id.in_(chunk),
                WorkflowRow.lease_owner == owner.id,
                IS_LEASED,
                WorkflowRow.status == WorkflowStatus.RUNNING.value,
            )
            locking = select(WorkflowRow.id).where(WorkflowRow.id.in_(chunk)).order_by(WorkflowRow.id).with_for_update()
            locked = [row.id for row in await self._rows(locking)]
            await self._wait_for_creations({*chunk} - {*locked})
            runs += [ClaimedRun.of(row) for row in await self._rows(of_owner)]
        return runs

    async def _wait_for_creations(self, ids: Collection[UUID]) -> None:
        """A row that a transaction under way creates is not there to be locked. Another of the same id waits for it."""
        if writes_alone(self._session):
            return
        for run_id in sorted(ids):
            columns = {"workflow_id": "", "workflow_name": "", "status": WorkflowStatus.PENDING.value, "context": "{}"}
            savepoint = await self._session.begin_nested()
            await self.create(columns | {"id": run_id})
            await savepoint.rollback()

    async def list_unclaimable(self, names: Collection[str]) -> list[UnclaimableRun]:
        """Free runs whose handler is none of `names`, or is older, or whose id or counts are damaged. Some of them."""
        rows = await self._rows(unclaimable_runs(self._versions(names)), self._of(names) | {"most": _MOST_UNCLAIMABLE})
        return [UnclaimableRun.of(row) for row in rows]


def lease_parameters(owner: Owner) -> Columns:
    """Those of a statement that leases a run to `owner`."""
    return {"owner": owner.id, "process": owner.process, "seconds": owner.term.total_seconds()}


@lru_cache
def _claiming(versions: Versions, *, of_suspects: bool) -> Executable:
    """UPDATE up to `most` of `free_runs`: they are claimed for `owner`. Returns what is `CLAIMED`."""
    free = free_runs(versions, of_suspects=of_suspects)
    return update(WorkflowRow).where(WorkflowRow.id == free.c.id).values(TAKEN).returning(*CLAIMED)


@cache
def _insertion(dialect: str, columns: frozenset[str], *, leased: bool) -> Executable:
    """INSERT a run, unless its id or key is taken; each of `columns` is a parameter of its name with `new_` before it.

    A `leased` run belongs to `owner` of `process` for `seconds`. Returns what is `CLAIMED`, and `has_leftovers`.
    """
    values: dict[str, Any] = {name: bindparam(f"new_{name}", type_=workflow_states.c[name].type) for name in columns}
    values |= dict.fromkeys(("started_at", "updated_at", "digested_at"), database_now()) | {"version": 1}
    if leased:
        values |= _LEASED | {"lease_token": 1}
    return (
        conflict_aware_insert(dialect, workflow_states)
        .values(values)
        .on_conflict_do_nothing()
        .returning(*CLAIMED, has_leftovers(bindparam("new_id", type_=WorkflowRow.id.type)))
    )
