"""Start a run, or find it and take its lease."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4, uuid5

from pydantic import BaseModel

from orchestrator_state.arguments import as_stored_name
from orchestrator_state.concurrency import LONG, ProcessIdentity
from orchestrator_state.domain import WorkflowState, WorkflowStatus
from orchestrator_state.errors import Conflict, LeaseHeld, RunCancelled, RunPaused, RunSuspended
from orchestrator_state.execution.leases import Claim, LeaseKeeper
from orchestrator_state.payloads import Sealed
from orchestrator_state.records import (
    ClaimedRun,
    Columns,
    FoundRun,
    Lease,
    RunNames,
    corrupt_cells,
    is_id,
    prepared_workflow,
)
from orchestrator_state.records.overview import Attribute, as_attributes, merged
from orchestrator_state.repositories import lease_held
from orchestrator_state.repositories.runs import CANCEL, MOST_LOOKS
from orchestrator_state.runs import Budget, RunTypes, stopped_as
from orchestrator_state.transactions import StoreUnit, Transactions

_Created = TypeVar("_Created")
_Run = TypeVar("_Run", FoundRun, ClaimedRun)
_IDS: Final = 4  # that a run is given one of
_RUN_IDS: Final = UUID("8c5f6c58-0a55-4a62-9f0a-3f3f6f3f7b61")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WantedRun:
    """What `store.run` was asked for."""

    name: str
    workflow_id: str
    context: str | None = None
    """As JSON."""
    prepared: Sealed | None = None
    """A long `context` as it is stored in a run of the first id that it may get."""
    types: RunTypes
    user_id: str | None = None
    idempotency_key: str | None = None
    attributes: Mapping[str, Attribute] | None = None
    budget: Budget | None = None
    id: UUID | None = None
    """A given id: that of a child run."""
    parent: Lease | None = None
    """The lease of the run that starts it as its child."""

    @property
    def parent_id(self) -> UUID | None:
        return None if self.parent is None else self.parent.workflow_state_id


async def wanted_run(
    types: RunTypes,
    *,
    workflow_id: str | None,
    context: dict[str, Any] | BaseModel | None,
    user_id: str | None,
    idempotency_key: str | None,
    attributes: Mapping[str, Attribute] | None = None,
    budget: Budget | Decimal | float | None = None,
) -> WantedRun:
    """Check the arguments of a start as the domain would."""
    if idempotency_key is not None:
        as_stored_name(idempotency_key, "idempotency_key")
    checked = WorkflowState(workflow_id=str(uuid4()), workflow_name=types.workflow_name, user_id=user_id)
    given = idempotency_key if workflow_id is None else workflow_id
    if given is not None:
        checked.workflow_id = given
    return WantedRun(
        types=types,
        name=checked.workflow_name,
        workflow_id=checked.workflow_id,
        context=None if context is None else await types.started_with(context),
        user_id=user_id,
        idempotency_key=idempotency_key,
        attributes=merged({}, as_attributes(attributes, "attributes")) if attributes is not None else None,
        budget=Budget.of(budget),
    )


class Starting:
    """Finds or creates the runs that are wanted of one store in one process."""

    def __init__(self, transactions: Transactions, keeper: LeaseKeeper) -> None:
        self._transactions = transactions
        self._keeper = keeper

    async def prepared(self, wanted: WantedRun) -> WantedRun:
        """With a long context sealed, before the transaction and beside the event loop."""
        if wanted.context is None or len(wanted.context) < LONG:
            return wanted
        first = _names(wanted, self._transactions.settings.namespace).ids[0]
        columns: Columns = {"context": wanted.context}
        columns = await prepared_workflow(self._transactions.payloads, first, columns)
        return replace(wanted, prepared=columns["context"])

    async def start_or_claim(
        self, uow: StoreUnit, wanted: WantedRun, claim: Claim, is_over: Collection[str]
    ) -> ClaimedRun | FoundRun | LeaseHeld:
        """The claimed run; one that `is_over`; or who has it, for the caller to wait for.

        Raises `RunPaused`, `RunCancelled`, and `RunSuspended` for a child run that waits.
        """
        for _ in range(MOST_LOOKS):
            claim.begin()
            found = await self._found_or_created(uow, wanted, claim)
            if isinstance(found, ClaimedRun):
                return found
            self._transactions.schemas.require_runnable(found.name, found.stored.schema_version, found.id)
            if found.status in is_over:
                return found
            answer = await self._claim(uow, found, wanted, claim)
            if answer is not None:
                return answer
        message = f"run {wanted.workflow_id!r} cannot be claimed: a trigger, or others, keep the row from it"
        raise Conflict(message, workflow_id=wanted.workflow_id)

    async def _found_or_created(self, uow: StoreUnit, wanted: WantedRun, claim: Claim) -> FoundRun | ClaimedRun:
        found = await uow.claims.find(_names(wanted, uow.namespace))
        if found is None:
            await self._require_goes_on(uow, wanted.parent)
            owner = self._keeper.owner
            created = await _create(
                uow, wanted, WorkflowStatus.RUNNING, lambda columns: uow.claims.create_claimed(columns, owner)
            )
            if isinstance(created, ClaimedRun):
                claim.take([created.id])
                claim.created = created.id
                return created
            found = created
        return _same(found, wanted)

    async def _claim(
        self, uow: StoreUnit, found: FoundRun, wanted: WantedRun, claim: Claim
    ) -> ClaimedRun | LeaseHeld | None:
        """The unfinished run, claimed; or who has it; None if it has changed since it was read."""
        _require_active(found)
        owner = self._keeper.owner
        if found.id in claim and not found.lease_is_free and found.lease_owner == owner.id:
            # Claimed by an earlier attempt, whose answer was lost.
            return next(iter(await uow.claims.list_claimed([found.id], owner)), None)
        if found.unclaimable:
            raise corrupt_cells(found.unclaimable, found.id, workflow_id=found.workflow_id)
        if not found.lease_is_free and not self._is_abandoned(found):
            return lease_held(found.id, found)
        if wanted.parent is not None and found.is_asleep:
            raise RunSuspended(f"child run {found.id} waits", workflow_state_id=found.id, wake_at=found.wake_at)
        claimed = await uow.claims.claim(found, owner)
        if claimed is not None:
            _same(claimed, wanted)  # what was read may have been deleted, and its id another's by now
            claim.take([claimed.id])
            if found.status == WorkflowStatus.FAILED:
                await uow.lineage.revive_descendants(found.id)
        return claimed

    async def _require_goes_on(self, uow: StoreUnit, parent: Lease | None) -> None:
        """A child that is started after its parent was to be cancelled would not be cancelled with it."""
        if parent is not None and await uow.runs.hold_owned(parent) == CANCEL:
            raise stopped_as(WorkflowStatus.CANCELLED, parent.workflow_state_id)

    def _is_abandoned(self, run: FoundRun) -> bool:
        """Whether the lease's owner is provably gone: its process is dead, or it is us and nothing runs here."""
        if run.lease_owner == self._keeper.owner.id:
            return not self._keeper.has(run.id)
        process = ProcessIdentity.parse(run.lease_process)
        return process is not None and process.is_dead()


