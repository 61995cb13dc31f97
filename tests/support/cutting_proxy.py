"""A proxy between the store and Postgres that fails where the network would, to the byte: around a COMMIT."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from pathlib import Path

from tests.support.postgres_proxy import Link, PostgresProxy

COMMIT = b"COMMIT;\0"  # as the driver sends it: the end of a simple query


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


class CuttingProxy(PostgresProxy):
    """Passes everything on until told otherwise."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(url, directory)
        self._fault: Fault | None = None
        self._marker = COMMIT
        self._then: Callable[[], Awaitable[None]] | None = None
        self._due, self._delivered = asyncio.Event(), asyncio.Event()
        self.given_up = asyncio.Event()
        """Set once the client has closed the connection of a COMMIT that is held back."""
        self.faults = 0

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

    def let_go(self) -> None:
        self._due.set()

    async def pass_on(self, link: Link) -> None:
        while data := await link.message():
            fault = self._fault if self._marker in data else None
            if fault is None:
                link.to_server.write(data)
                continue
            self._fault = None
            self.faults += 1
            await link.silence()
            if fault is Fault.HELD:
                await self._deliver_late(data, link)
            elif fault is not Fault.CUT_BEFORE:
                link.to_server.write(data)
                assert await link.answer(), "the server is to answer the COMMIT"
            else:
                link.to_server.transport.abort()
            if self._then is not None:
                await self._then()
            if fault is not Fault.SILENCE_AFTER:
                return
            await link.client.read()

    async def _deliver_late(self, data: bytes, link: Link) -> None:
        await link.client.read()
        self.given_up.set()
        await self._due.wait()
        link.to_server.write(data)
        assert await link.answer(), "the server is to answer what was held back"
        self._delivered.set()
