"""A proxy between the store and Postgres that fails where the network would, to the byte: around a COMMIT."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

COMMIT = b"COMMIT;\0"  # as the driver sends it: the end of a simple query
SOCKET = ".s.PGSQL.5432"


class Fault(Enum):
    """What happens to the next COMMIT."""

    CUT_BEFORE = auto()
    """The connection is gone before the server hears of it."""
    CUT_AFTER = auto()
    """The server commits, and the connection is gone before the client hears of it."""
    SILENCE_AFTER = auto()
    """The server commits, and its answer never arrives."""
    HELD = auto()
    """The server hears of it when `deliver` is called, whatever the client does meanwhile."""


class CuttingProxy:
    """Listens in `directory` as a Postgres on a Unix socket; passes everything on to `url` until told otherwise."""

    def __init__(self, url: str, directory: Path) -> None:
        self._upstream = urlsplit(url)
        self._directory = directory
        self._fault: Fault | None = None
        self._marker = COMMIT
        self._then: Callable[[], Awaitable[None]] | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._due, self._delivered = asyncio.Event(), asyncio.Event()
        self.faults = 0
        self.refusing = False
        self.farewell = 0.0
        """Seconds between the server's last word on a connection and its end."""

    def cut_off(self) -> None:
        """End all connections, as a server that dies does. New ones are taken, unless `refusing`."""
        for writer in self._open:
            writer.transport.abort()

    @property
    def url(self) -> str:
        """Where the database of the given URL is reached through the proxy."""
        account, _, _ = self._upstream.netloc.rpartition("@")
        return f"postgresql://{account}@{self._upstream.path}?host={quote(str(self._directory))}"

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        socket_directory = parse_qs(self._upstream.query).get("host")
        if socket_directory:
            return await asyncio.open_unix_connection(f"{socket_directory[0]}/{SOCKET}")
        return await asyncio.open_connection(self._upstream.hostname, self._upstream.port or 5432)

    def fail_next_commit(
        self, fault: Fault, then: Callable[[], Awaitable[None]] | None = None, *, marker: bytes = COMMIT
    ) -> None:
        """Do `fault` to the next COMMIT; run `then` before anybody can find out.

        `marker` is what the message of a statement that commits by itself has in it.
        """
        self._fault, self._then, self._marker = fault, then, marker

    async def deliver(self) -> None:
        """Let the server have what was held back; returns once it has answered."""
        self._due.set()
        await self._delivered.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["CuttingProxy"]:
        server = await asyncio.start_unix_server(self._serve, str(self._directory / SOCKET))
        try:
            yield self
        finally:
            server.close()
            self._due.set()
            self.cut_off()
            await asyncio.gather(*self._serving, return_exceptions=True)

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
        try:
            with suppress(ConnectionError):
                await self._pass_on_until_fault(reader, server_reader, server_writer, answers)
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            for each in pair:
                each.transport.abort()
            self._open -= pair

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
            await asyncio.sleep(self.farewell)
        writer.close()

    async def _pass_on_until_fault(
        self,
        reader: asyncio.StreamReader,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        while data := await reader.read(65536):
            fault = self._fault if self._marker in data else None
            if fault is None:
                server_writer.write(data)
                continue
            self._fault = None
            self.faults += 1
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            if fault is Fault.HELD:
                await self._deliver_late(data, server_reader, server_writer)
            elif fault is not Fault.CUT_BEFORE:
                server_writer.write(data)
                assert await server_reader.read(65536), "the server is to answer the COMMIT"
            else:
                server_writer.transport.abort()
            if self._then is not None:
                await self._then()
            if fault is not Fault.SILENCE_AFTER:
                return
            await reader.read()

    async def _deliver_late(
        self, data: bytes, server_reader: asyncio.StreamReader, server_writer: asyncio.StreamWriter
    ) -> None:
        await self._due.wait()
        server_writer.write(data)
        assert await server_reader.read(65536), "the server is to answer what was held back"
        self._delivered.set()
