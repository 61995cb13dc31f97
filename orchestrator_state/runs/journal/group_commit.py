"""Group commit: the step commits of runs that wait at the same moment go to the database together.

What waits while a batch is under way makes the next one: there is no timer, and a single step goes at once. Each
caller gets its own outcome. A change that the batch passed over (its lease may be lost, its row locked) is tried once
more by itself, in a transaction that waits. A batch that fails because of what is in it is halved until the culprit
is alone; one that fails because of the database is repeated as a whole, and fails as a whole.
"""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.concurrency import Unstoppable
from orchestrator_state.database import Idling
from orchestrator_state.errors import ConfigurationError, Conflict, CorruptPayload, InvalidPayload, StoreUnavailable
from orchestrator_state.records import Ack, RunChange
from orchestrator_state.repositories.runs import commit_at_once
from orchestrator_state.transactions import StoreUnit, Transactions

MOST_IN_A_BATCH: Final = 256
MOST_CHARACTERS_IN_A_BATCH: Final = 4 * 1024 * 1024
"""A change that has more goes by itself."""
# From a commit to the next one of a run whose step does not wait for anything. Whoever has waited for the batch lets
# them join in: else two halves of the runs would take turns for ever, with twice as many commits.
_TURNS_OF_A_STEP: Final = 3
_MAY_BE_A_COUNTS: Final = (Conflict, CorruptPayload, InvalidPayload)
"""What a damaged count of checkpoints is refused with, these classes and not those of them: it is set right once."""


