"""Storms: faults of processes and of the database server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import asyncpg

from tests.chaos.storms import Storm, World
from tests.chaos.stormy_proxy import StormyProxy
from tests.support.postgres_server import PrivatePostgres


def kills(rounds: int) -> Storm:
    """SIGKILL a worker, and start another in its place."""

    async def storm(world: World) -> None:
        for _ in range(rounds):
            await world.pause(0.1, 1.0)
            worker = world.chance.choice(world.workers)
            worker.kill()
            await worker.start()
            world.report.rounds += 1

    return storm


def freezes(rounds: int, seconds: float) -> Storm:
    """SIGSTOP a worker until its leases are another's, then let it wake."""

    async def storm(world: World) -> None:
        for _ in range(rounds):
            await world.pause(0.1, 1.0)
            worker = world.chance.choice(world.workers)
            worker.send(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            worker.send(signal.SIGCONT)
            world.report.rounds += 1

    return storm


def server_crashes(server: PrivatePostgres, rounds: int, away: float = 2.0) -> Storm:
    """Stop the server in the middle of everything, as `pg_ctl stop -m immediate` does, and start it a while later.

    `away`: seconds until then, at most.
    """

    async def storm(world: World) -> None:
        await asyncio.to_thread(server.execute, "CHECKPOINT")  # a lazy server has the empty tables, at least
        for _ in range(rounds):
            await world.pause(0.3, 1.5)
            await asyncio.to_thread(server.stop, "immediate")
            await world.pause(0.0, away)
            await asyncio.to_thread(server.start)
            world.report.rounds += 1

    return storm


def ended_sessions(url: str, rounds: int) -> Storm:
    """End a few of the server's sessions, whatever they are at."""

    async def storm(world: World) -> None:
        connection = await asyncpg.connect(url)
        try:
            for _ in range(rounds):
                await world.pause(0.02, 0.3)
                await connection.execute(
                    """
                    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.3
                    """
                )
                world.report.rounds += 1
        finally:
            await connection.close()

    return storm


def bad_network(proxy: StormyProxy, seconds: float, probability: float = 0.02) -> Storm:
    """Let each message of a client meet a fault with that probability; for longer, if by chance none did."""

    async def storm(world: World) -> None:
        proxy.probability = probability
        await asyncio.sleep(seconds)
        while not proxy.made:  # noqa: ASYNC110 - once in a blue moon
            await asyncio.sleep(0.1)
        proxy.probability = 0.0
        world.report.rounds += proxy.made.total()
        world.report.figures.update({str(fault): number for fault, number in proxy.made.items()})

    return storm


def impatience(seconds: float, probability: float) -> Storm:
    """Let customers give up calls that are under way; for longer, if by chance none did."""

    async def storm(world: World) -> None:
        world.impatience = probability
        await asyncio.sleep(seconds)
        while not world.report.rounds:  # noqa: ASYNC110 - once in a blue moon
            await asyncio.sleep(0.1)
        world.impatience = 0.0

    return storm


def failover(primary: PrivatePostgres, standby: PrivatePostgres, *, away: float = 2.0, is_late: bool = False) -> Storm:
    """Kill the primary, and promote the standby at most `away` seconds later. A late one lacks the last commits."""

    async def storm(world: World) -> None:
        await world.pause(0.5, 1.5)
        if is_late:
            primary.stop_sending()
            await asyncio.sleep(0.5)
        await asyncio.to_thread(primary.kill)
        await world.pause(0.0, away)
        await asyncio.to_thread(standby.promote)
        world.report.rounds += 1

    return storm


def clock_steps(offset: Path, rounds: int, seconds: int) -> Storm:
    """Put the wall clock of whoever reads `offset` so far ahead, back, and right again."""

    async def storm(world: World) -> None:
        for _ in range(rounds):
            for step in (f"+{seconds}s", f"-{seconds}s", "+0s"):
                await world.pause(1.5, 2.5)
                await asyncio.to_thread(offset.write_text, f"{step}\n")
                world.report.rounds += 1

    return storm


def failing_disk(seconds: float) -> Storm:
    """Workers whose disk fails now and then; in the end they are put on a sound one."""

    async def storm(world: World) -> None:
        await asyncio.sleep(seconds)
        for worker in world.workers:
            worker.kill()
            worker.wrapper = []
            await worker.start()
            world.report.rounds += 1

    return storm
