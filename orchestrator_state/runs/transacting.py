"""The mechanics of `run.transact`: a function's rows and the step in one commit, exactly once.

The function is called inside the run's transaction, and that has to be the same one afterwards. A function that
commits, or rolls back, parts its rows from the step. SQLAlchemy's own calls show that here. Of what is sent as text, or
through the driver, only the database knows: Postgres by a mark that goes with the transaction (the step's commit looks
for it, see `open_transactions`), SQLite by a savepoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from orchestrator_state import hooks
from orchestrator_state.concurrency import awaitable, call_apart, uninterrupted
from orchestrator_state.database import (
    Idling,
    begin_to_watch,
    failures_on,
    fault_in,
    fault_under,
    idle_limit,
    kept_open,
    put_in_force,
    refuse_after_failure,
    require_same,
    settings_in_force,
    statement_failed,
    transaction_ended,
)
from orchestrator_state.errors import LeaseLost, StoreUnavailable
from orchestrator_state.payloads import ValueType
from orchestrator_state.records import UNOPENED_HERE, Ack, OpenStep
from orchestrator_state.runs.exits import IN_STEP
from orchestrator_state.runs.journal import Entry
from orchestrator_state.runs.steps import Steps
from orchestrator_state.transactions import StoreUnit

_T = TypeVar("_T")


TRANSACT: Final = "the function of run.transact"


class FunctionFailed(Exception):
    """What the function of a `transact` raised, of whatever class: not to be taken for what happened to the run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _AlreadyRecorded(Exception):
    """The try before did commit; its transaction's repetition is rolled back."""

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
    await steps.before_work()
    work = _Transact(steps, journal.new_step(step_id), fn, args, returns)
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

    async def outputs(self) -> Any:
        """What the function returned, or what is on record of a try that did commit."""
        journal = self._journal
        async with self._transactions.places.taken(), journal.in_order:
            try:
                outputs, entry, ack = await self._transactions.write(self._try, idles=Idling.AS_IT_SAYS)
            except _AlreadyRecorded as already:
                journal.adopt(already.step)
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
        hooks.tell(journal.hook, hooks.StepStarted, workflow_state_id=steps.id, step_id=begun.step_id, attempt=1)
        within = IN_STEP.set((steps.room, begun.step_id))
        try:
            call = partial(awaitable, TRANSACT, self._fn, uow.session, *self._args)
            outputs = await call_inside(uow.session, call, limit, is_repeated=self._tries > 1)
        finally:
            IN_STEP.reset(within)
        encoded, outputs, cancelled = await steps.encode(begun.step_id, self._returns, outputs)
        entry = await journal.entry(journal.completed(begun, encoded))
        if (cancelled := cancelled or entry.cancelled) is not None:
            raise cancelled
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
            self._journal.adopt(step)
        return step


# --- inside the transaction --------------------------------------------------------------------------------------


async def call_inside(
    session: AsyncSession, call: Callable[[], Awaitable[_T]], idle_limit: timedelta, *, is_repeated: bool = False
) -> _T:
    """Return what `call` returns, with all that it wrote in the open transaction of `session`, and that one whole.

    If it `is_repeated`, what it has set is no longer in force then: it may be what the step was refused for.

    Raises a fault of the database's, whatever the function made of it; or else `FunctionFailed`, with what the function
    raised, or a `ConfigurationError` if it let a failed statement pass, or ended the transaction.
    """
    connection = cast("Connection", (await session.connection()).sync_connection)
    settings = await settings_in_force(session) if is_repeated else None
    failures = failures_on(connection)
    try:
        with _only_the_run_commits(session):
            await begin_to_watch(session)
            async with kept_open(session, idle_limit):
                outputs = (await call_apart(call)).unless_cancelled()
            await session.flush()
        refuse_after_failure(connection, failures)  # for the function may have swallowed it
        await _end_savepoints(session)
        await require_same(session, failures.transaction)
        if settings is not None:
            await put_in_force(session, settings)
    except Exception as error:  # noqa: BLE001 - of any class
        # In whatever it has wrapped that; and what else it raised may have come of it.
        fault = fault_in(error) or fault_under(connection, failures)
        if fault is not None:
            raise fault from None
        raise FunctionFailed(error) from None
    return outputs


@contextmanager
def _only_the_run_commits(session: AsyncSession) -> Iterator[None]:
    """The end of a savepoint is no commit."""

    def refuse(committing: Session) -> None:
        if not committing.in_nested_transaction():
            raise transaction_ended()

    event.listen(session.sync_session, "before_commit", refuse)
    try:
        yield
    finally:
        event.remove(session.sync_session, "before_commit", refuse)


async def _end_savepoints(session: AsyncSession) -> None:
    """Those that the function left open, as a commit would. One of them may hide a failed statement."""
    while (left_open := session.get_nested_transaction()) is not None:
        await left_open.commit()
