"""A policy done again and again: by one worker of a fleet at a time, whichever comes first."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

from orchestrator_state import hooks
from orchestrator_state.concurrency import uninterrupted
from orchestrator_state.domain import utc_now
from orchestrator_state.errors import ConfigurationError, OrchestratorStateError
from orchestrator_state.maintenance.applying import apply_retention
from orchestrator_state.maintenance.policy import Retention
from orchestrator_state.repositories import RETENTION_TURN
from orchestrator_state.transactions import Transactions

_SPREAD: Final = 0.1  # of the interval: so that not all workers look at once
_AFTER_A_FAULT: Final = 60.0  # seconds, or the interval if that is shorter


class RetentionDuty:
    """The part of a worker that applies its policy. A row of the namespace says when a pass last began, or went on."""

    def __init__(self, transactions: Transactions, policy: Retention) -> None:
        if not isinstance(policy, Retention):
            raise ConfigurationError(f"retention must be a Retention, not a {type(policy).__name__}")
        self._transactions = transactions
        self._policy = policy
        self._every = policy.interval.total_seconds()
        self._renewed_at = 0.0
        self.succeeded_at: datetime | None = None
        """When a pass last succeeded, here or elsewhere, as far as this worker knows."""
        self.last_error: str | None = None
        """The type of the error that the last pass here ended in; None if that succeeded."""

    async def run(self) -> None:
        """Do what is due, until cancelled. Whatever goes wrong is logged, and tried again."""
        while True:
            try:
                pause = await self._look()
            except Exception as error:  # noqa: BLE001 - it is of no consequence to the runs
                self.last_error = type(error).__qualname__
                pause = min(_AFTER_A_FAULT, self._every)
                hooks.logger.warning("retention failed (%s); next look in %.1f s", _in_words(error), pause)
            await asyncio.sleep(pause * random.uniform(1, 1 + _SPREAD))  # noqa: S311 - spreads load, guards nothing

    async def _look(self) -> float:
        """Do a pass if it is due, and nobody else does it. Returns in how many seconds to look again."""
        due_in = await self._due_in()
        if due_in > 0:
            return due_in
        every = self._policy.interval
        if await self._transactions.write_once("turn", lambda uow: uow.policies.take_turn(every)):
            self._renewed_at = time.monotonic()
            await apply_retention(
                self._transactions, self._policy, dry_run=False, progress=None, between=self._keep_turn
            )
            self.succeeded_at, self.last_error = utc_now(), None
        return max(await self._due_in(), min(1.0, self._every))

    async def _due_in(self) -> float:
        since = await self._transactions.read(lambda uow: uow.policies.seconds_since(RETENTION_TURN))
        succeeded_at = await self._transactions.read(lambda uow: uow.policies.find_success())
        if succeeded_at is not None:
            self.succeeded_at = succeeded_at
        if since is None or since < -self._every:
            return 0
        return self._every - since

    async def _keep_turn(self) -> None:
        """A pass that takes longer than the interval stays the only one."""
        if time.monotonic() - self._renewed_at > self._every / 3:
            await self._transactions.write(lambda uow: uow.policies.note(RETENTION_TURN))
            self._renewed_at = time.monotonic()


@contextlib.asynccontextmanager
async def on_duty(duty: RetentionDuty | None) -> AsyncIterator[None]:
    """Let it run in the background, for the time of the block."""
    if duty is None:
        yield
        return
    task = asyncio.create_task(duty.run(), name="orchestrator_state retention")
    try:
        yield
    finally:
        task.cancel()
        await uninterrupted(asyncio.wait({task}))


def _in_words(error: Exception) -> str:
    """Without the message of somebody else's error, which may hold anything."""
    return str(error) if isinstance(error, OrchestratorStateError) else type(error).__qualname__
