"""`Journal`: what is recorded of one run under its lease, and its commits, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state.concurrency import LONG, Turns
from orchestrator_state.domain import StepStatus, utc_now
from orchestrator_state.errors import LeaseLost
from orchestrator_state.failures import describe
from orchestrator_state.records import FINAL, Ack, ClaimedRun, Columns, OpenStep, UsageRecord
from orchestrator_state.records.context import ContextHistory, Decoded, decoded
from orchestrator_state.runs.faults import Faults
from orchestrator_state.runs.journal.checkpoints import CheckpointPolicy, Checkpoints
from orchestrator_state.runs.journal.entries import Entries, Entry
from orchestrator_state.runs.journal.group_commit import GroupCommit
from orchestrator_state.runs.journal.on_record import StepsOnRecord
from orchestrator_state.runs.spending.recording import Spending
from orchestrator_state.runs.stopping import NOT_THE_RUNS, StopSwitch
from orchestrator_state.runs.telling import Telling
from orchestrator_state.transactions import StoreUnit


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
        telling: Telling | None,
    ) -> None:
        self.run = run
        self.lease = run.lease
        self.history = history
        self.telling = telling
        """What tells the hook; None if there is none, and then nothing is made to be told."""
        self._group_commit = group_commit
        self._transactions = transactions = group_commit.transactions
        self._payloads = transactions.payloads
        self._on_record = on_record = StepsOnRecord(steps, schema_version, self._payloads.limits)
        size = on_record.outputs_length + history.length
        self._checkpoints = Checkpoints(run, schema_version, policy, on_record.by_id, history, size)
        self._entries = Entries(run, on_record, history, self._checkpoints, transactions)
        self.new_step: Final = on_record.new
        """See `StepsOnRecord.new`."""
        self.spending: Final = Spending(run.id)
        self._switch = switch
        self._consumed: set[UUID | None] = set()
        self.in_order = Turns()
        self.faults: Faults | None = None
        self.has_progressed = False
        """Whether a step was finished under this lease."""
        self.on_progress: Callable[[], object] | None = None
        """Called once a step is finished that was not on record."""

    # --- what there is -------------------------------------------------------------------------------------------

    def recorded(self, step_id: str) -> OpenStep | None:
        return self._on_record.by_id.get(step_id)

    async def replay(self, step_id: str) -> OpenStep | None:
        """Return the record of a step that is over, having moved the context on to what it committed."""
        step = self._on_record.by_id.get(step_id)
        if step is None or step.status not in FINAL:
            return None
        ahead: Decoded = {}
        if self.history.length >= LONG and (long := self.history.foreseen(step.position, LONG)):
            ahead = await self._payloads.aside.call(partial(decoded, long), LONG)
        self.history.replay(step.position, ahead)
        if self.telling is not None:
            self.telling.reused(step_id)
        return step

    @property
    def steps(self) -> Mapping[str, OpenStep]:
        """The steps on record, to which each commit adds."""
        return self._on_record.by_id

    def key(self, step_id: str) -> str:
        return f"{self.run.id}:{step_id}"

    def check_size(self, step_id: str, outputs: str) -> None:
        """Raise `PayloadTooLarge` if the run would be too large with this step."""
        self._on_record.check_size(step_id, outputs, self.history.length)

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

    async def begin_step(self, begun: OpenStep, *, outputs: str = "null") -> OpenStep:
        """Commit the intent to do a step, before it has any effect, or before it waits."""
        async with self.in_order:
            step = begun._replace(
                position=self._on_record.next_position, status=StepStatus.RUNNING.value, outputs=outputs
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
            if self.telling is not None:
                self.telling.step_failed(begun.step_id, error, will_retry=False)
            step = begun._replace(
                position=self._on_record.next_position,
                status=StepStatus.FAILED.value,
                outputs="null",
                completed_at=utc_now(),
                error=describe(error),
                retry_count=begun.retried(calls),
            )
            await self._commit(await self.entry(step, consumed_signal=consumed_signal))
        return True

    def completed(self, begun: OpenStep, outputs: str, *, status: StepStatus = StepStatus.COMPLETED) -> OpenStep:
        """`begun`, over, and at the next position. Call it with `in_order` held."""
        return begun._replace(
            position=self._on_record.next_position, status=status.value, outputs=outputs, completed_at=utc_now()
        )

    async def entry(self, step: OpenStep, *, checkpoint: bool = False, consumed_signal: UUID | None = None) -> Entry:
        """See `Entries.make`. Call it with `in_order` held."""
        entry = await self._entries.make(step, checkpoint=checkpoint, consumed_signal=consumed_signal)
        entry.change.usage = self.spending.with_commit_of(step)
        return entry

    async def write(self, uow: StoreUnit, entry: Entry) -> Ack:
        """Write `entry` in the unit of work, which commits it with rows of the caller's."""
        await self._upload(entry)
        ack = await uow.commits.commit(entry.change, with_callers_rows=True)
        self._about_to_commit(entry.step)
        return ack

    def accept(self, entry: Entry, ack: Ack) -> None:
        """`entry` is durable."""
        step, change = entry.step, entry.change
        self._remember(step)
        if change.usage:
            self.has_recorded(change.usage)
        if change.consumed_signal is not None:
            self._consumed.add(change.consumed_signal)
        self._entries.committed(entry)
        if entry.context is not None:
            self.history.accept(entry.context, step.position)
        elif step.status in FINAL:
            self.history.come_past(step.position)
        if step.status in FINAL:
            self.has_progressed = True
            if self.on_progress is not None:
                self.on_progress()
        self._checkpoints.committed(step, change.checkpoint, self._on_record.outputs_length + self.history.length)
        if ack.request is not None or not self._switch.is_quiet:
            self._switch.notice(ack.request)
        if self.telling is not None:
            self.telling.committed(step)
        if self.faults is not None:
            with self._switch.on_fault():
                self.faults.after_commit(self.lease, step)

    def adopt(self, step: OpenStep, tries: Sequence[Entry], *, is_last: bool) -> None:
        """`step` turned out to be durable: a commit of unknown outcome took effect, which was one of the `tries`.

        `is_last`: whether the function has not been called again after the last of them.
        """
        self.lease.advance()
        self._remember(step)
        if len(tries) == 1:  # of several it may be any: what they have used is sent again, and what is there stays
            self.has_recorded(tries[0].change.usage)
        found = (entry for entry in reversed(tries) if entry.step.context_patch == step.context_patch)
        entry = next(found, None)
        context = None if entry is None else entry.context
        if not (is_last and tries and entry is tries[-1]):
            self.history.return_to(context, step.position)
        if context is not None:
            self.history.accept(context, step.position)
        elif step.status in FINAL:
            self.history.come_past(step.position)
        if self.telling is not None:
            self.telling.committed(step)

    def has_recorded(self, usage: Sequence[UsageRecord]) -> None:
        """It is durable."""
        self.spending.committed(usage)
        if self.telling is not None:
            self.telling.used(usage)

    def _remember(self, step: OpenStep) -> None:
        """`step` is on record."""
        self._checkpoints.remember(step)
        self._on_record.add(step)

    async def final_context(self) -> Columns:
        """Columns for the end of a run, whose context nobody has to replay any more."""
        context = await self._entries.final_context()
        return {"context": context, "context_position": self._on_record.next_position - 1}

    async def _commit(self, entry: Entry) -> None:
        """Commit `entry`. Once it is on its way, a cancellation waits: memory must know what the database holds."""
        cancelled, has_blobs = entry.cancelled, entry.payloads.offload is not None
        try:
            if has_blobs:
                await self._upload(entry, patiently=True)
            is_noticed = self.telling is not None or self.faults is not None
            announce = partial(self._about_to_commit, entry.step) if is_noticed else None
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
            await self._remove_pruned_snapshots(entry)

    def _about_to_commit(self, step: OpenStep) -> None:
        if self.telling is not None:
            self.telling.committing(step)
        if self.faults is not None:
            with self._switch.on_fault():
                self.faults.before_commit(self.lease, step)

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

    async def _remove_pruned_snapshots(self, entry: Entry) -> None:
        """Remove the blobs of this worker's checkpoints that the commit of `entry` has pruned."""
        offload, made = entry.payloads.offload, entry.change.checkpoint
        if offload is None or made is None:
            return
        offload.discard(self._checkpoints.pruned_with(made))
        await self._transactions.remove_discarded(offload, own=True)
