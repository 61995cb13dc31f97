"""Whose turn it is to write."""

import asyncio

import pytest

from orchestrator_state.concurrency.turns import Turns


async def test_a_waiter_that_is_cancelled_as_the_turn_is_passed_on_is_cancelled_and_blocks_nobody() -> None:
    turns = Turns()
    await turns.acquire()
    cancelled, next_one = (asyncio.create_task(turns.acquire()) for _ in range(2))
    await asyncio.sleep(0)

    cancelled.cancel()
    turns.release()

    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await next_one
    turns.release()
    assert not turns.is_taken
