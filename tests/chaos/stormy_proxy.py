"""A proxy before Postgres that does to connections what networks do: at any message, at random."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from tests.support.postgres_proxy import Link, PostgresProxy

Fault = Literal["cut before", "cut after", "stalled", "delivered late"]
FAULTS: Final[tuple[Fault, ...]] = ("cut before", "cut after", "stalled", "delivered late")


class StormyProxy(PostgresProxy):
    """Passes everything on; while `probability` is not 0, each message of a client may meet a fault.

    cut before
        The connection is gone before the server hears of the message.
    cut after
        The server acts on the message, and the connection is gone before the client hears the answer.
    stalled
        The message arrives a while later, and so does its answer.
    delivered late
        The client's connection is gone, and the server acts on the message a while later.
    """

    def __init__(self, url: str, directory: Path, chance: random.Random, faults: tuple[Fault, ...] = FAULTS) -> None:
        super().__init__(url, directory)
        self._chance = chance
        self._faults = faults
        self.probability = 0.0
        self.made: Counter[Fault] = Counter()

    async def pass_on(self, link: Link) -> None:
        while data := await link.message():
            if self._chance.random() < self.probability:
                fault = self._chance.choice(self._faults)
                self.made[fault] += 1
                if fault != "stalled":
                    await self._cut(fault, data, link)
                    return
                await self._a_while()
            link.to_server.write(data)

    async def _cut(self, fault: Fault, data: bytes, link: Link) -> None:
        await link.silence()
        if fault == "cut before":
            return
        if fault == "delivered late":
            link.to_client.transport.abort()
            await self._a_while()
        link.to_server.write(data)
        await link.to_server.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await link.answer()

    async def _a_while(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.2, 2.0))
