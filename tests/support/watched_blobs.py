"""A blob store of which a test hears: what is read from it and written to it, and when."""

from collections.abc import Awaitable, Callable
from typing import Any

from orchestrator_state import BlobStore

_Act = Callable[[], Awaitable[object]]


async def _nothing() -> None: ...


class WatchedBlobs(BlobStore):
    """Awaits `before_reading` and `after_writing`, in the task of whoever reads or writes; knows how much was read."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.before_reading: _Act = _nothing
        self.after_writing: _Act = _nothing
        self.lengths: list[int] = []

    async def put(self, name: str, content: bytes) -> None:
        await super().put(name, content)
        await self.after_writing()

    async def get(self, name: str, max_bytes: int | None = None) -> bytes | None:
        await self.before_reading()
        content = await super().get(name, max_bytes)
        self.lengths.append(len(content or b""))
        return content
