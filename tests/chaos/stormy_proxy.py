"""A proxy before Postgres that does to connections what networks do: at any message, at random."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qs, quote, urlsplit

from tests.cutting_proxy import SOCKET

Fault = Literal["cut before", "cut after", "stalled", "delivered late"]
FAULTS: Final[tuple[Fault, ...]] = ("cut before", "cut after", "stalled", "delivered late")


class StormyProxy:
    """Passes everything on to `url`; while `probability` is not 0, each message of a client may meet a fault.

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
        self._upstream = urlsplit(url)
        self._directory = directory
        self._chance = chance
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._faults = faults
        self.probability = 0.0
        self.made: Counter[Fault] = Counter()

    @property
    def url(self) -> str:
        """Where the database is reached through the proxy."""
        account, _, _ = self._upstream.netloc.rpartition("@")
        return f"postgresql://{account}@{self._upstream.path}?host={quote(str(self._directory))}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StormyProxy]:
        server = await asyncio.start_unix_server(self._serve, str(self._directory / SOCKET))
        try:
            yield self
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        socket = parse_qs(self._upstream.query)["host"][0]
        server_reader, server_writer = await asyncio.open_unix_connection(f"{socket}/{SOCKET}")
        pair = {writer, server_writer}
        self._open |= pair
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        answers = asyncio.create_task(_pass_on(server_reader, writer))
        try:
            with suppress(ConnectionError):
                await self._messages(reader, writer, server_reader, server_writer, answers)
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            for each in pair:
                each.transport.abort()
            self._open -= pair

    async def _messages(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        while data := await reader.read(65536):
            if self._chance.random() >= self.probability:
                server_writer.write(data)
                continue
            fault = self._chance.choice(self._faults)
            self.made[fault] += 1
            if fault == "stalled":
                await asyncio.sleep(self._chance.uniform(0.2, 2.0))
                server_writer.write(data)
                continue
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            if fault == "cut before":
                return
            if fault == "delivered late":
                writer.transport.abort()
                await asyncio.sleep(self._chance.uniform(0.2, 2.0))
            server_writer.write(data)
            await server_writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await server_reader.read(65536)
            return


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