async def start_pending(uow: StoreUnit, wanted: WantedRun) -> tuple[UUID, bool]:
    """Create the run for a worker to claim, unless it is there already. Returns its id, and whether it is new."""
    found = await uow.claims.find(_names(wanted, uow.namespace))
    if found is None:
        created = await _create(uow, wanted, WorkflowStatus.PENDING, uow.claims.create)
        if isinstance(created, UUID):
            return created, True
        found = created
    return _same(found, wanted).id, False


async def _create(
    uow: StoreUnit,
    wanted: WantedRun,
    status: WorkflowStatus,
    create: Callable[[Columns], Awaitable[_Created | None]],
) -> _Created | FoundRun:
    """The new run; or the one that somebody else has created just now. Raises `Conflict`.

    What kept us from creating it may have been deleted before it was looked for: then the same id is free, and
    whoever starts the run at the same time tries that.
    """
    names, columns = _names(wanted, uow.namespace), _columns(wanted, status)
    first: Columns = {} if wanted.prepared is None else {"context": wanted.prepared}
    for run_id in names.ids:
        for _ in range(MOST_LOOKS):
            if (created := await create(columns | {"id": run_id} | first)) is not None:
                return created
            if (found := await uow.claims.find(names)) is not None:
                return found
            if await uow.claims.is_taken_elsewhere(run_id):
                break
        first = {}
    message = "the run's ids are taken in other namespaces, or another unique index refuses the run"
    raise Conflict(message, workflow_id=wanted.workflow_id)


def _names(wanted: WantedRun, namespace: str) -> RunNames:
    """The same id for the same start, so that the primary key lets only one of two concurrent starts create it."""
    first = wanted.id or uuid5(_RUN_IDS, f"{namespace}\0{wanted.workflow_id}")
    return RunNames(
        # Anybody can guess an id, and take it in a namespace of theirs: that is no reason to fail.
        ids=[first, *[uuid5(first, f"taken {number}") for number in range(1, _IDS)]],
        idempotency_key=wanted.idempotency_key,
        # A child is its parent's call, whatever it is called.
        workflow_id=wanted.workflow_id if wanted.id is None else None,
    )


def _columns(wanted: WantedRun, status: WorkflowStatus) -> Columns:
    """Of a new run."""
    columns: Columns = {
        "workflow_id": wanted.workflow_id,
        "workflow_name": wanted.name,
        "status": status.value,
        "user_id": wanted.user_id,
        # A resume needs no context, so a model that has no defaults refuses a start only here.
        "context": wanted.types.context_text({}) if wanted.context is None else wanted.context,
        "schema_version": wanted.types.version,
        "idempotency_key": wanted.idempotency_key,
        "parent_id": wanted.parent_id,
    }
    if wanted.budget is not None:
        columns |= wanted.budget.columns()
    return columns | ({"attributes": wanted.attributes} if wanted.attributes else {})


def _require_active(run: FoundRun) -> None:
    if run.status == WorkflowStatus.CANCELLED:
        raise RunCancelled(f"run {run.id} was cancelled", workflow_state_id=run.id)
    if run.status == WorkflowStatus.PAUSED:
        raise RunPaused(f"run {run.id} is paused; `store.resume` continues it", workflow_state_id=run.id)


def _same(run: _Run, wanted: WantedRun) -> _Run:
    """Return `run` if it is one of what was asked for, and can be addressed."""
    if not is_id(run.id):
        raise corrupt_cells(["id"], run.id, workflow_id=run.workflow_id)
    if run.name != wanted.name:
        raise Conflict(
            f"run {run.id} is of {run.name!r}, not of {wanted.name!r}; give it another workflow_id",
            workflow_state_id=run.id,
        )
    return run
