"""Load what is recorded of a claimed run, and fall back to a checkpoint where it is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.domain import Checkpoint, StepStatus, WorkflowState
from orchestrator_state.errors import (
    CheckpointNotFound,
    CorruptPayload,
    OrchestratorStateError,
    SchemaMismatch,
    WorkflowNotFound,
)
from orchestrator_state.payloads import Payloads
from orchestrator_state.records import (
    DAMAGE,
    DISPENSABLE,
    Columns,
    Lease,
    Recorded,
    RunNames,
    StepRecord,
    StoredStep,
    open_rows,
    patches_of,
    step_columns,
)
from orchestrator_state.records.context import ContextHistory, Encoded, applicable, join, split
from orchestrator_state.state_schema import FIRST, encode_loaded
from orchestrator_state.transactions import StoreUnit, Transactions


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoadedRun:
    """What a resumed handler starts from."""

    steps: Sequence[StepRecord]
    history: ContextHistory
    fell_back: hooks.FellBack | None = None


class Page:
    """Runs that were claimed together: the first of them that asks for its steps reads those of all."""

    def __init__(self, transactions: Transactions, ids: Sequence[UUID]) -> None:
        self._transactions = transactions
        self._ids = ids
        self._steps: dict[UUID, list[StoredStep]] | None = None
        self._error: OrchestratorStateError | None = None
        self._one_reader = asyncio.Lock()

    @classmethod
    def of_new_run(cls, transactions: Transactions, workflow_state_id: UUID) -> Page:
        """Of a run that was created as it was claimed: it has no steps to read."""
        page = cls(transactions, [workflow_state_id])
        page._steps = {workflow_state_id: []}
        return page

    async def take_steps(self, workflow_state_id: UUID) -> Sequence[StoredStep]:
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


async def load_run(
    transactions: Transactions, row: Any, lease: Lease, hook: hooks.Hook | None, page: Page
) -> LoadedRun:
    """Return what is recorded of the run that was claimed as `row`: one statement for its page, if all is sound.

    Steps that cannot be read are taken from the newest checkpoint that can; those it does not have run again. That is
    said in the log, to the hook, and in the `error` of these steps. Raises `CorruptPayload` if no context can be found;
    `DecryptionFailed` or `UnknownCodec`, which are no damage, with nothing changed.
    """
    step_rows = await page.take_steps(row.id)
    payloads = await transactions.payloads_of([row, *step_rows])
    if payloads.misses_blobs:
        # Perhaps rekeyed, and removed, since the rows were read: taken for damage, finished steps would run again.
        row, step_rows = await transactions.read(partial(_read_again, workflow_state_id=row.id))
        payloads = await transactions.payloads_of([row, *step_rows])
    length = payloads.length(_texts(row, step_rows))
    recorded = await payloads.aside.call(partial(open_rows, row, step_rows, payloads), length)
    if not recorded.is_sound:
        return await _fall_back(transactions, row, recorded, lease, hook)
    if recorded.outdated:
        await transactions.write(partial(_renew_digests, recorded=recorded, lease=lease))
    try:
        history, effective = await payloads.aside.call(recorded.history, length)
    except DAMAGE:  # a step is gone whose change others build on
        return await _fall_back(transactions, row, recorded, lease, hook)
    steps = recorded.steps
    if history.was_edited:
        await transactions.write(lambda uow: uow.history.start_context_anew(lease, join(effective)))
        steps = _without_patches(steps)
    return LoadedRun(steps=steps, history=history)


def _texts(row: Any, step_rows: Sequence[StoredStep]) -> Iterator[object]:
    yield from (row.context, row.initial_context)
    for step in step_rows:
        yield step.outputs
        yield step.context_patch


async def _read_again(uow: StoreUnit, workflow_state_id: UUID) -> tuple[Any, Sequence[StoredStep]]:
    row = await uow.claims.find(RunNames(ids=[workflow_state_id]))
    if row is None:
        raise WorkflowNotFound(f"run {workflow_state_id} was deleted", workflow_state_id=workflow_state_id)
    return row, (await uow.history.list_steps_of([workflow_state_id]))[workflow_state_id]


def _without_patches(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """As `start_context_anew` leaves them: what a checkpoint says of the steps is what their rows say."""
    return [step._replace(context_patch=None) for step in steps]


def _with_patches(steps: Sequence[StepRecord], history: ContextHistory) -> list[StepRecord]:
    """Steps say what the history says of them: what came of a patch that is lost is lost with it."""
    patches = {position: patch.to_json() for position, patch in history.patches.items()}
    return [
        step
        if not step.context_patch or step.context_patch == patches.get(step.position)
        else step._replace(context_patch=patches.get(step.position))
        for step in steps
    ]


async def _renew_digests(uow: StoreUnit, *, recorded: Recorded, lease: Lease) -> None:
    columns = {"context": recorded.context, "initial_context": recorded.initial if recorded.was_overwritten else None}
    await uow.history.renew_digests(lease, columns, recorded.steps)


async def _fall_back(
    transactions: Transactions, row: Any, recorded: Recorded, lease: Lease, hook: hooks.Hook | None
) -> LoadedRun:
    """Put the checkpoint's steps in the place of damaged ones, and find a context. What is not found runs again."""
    snapshot, seq = await _newest_sound_snapshot(transactions, row)
    mended = _mended(recorded, snapshot, seq, transactions.payloads)
    history, effective = _found_context(recorded, mended, snapshot)
    position = max((step.position for step in mended), default=-1)
    starts_anew = history.was_edited or recorded.initial is None
    first: Columns = {} if starts_anew else {"initial_context": recorded.initial}
    whole = _without_patches(mended) if starts_anew else _with_patches(mended, history)
    changed = set(recorded.damaged)
    if not starts_anew:
        changed |= {step.step_id for step, was in zip(whole, mended, strict=True) if step is not was}
    mended = whole

    async def write(uow: StoreUnit) -> None:
        replaced = [step for step in mended if step.step_id in changed]
        await uow.history.replace_steps(lease, changed, replaced)
        if starts_anew:
            await uow.history.start_context_anew(lease, join(effective))
        else:
            await uow.history.fold_context(lease, join(effective), position)
        if recorded.outdated:
            await uow.history.renew_digests(lease, first, mended)

    await transactions.write(write)
    fell_back = hooks.FellBack(
        workflow_state_id=recorded.id, step_ids=tuple(recorded.damaged) or tuple(sorted(changed)), seq=seq
    )
    what = f"steps {fell_back.step_ids} are" if fell_back.step_ids else "context is"
    hooks.logger.warning("run %s: its damaged %s taken from checkpoint %s", recorded.id, what, seq)
    hooks.tell(hook, lambda: fell_back)
    return LoadedRun(steps=mended, history=history, fell_back=fell_back)


