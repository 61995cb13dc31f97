"""Open the store that a command's options name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from orchestrator_state import StateStore

_Result = TypeVar("_Result")


def with_store(options: Mapping[str, Any], work: Callable[[StateStore], Awaitable[_Result]]) -> _Result:
    """Return what `work` does with the store that `store_options` describe."""

    async def run() -> _Result:
        async with StateStore.open(**options) as store:
            return await work(store)

    return asyncio.run(run())
