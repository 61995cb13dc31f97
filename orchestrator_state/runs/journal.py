"""What is recorded of one run, and the one way to record more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.concurrency import LONG, Aside, Turns, outlasting
from orchestrator_state.domain import StepStatus, utc_now
from orchestrator_state.errors import LeaseLost
from orchestrator_state.failures import describe
from orchestrator_state.payloads import Payloads, Reference, decode_long
from orchestrator_state.records import (
    FINAL,
    Ack,
    ClaimedRun,
    Columns,
    FoldedContext,
    OpenStep,
    RunChange,
    workflow_identity,
)
from orchestrator_state.records.context import (
    ContextChange,
    ContextHistory,
    Decoded,
    Encoded,
    LongValues,
    Look,
    Patch,
    decoded,
    join,
)
from orchestrator_state.runs.checkpoints import CheckpointPolicy, Checkpoints
from orchestrator_state.runs.group_commit import GroupCommit
from orchestrator_state.runs.stopping import NOT_THE_RUNS, StopSwitch
from orchestrator_state.transactions import StoreUnit

_FOLDED_ALWAYS: Final = 64 * 1024
"""Characters of JSON: to write a context of that length with a step that changes it costs next to nothing."""


@dataclass(slots=True, kw_only=True, repr=False)
class Entry:
    """A commit that is about to be made, and what is remembered of it once it is."""

    change: RunChange
    step: OpenStep
    context: ContextChange | None
    """None if nothing can have changed, or if the step is not over: then the context is left as it is."""
    payloads: Payloads
    """What sealed it; its blobs are uploaded before it is written."""
    cancelled: asyncio.CancelledError | None = None
    """A cancellation that came meanwhile, to be raised once it is written."""


class Journal:
    """The recorded steps and context of one run under one lease. Its commits follow each other in order."""

    def __init__(
        self,
        run: ClaimedRun,
        steps: Sequence[OpenStep],
        history: ContextHistory,
        schema_version: int | None,
        group_commit: GroupCommit,
        switch: StopSwitch,
        policy: CheckpointPolicy,
        hook: hooks.Hook | None,
    ) -> None:
        self.run = run
        self._id = str(run.id)  # a UUID is slow to spell, and this one is wanted in each step
        self.lease = run.lease
        self.history = history
        self.hook = hook
        self._steps = {step.step_id: step for step in steps}
        self._outputs_length = self._patches_length = self._next_position = 0
        for step in steps:
            self._outputs_length += len(step.outputs)
            self._patches_length += len(step.context_patch or "")
            self._next_position = max(self._next_position, step.position + 1)
        self._unfolded = 0
        self._schema_version = schema_version
        size = self._outputs_length + history.length
        self._checkpoints = Checkpoints(run, schema_version, policy, self._steps, history, size)
        self._group_commit = group_commit
        self._transactions = group_commit.transactions
        self._payloads = self._transactions.payloads
        self._limits = self._payloads.limits
        self._switch = switch
        self._finished = 0
        self._snapshots: deque[tuple[str, ...]] = deque()
        self._consumed: set[UUID | None] = set()
        self.in_order = Turns()
        self.on_progress: Callable[[], object] | None = None
        """Called once a step is finished that was not on record."""

    # --- what there is -------------------------------------------------------------------------------------------

    def recorded(self, step_id: str) -> OpenStep | None:
        return self._steps.get(step_id)

    async def replay(self, step_id: str) -> OpenStep | None:
        """Return the record of a step that is over, having moved the context on to what it committed."""
        step = self._steps.get(step_id)
        if step is None or step.status not in FINAL:
            return None
        ahead: Decoded = {}
        if self.history.length >= LONG and (long := self.history.foreseen(step.position, LONG)):
            ahead = await self._aside.call(partial(decoded, long), LONG)
        self.history.replay(step.position, ahead)
        if self.hook is not None:
            hooks.tell(self.hook, hooks.StepReused, workflow_state_id=self.run.id, step_id=step_id)
        return step

    @property
    def steps(self) -> Mapping[str, OpenStep]:
        """The steps on record, to which each commit adds."""
        return self._steps

    @property
    def has_progressed(self) -> bool:
        """Whether a step was finished under this lease."""
        return self._finished > 0

    def key(self, step_id: str) -> str:
        return f"{self.run.id}:{step_id}"

    def check_size(self, step_id: str, outputs: str) -> None:
        """Raise `PayloadTooLarge` if the run would be too large with this step."""
        steps = len(self._steps) + (step_id not in self._steps)
        size = self._outputs_length + self.history.length + self._patches_length + len(outputs)
        if size > self._limits.workflow_bytes or steps > self._limits.steps:
            self._limits.check_workflow(size, steps)

    # --- adding to it --------------------------------------------------------------------------------------------

    async def finish_step(
        self,
        begun: OpenStep,
        outputs: str,
        *,
        status: StepStatus = StepStatus.COMPLETED,
        checkpoint: bool = False,
        consumed_signal: UUID | None = None,
    ) -> bool:
        """Commit a step that is over, the changed context with it, and a checkpoint if one is due.

        False, and nothing written, if another branch of the run consumed the signal first.
        """
        async with self.in_order:
            if self._switch.reason is not None:
                self._switch.require_ground()
            if consumed_signal in self._consumed:
                return False
            step = self.completed(begun, outputs, status=status)
            entry = await self.entry(step, checkpoint=checkpoint, consumed_signal=consumed_signal)
            await self._commit(entry)
        return True

    async def begin_step(self, step_id: str, *, outputs: str = "null") -> OpenStep:
        """Commit the intent to do a step, before it has any effect."""
        async with self.in_order:
            step = self.new_step(step_id)._replace(
                position=self._next_position, status=StepStatus.RUNNING.value, outputs=outputs
            )
            await self._commit(await self.entry(step))
        return step

    async def fail_step(
        self, begun: OpenStep, error: Exception, *, calls: int, consumed_signal: UUID | None = None
    ) -> bool:
        """Commit the failure of a step. The context is left: a step that runs again will change it again.

        False, and nothing written, if another branch of the run consumed the signal first.
        """
        async with self.in_order:
            if consumed_signal in self._consumed:
                return False
            step = begun._replace(
                position=self._next_position,
                status=StepStatus.FAILED.value,
                outputs="null",
                completed_at=utc_now(),
                error=describe(error),
                retry_count=begun.retried(calls),
            )
            await self._commit(await self.entry(step, consumed_signal=consumed_signal))
        return True

    def new_step(self, step_id: str) -> OpenStep:
        """A step that is about to be done. Raises `PayloadTooLarge` if the run has too many."""
        known = self._steps.get(step_id)
        if known is None and len(self._steps) >= self._limits.steps:
            self._limits.check_workflow(0, len(self._steps) + 1)
        return OpenStep(
            step_id=step_id,
            position=0,
            status=StepStatus.PENDING.value,
            started_at=utc_now(),
            completed_at=None,
            outputs="null",
            error=known.error if known else None,
            retry_count=known.retry_count if known else 0,
            schema_version=self._schema_version,
        )

    def completed(self, begun: OpenStep, outputs: str, *, status: StepStatus = StepStatus.COMPLETED) -> OpenStep:
        """`begun`, over, and at the next position. Call it with `in_order` held."""
        return begun._replace(
            position=self._next_position, status=status.value, outputs=outputs, completed_at=utc_now()
        )

    async def entry(self, step: OpenStep, *, checkpoint: bool = False, consumed_signal: UUID | None = None) -> Entry:
        """Put together the commit of `step`, and of the context with it if the step is over.

        Call it with `in_order` held: positions and patches follow the order of commits. The context is looked at in one
        go. What follows from that is done beside the event loop, if it is long.
        """
        is_over = step.status in FINAL
        found, cancelled = await self._look() if is_over and not self.history.is_untouched else (None, None)
        every = self._checkpoints.policy.every
        due = is_over and (checkpoint or (every > 0 and (self._finished + 1) % every == 0))
        effort = 0  # as nearly always
        if found is not None or self._outputs_length + self.history.length + len(step.outputs) >= LONG:
            effort = self._effort(step, found, checkpoint=due)
        if effort < LONG:
            entry = self._entry(step, found, checkpoint=due, consumed_signal=consumed_signal)
        else:
            work = partial(self._entry, step, found, checkpoint=due, consumed_signal=consumed_signal)
            entry, later = await outlasting(self._aside.call(work, effort))
            cancelled = cancelled or later
        entry.cancelled = cancelled
        return entry

    async def _look(self) -> tuple[Look | ContextChange, asyncio.CancelledError | None]:
        """What the context has become; and a cancellation that came meanwhile."""
        try:
            return self.history.look(at_once=False) or self.history.unchanged(), None
        except LongValues as long:
            _, cancelled = await outlasting(self._aside.call(long.vouch, LONG))
        # Out here, since what is refused was not refused because it took long.
        return self.history.look() or self.history.unchanged(), cancelled

    @property
    def _aside(self) -> Aside:
        return self._payloads.aside

    def _effort(self, step: OpenStep, found: Look | ContextChange | None, *, checkpoint: bool) -> int:
        """How many characters a commit has to do with."""
        effort = len(step.outputs) + (found.size if isinstance(found, Look) else 0)
        length = self.history.length
        everything = self._outputs_length + length + effort
        if everything < LONG:
            return effort
        added = effort
        if isinstance(found, Look) and (self._unfolded + added >= length or self._may_have_too_many_values(length)):
            effort += length  # the context is folded
        if checkpoint and self._checkpoints.is_long(everything, added):
            effort += everything
        return effort

    def _entry(
        self,
        step: OpenStep,
        found: Look | ContextChange | None,
        *,
        checkpoint: bool,
        consumed_signal: UUID | None,
    ) -> Entry:
        payloads = self._payloads if self._payloads.blobs is None else self._transactions.unit_payloads()
        context = found.change() if isinstance(found, Look) else found
        fold = None
        if context is not None and context.patch is not None:
            step = step._replace(context_patch=context.patch.to_json())
            self._check_context(context, payloads)
            self._unfolded += len(step.context_patch or "")
            if self._is_fold_due(context.patch, context):
                fold = self._fold(step, context, payloads)
        made = None
        if checkpoint:
            length = self.history.length if context is None else context.length
            size = self._outputs_length + length + len(step.outputs)
            made = self._checkpoints.made_with(step, context, size, payloads)
        change = RunChange(
            lease=self.lease,
            step=step.sealed(payloads, self.lease.workflow_state_id, self._id),
            context=fold,
            checkpoint=made,
            consumed_signal=consumed_signal,
        )
        return Entry(change=change, step=step, context=context, payloads=payloads)

    def _fold(self, step: OpenStep, context: ContextChange, payloads: Payloads) -> FoldedContext:
        """The whole context, for the run's row."""
        text = join(self.history.committed_with(context))
        sealed = payloads.seal(text, workflow_identity(self._id, "context"))
        return FoldedContext(context=sealed.text, context_digest=sealed.digest, position=step.position)

    def _check_context(self, context: ContextChange, payloads: Payloads) -> None:
        """Raise `PayloadTooLarge` if the context as a whole is: its keys were looked at one by one."""
        payloads.limits.check_length(context.length, "context")
        if self._may_have_too_many_values(context.length):
            _check_values(self.history.committed_with(context), payloads)

    def _may_have_too_many_values(self, length: int) -> bool:
        return length > 2 * self._limits.values  # each takes a comma as well

    def _is_fold_due(self, patch: Patch, context: ContextChange) -> bool:
        """Whether the row gets the whole context: a short one, or once the patches since the last time outweigh it.

        Until then whoever reads the state adds the patches to what the row has.
        """
        if patch.change.only_appends:
            return False
        return context.length <= _FOLDED_ALWAYS or self._unfolded >= context.length

    async def write(self, uow: StoreUnit, entry: Entry) -> Ack:
        """Write `entry` in the unit of work, which commits it with rows of the caller's."""
        await self._upload(entry)
        ack = await uow.commits.commit(entry.change, with_callers_rows=True)
        self._tell(hooks.StepCommitting, entry.step)
        return ack

    def accept(self, entry: Entry, ack: Ack) -> None:
        """`entry` is durable."""
        step, change = entry.step, entry.change
        self._remember(step)
        if change.consumed_signal is not None:
            self._consumed.add(change.consumed_signal)
        if change.context is not None:
            self._unfolded = 0
        if entry.context is not None:
            self.history.accept(entry.context, step.position)
        if step.status in FINAL:
            self._finished += 1
            if self.on_progress is not None:
                self.on_progress()
        self._checkpoints.committed(step, change.checkpoint, self._outputs_length + self.history.length)
        if ack.request is not None or not self._switch.is_quiet:
            self._switch.notice(ack.request)
        if self.hook is not None:
            self._tell(hooks.StepCommitted, step)

    def adopt(self, step: OpenStep) -> None:
        """`step` turned out to be durable: a commit of unknown outcome took effect."""
        self.lease.advance()
        self._remember(step)
        if step.context_patch is not None:
            self.history.adopt(Patch.from_json(step.context_patch), step.position)

    def _remember(self, step: OpenStep) -> None:
        """`step` is on record."""
        self._checkpoints.remember(step)
        replaced = self._steps.get(step.step_id)
        self._outputs_length += len(step.outputs) - (len(replaced.outputs) if replaced else 0)
        self._patches_length += len(step.context_patch or "") - len((replaced and replaced.context_patch) or "")
        self._steps[step.step_id] = step
        self._next_position = max(self._next_position, step.position + 1)

    async def final_context(self) -> Columns:
        """Columns for the end of a run, whose context nobody has to replay any more."""
        final = await self._final()
        context = await self._aside.call(partial(join, final), sum(map(len, final.values())))
        payloads = self._payloads
        payloads.limits.check_length(len(context), "context")
        if self._may_have_too_many_values(len(context)):
            await self._aside.call(partial(_check_values, final, payloads), len(context))
        return {"context": context, "context_position": self._next_position - 1}

    async def _final(self) -> Encoded:
        """The handler's context, encoded."""
        try:
            return self.history.final(at_once=False)
        except LongValues as long:
            await self._aside.call(long.vouch, LONG)
        return self.history.final()

    async def _commit(self, entry: Entry) -> None:
        """Commit `entry`. Once it is on its way, a cancellation waits: memory must know what the database holds."""
        cancelled, has_blobs = entry.cancelled, entry.payloads.offload is not None
        try:
            if has_blobs:
                await self._upload(entry, patiently=True)
            announce = None if self.hook is None else partial(self._tell, hooks.StepCommitting, entry.step)
            writing = self._group_commit.send(entry.change, announce)
        except NOT_THE_RUNS as error:
            self._switch.stop(error)
        try:
            await writing
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001, S110 - looked at next
            pass
        try:
            self._accept_outcome(entry, writing)
        finally:
            if cancelled is not None:
                raise cancelled
        if has_blobs:
            await self._remove_superseded_snapshots(entry)

    def _tell(self, event: type[hooks.StepCommitting | hooks.StepCommitted], step: OpenStep) -> None:
        hooks.tell(self.hook, event, workflow_state_id=self.run.id, step_id=step.step_id)

    def _accept_outcome(self, entry: Entry, writing: asyncio.Future[Ack]) -> None:
        try:
            ack = writing.result()
        except (LeaseLost, *NOT_THE_RUNS) as error:
            # The database is away, or nobody knows whether the commit took effect: what is in memory may be wrong.
            self._switch.stop(error)
        self.accept(entry, ack)

    async def _upload(self, entry: Entry, *, patiently: bool = False) -> None:
        """`patiently`: again, if the blob store is away for a moment. Not in a transaction, which would stay open."""
        offload = entry.payloads.offload
        if offload is not None and offload.has_uploads:
            await (self._transactions.repeated(offload.settle) if patiently else offload.settle())

    async def _remove_superseded_snapshots(self, entry: Entry) -> None:
        """Remove the blobs of this worker's checkpoints that the commit of `entry` has pruned."""
        offload, made = entry.payloads.offload, entry.change.checkpoint
        if offload is None or made is None:
            return
        self._snapshots.append((made.snapshot,) if Reference.parse(made.snapshot) else ())
        while len(self._snapshots) > made.keep:
            offload.discard([self._snapshots.popleft()])
        await self._transactions.remove_discarded(offload, own=True)


def _check_values(context: Encoded, payloads: Payloads) -> None:
    if sum(text.count(",") + 1 for text in context.values()) > payloads.limits.values:  # some may be inside of texts
        payloads.encode(decode_long(join(context), "context"), "context")
