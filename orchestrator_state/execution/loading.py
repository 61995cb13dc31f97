"""Load what is recorded of a claimed run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.errors import OrchestratorStateError, WorkflowNotFound
from orchestrator_state.execution.damage import fall_back, without_patches
from orchestrator_state.records import (
    DAMAGE,
    ClaimedRun,
    OpenStep,
    Recorded,
    RunNames,
    SealedStep,
    StoredRun,
    open_rows,
)
from orchestrator_state.records.context import ContextHistory, join
from orchestrator_state.transactions import StoreUnit, Transactions


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoadedRun:
    """What a resumed handler starts from."""

    steps: Sequence[OpenStep]
    history: ContextHistory
    fell_back: hooks.FellBack | None = None


class Page:
    """Runs that were claimed together: the first of them that asks for its steps reads those of all."""

    def __init__(self, transactions: Transactions, ids: Sequence[UUID]) -> None:
        self._transactions = transactions
        self._ids = ids
        self._steps: dict[UUID, list[SealedStep]] | None = None
        self._error: OrchestratorStateError | None = None
        self._one_reader = asyncio.Lock()

    @classmethod
    def of_new_run(cls, transactions: Transactions, workflow_state_id: UUID) -> Page:
        """Of a run that was created as it was claimed: it has no steps to read."""
        page = cls(transactions, [workflow_state_id])
        page._steps = {workflow_state_id: []}
        return page

    async def take_steps(self, workflow_state_id: UUID) -> Sequence[SealedStep]:
        """Hand out the steps of one run, once. Raises `StoreUnavailable`: to all, as each would wait as long again."""
        async with self._one_reader:
            if self._error is not None:
                raise self._error
            if self._steps is None:
                try:
                    self._steps = await self._transactions.read(lambda uow: uow.history.list_steps_of(self._ids))
                except OrchestratorStateError as error:
                    self._error = error
                    raise
        return self._steps.pop(workflow_state_id)


async def load_run(transactions: Transactions, run: ClaimedRun, hook: hooks.Hook | None, page: Page) -> LoadedRun:
    """Return what is recorded of a run that was claimed: one statement for its page, if all is sound.

    Steps that cannot be read are taken from the newest checkpoint that can; those it does not have run again. That is
    said in the log, to the hook, and in the `error` of these steps. Raises `CorruptPayload` if no context can be found;
    `DecryptionFailed` or `UnknownCodec`, which are no damage, with nothing changed.
    """
    recorded, length = await _read(transactions, run.stored, page)
    loaded = await _as_recorded(transactions, run, recorded, length) if recorded.is_sound else None
    if loaded is None:
        steps, history, fell_back = await fall_back(transactions, run, recorded, hook)
        loaded = LoadedRun(steps=steps, history=history, fell_back=fell_back)
    return loaded


async def _read(transactions: Transactions, stored: StoredRun, page: Page) -> tuple[Recorded, int]:
    """What is recorded, opened, and how long it is."""
    steps = await page.take_steps(stored.id)
    payloads = await transactions.payloads_of([stored, *steps])
    if payloads.misses_blobs:
        # Perhaps rekeyed, and removed, since the rows were read: taken for damage, finished steps would run again.
        stored, steps = await transactions.read(partial(_read_again, workflow_state_id=stored.id))
        payloads = await transactions.payloads_of([stored, *steps])
    texts = [stored.context, stored.initial_context]
    texts += [step.outputs for step in steps]
    texts += [step.context_patch for step in steps]
    length = payloads.length(texts)
    return await payloads.aside.call(partial(open_rows, stored, steps, payloads), length), length


async def _read_again(uow: StoreUnit, workflow_state_id: UUID) -> tuple[StoredRun, Sequence[SealedStep]]:
    run = await uow.claims.find(RunNames(ids=[workflow_state_id]))
    if run is None:
        raise WorkflowNotFound(f"run {workflow_state_id} was deleted", workflow_state_id=workflow_state_id)
    return run.stored, (await uow.history.list_steps_of([workflow_state_id]))[workflow_state_id]


async def _as_recorded(
    transactions: Transactions, run: ClaimedRun, recorded: Recorded, length: int
) -> LoadedRun | None:
    """A run of which nothing is damaged; None if a step is gone whose change of the context others build on."""
    if recorded.outdated:
        await transactions.write(partial(_renew_digests, recorded=recorded, run=run))
    try:
        history, effective = await transactions.payloads.aside.call(recorded.history, length)
    except DAMAGE:
        return None
    steps = recorded.steps
    if history.was_edited:
        await transactions.write(lambda uow: uow.history.start_context_anew(run.lease, join(effective)))
        steps = without_patches(steps)
    return LoadedRun(steps=steps, history=history)


async def _renew_digests(uow: StoreUnit, *, recorded: Recorded, run: ClaimedRun) -> None:
    columns = {"context": recorded.context, "initial_context": recorded.initial if recorded.was_overwritten else None}
    await uow.history.renew_digests(run.lease, columns, recorded.steps)