async def _newest_sound_snapshot(transactions: Transactions, row: Any) -> tuple[WorkflowState | None, int | None]:
    """The newest checkpoint that holds this workflow's state, at the version of its row."""
    for checkpoint_id in await transactions.read(lambda uow: uow.past.list_checkpoint_ids(row.id, whole=True)):
        try:
            checkpoint = await transactions.read(
                partial(_get_checkpoint, checkpoint_id=checkpoint_id, version=row.schema_version or FIRST)
            )
            state = WorkflowState.from_snapshot(checkpoint.snapshot)
            if state.id == row.id:
                return state, checkpoint.seq
        except (*DAMAGE, SchemaMismatch, CheckpointNotFound):
            continue
    return None, None


async def _get_checkpoint(uow: StoreUnit, checkpoint_id: UUID, version: int) -> Checkpoint:
    return await uow.past.get_checkpoint(checkpoint_id, version)


def _mended(
    recorded: Recorded, snapshot: WorkflowState | None, seq: int | None, payloads: Payloads
) -> list[StepRecord]:
    """The steps; damaged ones as the checkpoint knows them, else to be run again. Their `error` tells which it was."""
    known = {} if snapshot is None else snapshot.steps
    mended = []
    for step in recorded.steps:
        unreadable = recorded.damaged.get(step.step_id)
        if not unreadable:
            mended.append(step)
        elif unreadable <= DISPENSABLE:
            mended.append(step._replace(error="what was recorded here was damaged"))
        elif step.step_id in known:
            columns = step_columns(known[step.step_id], f"steps[{step.step_id!r}]", payloads)
            columns |= {
                "error": f"was damaged, and taken from checkpoint {seq}",
                "schema_version": recorded.schema_version,
            }
            mended.append(step._replace(**columns))
        else:
            mended.append(
                step._replace(
                    status=StepStatus.FAILED.value,
                    outputs="null",
                    context_patch=None,
                    error="was damaged, and no checkpoint had it: run again",
                )
            )
    return mended


def _edited(recorded: Recorded) -> tuple[ContextHistory, Encoded] | None:
    """The history of a run whose context somebody has edited, where that can be told."""
    if recorded.context is None:
        return None
    try:
        found = recorded.history()
    except DAMAGE:  # patches that follow a lost one
        return None
    return found if found[0].was_edited else None


def _found_context(
    recorded: Recorded, mended: Sequence[StepRecord], snapshot: WorkflowState | None
) -> tuple[ContextHistory, Encoded]:
    """Like `Recorded.history`, where something is lost.

    What a step that runs again did to the context is forgotten, and what others made of that: the context is what the
    rest makes of the first one.
    If some of that cannot be read, the run starts with the stored context, or else with the checkpoint's. Raises
    `CorruptPayload` if there is none.
    """
    if recorded.initial is not None:
        if (found := _edited(recorded)) is not None:
            return found
        patches, effective = applicable(split(recorded.initial, "context"), patches_of(mended))
        return ContextHistory(recorded.initial, effective, patches), effective
    if snapshot is None or not isinstance(snapshot.context, dict):
        raise CorruptPayload(
            "the stored context is no JSON object, or damaged, and no checkpoint has one",
            path="context",
            workflow_state_id=recorded.id,
        )
    effective = {key: encode_loaded(item, "context") for key, item in snapshot.context.items()}
    return ContextHistory("{}", effective, {}), effective