class _Waiting:
    """A change on its way, and the caller who waits for what becomes of it."""

    __slots__ = ("before_sending", "change", "is_refused", "outcome", "run_id", "size")

    def __init__(self, change: RunChange, before_sending: Callable[[], None] | None) -> None:
        self.change = change
        self.run_id = change.lease.workflow_state_id
        self.before_sending = before_sending
        self.is_refused = False
        self.outcome: Unstoppable[Ack] = Unstoppable(loop=asyncio.get_running_loop())
        step = change.step
        self.size = len(step.outputs or "") + len(step.context_patch or "") + len(step.error or "")
        if change.context is not None:
            self.size += len(change.context.context)
        if change.checkpoint is not None:
            self.size += len(change.checkpoint.snapshot)

    def tell(self) -> None:
        """The change is about to be sent."""
        try:
            if self.before_sending is not None:
                self.before_sending()
        except BaseException as error:  # noqa: BLE001 - the caller's, and none of the neighbours' business
            self.fail(error)

    def succeed(self, ack: Ack) -> None:
        self.change.lease.advance()
        if not self.outcome.done():
            self.outcome.set_result(ack)

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class GroupCommit:
    """Writes the step commits of one store.

    It has no task while there is nothing to write.
    """

    def __init__(self, transactions: Transactions) -> None:
        self.transactions: Final = transactions
        self._most_batches = transactions.database.batches_at_once
        self._closed = False
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._queue: deque[_Waiting] = deque()
        self._is_due = False
        self._under_way: set[UUID] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._alone: set[asyncio.Task[None]] = set()
        # The other half of the pool is for those who need not wait.
        self._places_alone = asyncio.Semaphore(max(1, self.transactions.settings.pool_max // 2))

    def send(self, change: RunChange, before_sending: Callable[[], None] | None = None) -> Unstoppable[Ack]:
        """Write `change` under its lease. Returns what to wait for: it is done once the change is durable.

        It raises `LeaseLost`, nothing having been written, if the lease is another's. A step that is recorded as
        completed is not written again; the answer says so. Whoever is cancelled while waiting learns of that once the
        change is written. `before_sending` is called each time the change is about to go to the database; if it raises,
        the change does not go, and its error is the outcome.
        """
        if self._pid != os.getpid():
            self._start_anew()  # in a forked child: what is under way is the parent's
        self.transactions.database.enter()
        self.transactions.database.refuse_inside_a_unit()
        if self._closed:
            raise StoreUnavailable("the store is closed; open another")
        waiting = _Waiting(change, before_sending)
        self._queue.append(waiting)
        self._make_due()
        return waiting.outcome

    async def close(self) -> None:
        """Take no more, and wait until all that was taken is written."""
        self._closed = True
        if self._pid != os.getpid():
            self._start_anew()
        while self._queue or self._batches or self._alone:
            if under_way := {*self._batches, *self._alone}:
                await asyncio.wait(under_way)
            else:
                await asyncio.sleep(0)  # the batch is about to be sent

    # --- batches -------------------------------------------------------------------------------------------------

    def _make_due(self, turns: int = 1) -> None:
        """Send once everybody who is awake at this moment has had so many turns of the loop to join in."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._send_batches, turns - 1)

    def _send_batches(self, turns_left: int) -> None:
        if turns_left:
            asyncio.get_running_loop().call_soon(self._send_batches, turns_left - 1)
            return
        self._is_due = False
        while self._queue and len(self._batches) < self._most_batches and (batch := self._next_batch()):
            task = asyncio.create_task(self._write(batch), name="orchestrator_state group commit")
            self._batches.add(task)
            task.add_done_callback(partial(self._batch_ended, batch))

    def _batch_ended(self, batch: list[_Waiting], task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        if task.cancelled() or task.exception() is not None:  # perhaps before it began
            self._settle(batch)
        if self._queue:
            self._make_due(_TURNS_OF_A_STEP)

    def _next_batch(self) -> list[_Waiting]:
        """Those who have waited longest. Of one run only one change is under way: its commits are in order."""
        batch: list[_Waiting] = []
        held_back: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < MOST_IN_A_BATCH:
            waiting = self._queue[0]
            if batch and size + waiting.size > MOST_CHARACTERS_IN_A_BATCH:
                break
            self._queue.popleft()
            if waiting.run_id in self._under_way:
                held_back.append(waiting)
                continue
            batch.append(waiting)
            self._under_way.add(waiting.run_id)
            size += waiting.size
        self._queue.extendleft(reversed(held_back))
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        """Bring every change of the batch to its outcome, or hand it over to a task of its own."""
        passed_over = await self._write_together(batch)
        for waiting in batch:
            if waiting not in passed_over:
                self._under_way.discard(waiting.run_id)
        for waiting in passed_over:
            task = asyncio.create_task(self._write_alone(waiting), name="orchestrator_state commit")
            self._alone.add(task)
            task.add_done_callback(partial(self._alone_ended, waiting))

    async def _write_together(self, batch: list[_Waiting]) -> set[_Waiting]:
        """Write a batch, or as much of it as can be written. Returns what was passed over."""
        outcome_unknown, hook = False, self.transactions.hook

        async def attempt() -> set[_Waiting]:
            nonlocal outcome_unknown
            wanted, changes = self._about_to_be_sent(batch)
            began_at = time.monotonic()
            try:
                acks = await self._commit(changes) if changes else []
                passed_over = self._acknowledged(wanted, acks)
                if hook is not None:
                    self._tell([each for each in wanted if each not in passed_over], began_at)
                return passed_over
            except StoreUnavailable as error:
                if error.locked and len(batch) > 1 and not outcome_unknown:
                    return {waiting for waiting in batch if not waiting.outcome.done()}
                outcome_unknown = outcome_unknown or error.outcome_unknown
                raise

        try:
            return await self.transactions.repeated(attempt)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the callers'
            if len(batch) == 1 and type(error) in _MAY_BE_A_COUNTS:
                batch[0].is_refused = True
                return {*batch} if not batch[0].outcome.done() else set()
            if len(batch) == 1 or isinstance(error, StoreUnavailable | ConfigurationError):
                _fail_all(batch, error)
                return set()
        half = len(batch) // 2
        return await self._write_together(batch[:half]) | await self._write_together(batch[half:])

    def _tell(self, written: list[_Waiting], began_at: float) -> None:
        hooks.tell_of_store(
            self.transactions.hook,
            hooks.BatchCommitted,
            commits=len(written),
            size=sum(_bytes_of(waiting.change) for waiting in written),
            queued=len(self._queue),
            duration=time.monotonic() - began_at,
        )

    def _about_to_be_sent(self, batch: list[_Waiting]) -> tuple[list[_Waiting], list[RunChange]]:
        """Those that have no outcome yet, once they have been told of it, and their changes."""
        wanted: list[_Waiting] = []
        changes: list[RunChange] = []
        for waiting in batch:
            if waiting.before_sending is not None and not waiting.outcome.done():
                waiting.tell()
            if not waiting.outcome.done():
                wanted.append(waiting)
                changes.append(waiting.change)
        return wanted, changes

    def _acknowledged(self, sent: list[_Waiting], acks: list[Ack | None]) -> set[_Waiting]:
        """Tell each of its outcome. Returns what was passed over."""
        passed_over: set[_Waiting] = set()
        for waiting, ack in zip(sent, acks, strict=True):
            if ack is None:
                passed_over.add(waiting)
            else:
                waiting.succeed(ack)
        return passed_over

    def _commit(self, changes: list[RunChange]) -> Awaitable[list[Ack | None]]:
        if self.transactions.database.is_direct:
            return commit_at_once(self.transactions.database, changes)
        return self._commit_in_a_session(changes)

    async def _commit_in_a_session(self, changes: list[RunChange]) -> list[Ack | None]:
        async with self.transactions.begin(idles=Idling.AS_IT_SAYS) as uow:
            return await uow.commits.commit_unblocked(changes, idle_limit=self.transactions.settings.idle_limit)

    # --- one by one ----------------------------------------------------------------------------------------------

    async def _write_alone(self, waiting: _Waiting) -> None:
        """Wait for whatever stands in the way, without anybody else waiting too."""
        try:
            async with self._places_alone:
                began_at = time.monotonic()
                waiting.succeed(await self.transactions.write(partial(_commit_alone, waiting=waiting)))
            if self.transactions.hook is not None:
                self._tell([waiting], began_at)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            waiting.fail(error)

    def _alone_ended(self, waiting: _Waiting, task: asyncio.Task[None]) -> None:
        self._alone.discard(task)
        self._settle([waiting])

    def _settle(self, batch: Iterable[_Waiting]) -> None:
        """Who has no outcome by now was cut off by a shutdown, and must not go on from what memory holds."""
        for waiting in batch:
            waiting.fail(StoreUnavailable("the commit was cut off", outcome_unknown=True))
            self._under_way.discard(waiting.run_id)
        if self._queue:
            self._make_due()


async def _commit_alone(uow: StoreUnit, waiting: _Waiting) -> Ack:
    commits = uow.commits
    return await (commits.commit_counting_anew if waiting.is_refused else commits.commit)(waiting.change)


def _bytes_of(change: RunChange) -> int:
    """Of its payloads as they are stored."""
    step = change.step
    context = None if change.context is None else change.context.context
    snapshot = None if change.checkpoint is None else change.checkpoint.snapshot
    texts = filter(None, (step.outputs, step.context_patch, step.error, context, snapshot))
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def _fail_all(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch[1:]:  # each has its own, with its own traceback
        own = copy.copy(error)
        own.__dict__.update(error.__dict__)
        waiting.fail(own)
    batch[0].fail(error)
