"""Put together what one commit of a run writes: a step, what it did to the context, and a checkpoint if one is due."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state.concurrency import LONG, outlasting
from orchestrator_state.payloads import Payloads, decode_long
from orchestrator_state.records import FINAL, ClaimedRun, FoldedContext, OpenStep, RunChange, workflow_identity
from orchestrator_state.records.context import ContextChange, ContextHistory, Encoded, LongValues, Look, Patch, join
from orchestrator_state.runs.journal.checkpoints import Checkpoints
from orchestrator_state.runs.journal.on_record import StepsOnRecord
from orchestrator_state.transactions import Transactions

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


class Entries:
    """Makes those of one run, one after the other: positions and patches follow the order of commits."""

    def __init__(
        self,
        run: ClaimedRun,
        on_record: StepsOnRecord,
        history: ContextHistory,
        checkpoints: Checkpoints,
        transactions: Transactions,
    ) -> None:
        self._id = str(run.id)  # a UUID is slow to spell, and this one is wanted in each step
        self._lease = run.lease
        self._on_record = on_record
        self._history = history
        self._checkpoints = checkpoints
        self._transactions = transactions
        self._payloads = transactions.payloads
        self._unfolded = 0
        """How long the patches are that the context in the run's row has not."""

    async def make(self, step: OpenStep, *, checkpoint: bool, consumed_signal: UUID | None) -> Entry:
        """The entry of `step`. If that is over, the context is part of it, and a `checkpoint` if one is wanted, or due.

        The context is looked at in one go. What follows from that is done beside the event loop, if it is long.
        """
        is_over = step.status in FINAL
        found, cancelled = await self._look() if is_over and not self._history.is_untouched else (None, None)
        checkpoint = is_over and (checkpoint or self._checkpoints.is_due)
        effort = 0  # as nearly always
        if found is not None or self._on_record.outputs_length + self._history.length + len(step.outputs) >= LONG:
            effort = self._effort(step, found, checkpoint=checkpoint)
        if effort < LONG:
            entry = self._entry(step, found, checkpoint=checkpoint, consumed_signal=consumed_signal)
        else:
            work = partial(self._entry, step, found, checkpoint=checkpoint, consumed_signal=consumed_signal)
            entry, later = await outlasting(self._payloads.aside.call(work, effort))
            cancelled = cancelled or later
        entry.cancelled = cancelled
        return entry

    def committed(self, entry: Entry) -> None:
        """`entry` is durable."""
        if entry.change.context is not None:
            self._unfolded = 0

    async def final_context(self) -> str:
        """The context that a run ends with, as JSON."""
        final = await self._final()
        aside, payloads = self._payloads.aside, self._payloads
        context = await aside.call(partial(join, final), sum(map(len, final.values())))
        payloads.limits.check_length(len(context), "context")
        if self._may_have_too_many_values(len(context)):
            await aside.call(partial(_check_values, final, payloads), len(context))
        return context

    async def _final(self) -> Encoded:
        """The handler's context, encoded."""
        try:
            return self._history.final(at_once=False)
        except LongValues as long:
            await self._payloads.aside.call(long.vouch, LONG)
        return self._history.final()

    async def _look(self) -> tuple[Look | ContextChange, asyncio.CancelledError | None]:
        """What the context has become; and a cancellation that came meanwhile."""
        try:
            return self._history.look(at_once=False) or self._history.unchanged(), None
        except LongValues as long:
            _, cancelled = await outlasting(self._payloads.aside.call(long.vouch, LONG))
        # Out here, since what is refused was not refused because it took long.
        return self._history.look() or self._history.unchanged(), cancelled

    def _effort(self, step: OpenStep, found: Look | ContextChange | None, *, checkpoint: bool) -> int:
        """How many characters a commit has to do with."""
        effort = len(step.outputs) + (found.size if isinstance(found, Look) else 0)
        length = self._history.length
        everything = self._on_record.outputs_length + length + effort
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
            length = self._history.length if context is None else context.length
            size = self._on_record.outputs_length + length + len(step.outputs)
            made = self._checkpoints.made_with(step, context, size, payloads)
        change = RunChange(
            lease=self._lease,
            step=step.sealed(payloads, self._lease.workflow_state_id, self._id),
            context=fold,
            checkpoint=made,
            consumed_signal=consumed_signal,
        )
        return Entry(change=change, step=step, context=context, payloads=payloads)

    def _fold(self, step: OpenStep, context: ContextChange, payloads: Payloads) -> FoldedContext:
        """The whole context, for the run's row."""
        text = join(self._history.committed_with(context))
        sealed = payloads.seal(text, workflow_identity(self._id, "context"))
        return FoldedContext(context=sealed.text, context_digest=sealed.digest, position=step.position)

    def _is_fold_due(self, patch: Patch, context: ContextChange) -> bool:
        """Whether the row gets the whole context: a short one, or once the patches since the last time outweigh it.

        Until then whoever reads the state adds the patches to what the row has.
        """
        if patch.change.only_appends:
            return False
        return context.length <= _FOLDED_ALWAYS or self._unfolded >= context.length

    def _check_context(self, context: ContextChange, payloads: Payloads) -> None:
        """Raise `PayloadTooLarge` if the context as a whole is: its keys were looked at one by one."""
        payloads.limits.check_length(context.length, "context")
        if self._may_have_too_many_values(context.length):
            _check_values(self._history.committed_with(context), payloads)

    def _may_have_too_many_values(self, length: int) -> bool:
        return length > 2 * self._payloads.limits.values  # each takes a comma as well


def _check_values(context: Encoded, payloads: Payloads) -> None:
    if sum(text.count(",") + 1 for text in context.values()) > payloads.limits.values:  # some may be inside of texts
        payloads.encode(decode_long(join(context), "context"), "context")
