"""A proxy on a Unix socket before Postgres, which gives a subclass each message of a client before the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from orchestrator_state import StateStore
from orchestrator_state.retry import while_transient

_SOCKET = ".s.PGSQL.5432"
_MOST = 65536  # bytes at a time; what clients send here in one go arrives in one piece


@dataclass(frozen=True)
class Link:
    """A client's connection and the server's, joined."""

    client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    _answers: asyncio.Task[None]

    async def message(self) -> bytes:
        """What the client sends next; nothing once it is gone."""
        return await self.client.read(_MOST)

    async def answer(self) -> bytes:
        """What the server sends next, after `silence`."""
        return await self.server.read(_MOST)

    async def silence(self) -> None:
        """From now on no answer is passed on."""
        self._answers.cancel()
        await asyncio.gather(self._answers, return_exceptions=True)


class PostgresProxy:
    """Listens in `directory` as a Postgres on a Unix socket, in place of the one at `url`."""

    def __init__(self, url: str, directory: Path) -> None:
        self._upstream = urlsplit(url)
        self._directory = directory
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.refusing = False
        self.farewell = 0.0
        """Seconds between the server's last word on a connection and its end."""

    @property
    def url(self) -> str:
        """Where the database of the given URL is reached through the proxy."""
        account, _, _ = self._upstream.netloc.rpartition("@")
        return f"postgresql://{account}@{self._upstream.path}?host={quote(str(self._directory))}"

    def cut_off(self) -> None:
        """End all connections, as a server that dies does. New ones are taken, unless `refusing`."""
        for writer in self._open:
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        server = await asyncio.start_unix_server(self._serve, str(self._directory / _SOCKET))
        try:
            yield self
        finally:
            server.close()
            self.let_go()
            self.cut_off()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def let_go(self) -> None:
        """At the end: whatever is held back is to be held no longer."""

    async def pass_on(self, link: Link) -> None:
        """Give the server what the client sends. The connection ends when this returns."""
        while data := await link.message():
            link.to_server.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        server_reader, server_writer = await self._connect()
        pair = {writer, server_writer}
        self._open |= pair
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        answers = asyncio.create_task(self._answer(server_reader, writer))
        link = Link(reader, writer, server_reader, server_writer, answers)
        try:
            with suppress(ConnectionError):
                await self.pass_on(link)
        finally:
            await link.silence()
            for each in pair:
                each.transport.abort()
            self._open -= pair

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sockets = parse_qs(self._upstream.query).get("host")
        if sockets:
            return await asyncio.open_unix_connection(f"{sockets[0]}/{_SOCKET}")
        return await asyncio.open_connection(self._upstream.hostname, self._upstream.port or 5432)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_MOST):
                writer.write(data)
            await asyncio.sleep(self.farewell)
        writer.close()


@asynccontextmanager
async def opened_impatient(url: str, **options: Any) -> AsyncIterator[StateStore]:
    """A store that waits a second for each answer. Its opening is repeated: a busy machine may take as long for one."""
    opening = StateStore.open(url, command_timeout=timedelta(seconds=1), **options)
    async with await while_transient(lambda: opening, timedelta(seconds=60)) as store:
        yield store
