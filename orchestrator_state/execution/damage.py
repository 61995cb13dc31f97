"""Go on where something on record is damaged: with the newest checkpoint, and what is not in it runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.domain import Checkpoint, StepStatus, WorkflowState
from orchestrator_state.errors import CheckpointNotFound, CorruptPayload, SchemaMismatch
from orchestrator_state.payloads import Payloads
from orchestrator_state.records import DAMAGE, ClaimedRun, Columns, OpenStep, Recorded, patches_of
from orchestrator_state.records.context import ContextHistory, Encoded, applicable, join, split
from orchestrator_state.records.states import step_columns
from orchestrator_state.state_schema import FIRST, encode_loaded
from orchestrator_state.transactions import StoreUnit, Transactions

# Columns that a step can do without: what was done in it needs not be done again.
_DISPENSABLE: Final = frozenset({"error", "started_at", "completed_at", "retry_count"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Mended:
    """What takes the place of a damaged history."""

    steps: Sequence[OpenStep]
    history: ContextHistory
    context: str
    starts_anew: bool
    """Whether the run starts with `context`, which no step on record has changed."""
    replaced: frozenset[str]
    """The steps whose rows are written anew."""


async def fall_back(
    transactions: Transactions, run: ClaimedRun, recorded: Recorded, hook: hooks.Hook | None
) -> tuple[Sequence[OpenStep], ContextHistory, hooks.FellBack]:
    """Put the checkpoint's steps in the place of damaged ones, and find a context. What is not found runs again.

    Raises `CorruptPayload` if there is no context.
    """
    snapshot, seq = await _newest_sound_snapshot(transactions, run)
    mended = _mended(recorded, snapshot, seq, transactions.payloads)
    await transactions.write(partial(_store, run=run, recorded=recorded, mended=mended))
    step_ids = tuple(recorded.damaged) or tuple(sorted(mended.replaced))
    fell_back = hooks.FellBack(
        workflow_state_id=run.id, name=run.name, token=run.lease.token, step_ids=step_ids, seq=seq
    )
    what = f"steps {step_ids} are" if step_ids else "context is"
    instead = "run again" if step_ids else "made anew from the recorded steps"
    source = f"in no checkpoint, and {instead}" if seq is None else f"taken from checkpoint {seq}"
    hooks.logger.warning("run %s: its damaged %s %s", run.id, what, source)
    hooks.tell(hook, lambda: fell_back)
    return mended.steps, mended.history, fell_back


async def _store(uow: StoreUnit, *, run: ClaimedRun, recorded: Recorded, mended: _Mended) -> None:
    lease = run.lease
    replaced = [step for step in mended.steps if step.step_id in mended.replaced]
    await uow.history.replace_steps(lease, mended.replaced, replaced)
    if mended.starts_anew:
        await uow.history.start_context_anew(lease, mended.context)
    else:
        position = max((step.position for step in mended.steps), default=-1)
        await uow.history.fold_context(lease, mended.context, position)
    if recorded.outdated:
        first: Columns = {} if mended.starts_anew else {"initial_context": recorded.initial}
        await uow.history.renew_digests(lease, first, mended.steps)


async def _newest_sound_snapshot(
    transactions: Transactions, run: ClaimedRun
) -> tuple[WorkflowState | None, int | None]:
    """The newest checkpoint that holds this workflow's state, at the version of its row."""
    version = run.stored.schema_version or FIRST
    for checkpoint_id in await transactions.read(lambda uow: uow.past.list_checkpoint_ids(run.id, whole=True)):
        try:
            checkpoint = await transactions.read(partial(_get_checkpoint, checkpoint_id=checkpoint_id, version=version))
            state = WorkflowState.from_snapshot(checkpoint.snapshot)
            if state.id == run.id:
                return state, checkpoint.seq
        except (*DAMAGE, SchemaMismatch, CheckpointNotFound):
            continue
    return None, None


async def _get_checkpoint(uow: StoreUnit, checkpoint_id: UUID, version: int) -> Checkpoint:
    return await uow.past.get_checkpoint(checkpoint_id, version)


def _mended(recorded: Recorded, snapshot: WorkflowState | None, seq: int | None, payloads: Payloads) -> _Mended:
    steps = _mended_steps(recorded, snapshot, seq, payloads)
    history, effective = _found_context(recorded, steps, snapshot)
    replaced = set(recorded.damaged)
    starts_anew = history.was_edited or recorded.initial is None
    if starts_anew:
        whole = without_patches(steps)
    else:
        whole = _with_patches(steps, history)
        replaced |= {step.step_id for step, was in zip(whole, steps, strict=True) if step is not was}
    return _Mended(
        steps=whole,
        history=history,
        context=join(effective),
        starts_anew=starts_anew,
        replaced=frozenset(replaced),
    )


def _mended_steps(
    recorded: Recorded, snapshot: WorkflowState | None, seq: int | None, payloads: Payloads
) -> list[OpenStep]:
    """The steps; damaged ones as the checkpoint knows them, else to be run again. Their `error` tells which it was."""
    known = {} if snapshot is None else snapshot.steps
    mended = []
    for step in recorded.steps:
        unreadable = recorded.damaged.get(step.step_id)
        if not unreadable:
            mended.append(step)
        elif unreadable <= _DISPENSABLE:
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
    recorded: Recorded, mended: Sequence[OpenStep], snapshot: WorkflowState | None
) -> tuple[ContextHistory, Encoded]:
    """Like `Recorded.history`, where something is lost.

    What a step that runs again did to the context is forgotten, and what others made of that: the context is what the
    rest makes of the first one. If somebody has edited it, the run starts with what it is now; if the first one cannot
    be read, with the checkpoint's. Raises `CorruptPayload` if there is none.
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


def without_patches(steps: Sequence[OpenStep]) -> list[OpenStep]:
    """As `start_context_anew` leaves them: what a checkpoint says of the steps is what their rows say."""
    return [step._replace(context_patch=None) for step in steps]


def _with_patches(steps: Sequence[OpenStep], history: ContextHistory) -> list[OpenStep]:
    """Steps say what the history says of them: what came of a patch that is lost is lost with it."""
    patches = {position: patch.to_json() for position, patch in history.patches.items()}
    return [
        step
        if not step.context_patch or step.context_patch == patches.get(step.position)
        else step._replace(context_patch=patches.get(step.position))
        for step in steps
    ]
