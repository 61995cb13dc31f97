"""The mechanics of `run.transact`: a function's rows and the step in one commit, exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

from orchestrator_state.concurrency import awaitable, uninterrupted
from orchestrator_state.database import FunctionFailed, Idling, call_inside, elapsed, idle_limit, statement_failed
from orchestrator_state.errors import LeaseLost, StoreUnavailable
from orchestrator_state.payloads import ValueType
from orchestrator_state.records import TRANSACT, UNOPENED_HERE, Ack, OpenStep
from orchestrator_state.runs.journal.entries import Entry
from orchestrator_state.runs.spending.recording import CALL
from orchestrator_state.runs.steps import Steps
from orchestrator_state.runs.waiting.exits import IN_STEP
from orchestrator_state.transactions import StoreUnit

THE_FUNCTION: Final = "the function of run.transact"


class _AlreadyRecorded(Exception):
    """An earlier try has committed; this one is rolled back."""

    def __init__(self, step: OpenStep) -> None:
        super().__init__()
        self.step = step


async def transact(
    steps: Steps, step_id: str, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], returns: Any
) -> Any:
    """The work of `run.transact`."""
    journal = steps.journal
    if returns is not None:
        ValueType.of(returns).require_storable()
    await steps.before_spending()
    work = _Transact(steps, journal.new_step(step_id, TRANSACT), fn, args, returns)
    try:
        try:
            return await work.outputs()
        except FunctionFailed as failed:
            own = failed.error
        except (LeaseLost, StoreUnavailable, *UNOPENED_HERE) as fault:
            steps.switch.stop(fault)
        except Exception as refused:  # noqa: BLE001 - what the function returned, or wrote
            own = refused
        await journal.fail_step(work.begun, own, calls=1)
        raise own
    finally:
        journal.spending.end(step_id)


class _Transact:
    """One call of `run.transact`, in as many tries as it takes."""

    def __init__(
        self, steps: Steps, begun: OpenStep, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...], returns: Any
    ) -> None:
        self.begun = begun
        self._steps = steps
        self._journal = steps.journal
        self._transactions = steps.transactions
        self._fn = fn
        self._args = args
        self._returns = returns
        self._tries = 0
        self._entries: list[Entry] = []
        """Of the tries that were written, perhaps to no effect."""
        self._is_written = True
        """Whether the last call of the function came to that."""

    async def outputs(self) -> Any:
        """What the function returned, or what is on record of a try that did commit."""
        journal = self._journal
        async with self._transactions.places.taken(), journal.in_order:
            try:
                outputs, entry, ack = await self._transactions.write(
                    self._try, for_caller=True, idles=Idling.AS_IT_SAYS
                )
            except _AlreadyRecorded as already:
                journal.adopt(already.step, self._entries, is_last=self._is_written)
                return await self._steps.recorded(self._returns, already.step)
            except (LeaseLost, StoreUnavailable):
                raise
            except (Exception, asyncio.CancelledError) as error:
                # Cancelled, perhaps in the middle of COMMIT; or refused, perhaps for what the try before it wrote.
                is_cancelled = isinstance(error, asyncio.CancelledError)
                found = await uninterrupted(self._find_out()) if is_cancelled or self._tries > 1 else None
                if is_cancelled or found is None:
                    raise
                return await self._steps.recorded(self._returns, found)
            journal.accept(entry, ack)
            journal.lease.advance()
            return outputs

    async def _try(self, uow: StoreUnit) -> tuple[Any, Entry, Ack]:
        """After an unknown outcome it finds out whether the try before took effect.

        Looked up twice: before the function, to spare it, and after the guarded update, whose row lock has waited for a
        commit of the try before that was still on its way.
        """
        self._tries += 1
        steps, journal, begun = self._steps, self._journal, self.begun
        limit = idle_limit(self._transactions.settings.lease_term)
        await self._refuse_to_repeat(uow, limit)
        journal.history.begin_trial()
        self._is_written = False
        steps.before_call(begun.step_id)
        current, this = steps.current, (steps.room, begun.step_id)
        within, calling_from = IN_STEP.set(this), CALL.get()
        CALL.set(journal.spending.begin(begun.step_id))
        current.running[this] = journal.lease, elapsed()
        if not current.is_watching:
            current.watch()
        try:
            call = partial(awaitable, THE_FUNCTION, self._fn, uow.session, *self._args)
            calling = partial(call_inside, uow.session, call, limit, is_repeated=self._tries > 1)
            telling = journal.telling
            outputs = await (calling() if telling is None else telling.step_started(begun.step_id, 1, calling))
        finally:
            current.running.pop(this, None)
            IN_STEP.reset(within)
            CALL.set(calling_from)
        encoded, outputs, cancelled = await steps.encode(begun.step_id, self._returns, outputs)
        entry = await journal.entry(journal.completed(begun, encoded))
        if (cancelled := cancelled or entry.cancelled) is not None:
            raise cancelled
        self._entries.append(entry)
        self._is_written = True
        try:
            ack = await journal.write(uow, entry)
        except StoreUnavailable as error:
            if error.failed_before:  # past SQLAlchemy, which would have remembered
                raise FunctionFailed(statement_failed()) from None
            raise
        if ack.already_recorded:
            await self._refuse_to_repeat(uow)
        return outputs, entry, ack

    async def _refuse_to_repeat(self, uow: StoreUnit, limit: timedelta | None = None) -> None:
        step = await uow.history.find_completed_step(self._steps.id, self.begun.step_id, idle_limit=limit)
        if step is not None:
            raise _AlreadyRecorded(step)

    async def _find_out(self) -> OpenStep | None:
        """After a transaction that did not come to its end here: did it commit all the same? Then, its step."""

        async def look(uow: StoreUnit) -> OpenStep | None:
            await uow.runs.wait_for_commits(self._journal.lease)
            return await uow.history.find_completed_step(self._steps.id, self.begun.step_id)

        try:
            step = await self._transactions.write(look)
        except (LeaseLost, StoreUnavailable) as error:
            self._steps.switch.trip(error)
            return None
        if step is not None:
            self._journal.adopt(step, self._entries, is_last=self._is_written)
        return step
