"""A database that holds a payload in each column that can."""

from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator_state import Run, StateStore
from orchestrator_state.encryption import AesGcm, KeyRing
from orchestrator_state.payloads import Codec, Payloads
from orchestrator_state.records import PAYLOAD_COLUMNS
from tests.support.raw_sql import fetch
from tests.support.running import Failing

CANARY = "canary-7f3a"
COLUMNS = [(table, column) for table, columns in PAYLOAD_COLUMNS.items() for column in columns]


async def fill(store: StateStore) -> None:
    """A run that ended, one that failed, one that waits with a signal it has not seen, and one that asks."""

    async def ends(run: Run) -> Any:
        run.context["list"] = [CANARY]
        await run.step("one", lambda: {"note": CANARY})
        run.context["more"] = CANARY
        await run.step("two", lambda: CANARY)
        return [CANARY]

    async def fails(run: Run) -> None:
        await run.step("one", lambda: CANARY)
        await run.step("breaks", Failing(ValueError(CANARY)))

    await store.run("ends", ends, workflow_id="ended", context={"note": CANARY})
    with pytest.raises(ValueError, match=CANARY):
        await store.run("fails", fails, workflow_id="failed", context={"note": CANARY})
    waiting = await store.start("waits", workflow_id="waiting", context={"note": CANARY})
    await store.signal(waiting.id, "hello", {"note": CANARY})

    async def asks(run: Run) -> None:
        await run.ask("anything", {"note": CANARY})

    await store.start("asks", workflow_id="asking", context={"note": CANARY})
    await store.recover({"asks": asks})


def encrypted(*keys: str, strict: bool = False, readers: Sequence[Codec] = ()) -> Payloads:
    """Payloads that are encrypted under the last of the keys, and read under all."""
    ring = KeyRing({key: key.encode().ljust(32) for key in keys}, keys[-1])
    return Payloads([AesGcm(ring)], readers=readers, strict=strict)


def stored(url: str) -> dict[tuple[str, str], list[tuple[str, str | None]]]:
    """Every payload as (text, digest), by table and column."""
    return {
        (table, column): fetch(url, f"SELECT {column}, {column}_digest FROM {table} WHERE {column} IS NOT NULL")
        for table, column in COLUMNS
    }
