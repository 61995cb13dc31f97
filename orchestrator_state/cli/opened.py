"""Open the store that a command's options name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator_state import StateStore
from orchestrator_state.cli.options import refuse_missing_file

_Result = TypeVar("_Result")


def with_store(
    url: str | None,
    db_schema: str | None,
    namespace: str | None,
    work: Callable[[StateStore], Awaitable[_Result]],
) -> _Result:
    """Return what `work` does with the store. Raises `ConfigurationError` for a file that is not there."""
    refuse_missing_file(url)

    async def run() -> _Result:
        opening = StateStore.open(url, db_schema=db_schema, namespace=namespace, migrate=False, pool_min=0)
        async with opening as store:
            return await work(store)

    return asyncio.run(run())
