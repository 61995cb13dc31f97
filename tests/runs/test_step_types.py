"""What a type checker refuses in the calls of a run: this module is a test also to mypy.

Each `type: ignore` in here is an assertion: mypy reports those that are not needed, so it does refuse that line.
"""

from functools import partial
from typing import Any, assert_type

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore


class Totals(BaseModel):
    count: int = 0


class Other(BaseModel):
    name: str = ""


class Account:
    async def charge(self, amount: int, currency: str = "EUR") -> float:
        return float(amount)

    def balance(self, of: str) -> int:
        return len(of)


async def fetch(url: str, *headers: str, depth: int = 1) -> list[str]:
    return [url, *headers] * depth


async def insert(session: AsyncSession, amount: int) -> str:
    return f"row {amount}"


async def total(run: Run[Totals]) -> int:
    return run.state.count


async def accepted(run: Run, account: Account, unknown: Any) -> None:
    assert_type(await run.step("all", account.charge, 7, "USD"), float)
    assert_type(await run.step("default", account.charge, 7), float)
    assert_type(await run.step("sync", account.balance, "mine", timeout=1.5), int)
    assert_type(await run.step("more", fetch, "https://…", "accept", "cookie", retry=3), list[str])
    assert_type(await run.step("partial", partial(fetch, depth=2), "https://…"), list[str])
    assert_type(await run.step("lambda", lambda amount: amount + 1, 7), int)
    assert_type(await run.step("built in", sum, [1, 2]), int)
    assert_type(await run.step("any", unknown, 7, "what", on_unknown="raise"), Any)
    assert_type(await run.step("as", account.balance, "mine", returns=int), int)
    assert_type(await run.transact("row", insert, 7), str)
    assert_type(await run.child("total", total, context=Totals(count=2), state=Totals), int)


async def refused(run: Run, account: Account) -> None:
    await run.step("kind", account.charge, "seven")  # type: ignore[arg-type]
    await run.step("missing", account.charge)  # type: ignore[call-arg, arg-type]
    await run.step("surplus", account.balance, "mine", 7)  # type: ignore[call-arg, arg-type]
    await run.step("with a type", account.balance, 7, returns=int)  # type: ignore[arg-type]
    await run.step("no option", fetch, "https://…", retries=3)  # type: ignore[call-overload]
    await run.step("an option's kind", fetch, "https://…", timeout="soon")  # type: ignore[call-overload]
    await run.step("called", fetch("https://…"))  # type: ignore[call-overload]
    await run.transact("no session", fetch, "https://…")  # type: ignore[type-var]
    await run.transact("kind", insert, "seven")  # type: ignore[arg-type]
    await run.child("another model", total, state=Other)  # type: ignore[arg-type]
    await run.child("another model", total, context=Other())  # type: ignore[arg-type]


async def test_what_the_checker_accepts_runs(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await accepted(run, Account(), lambda *_: None)

    await store.run("typed", handler, context={})


async def test_an_option_that_there_is_not_is_refused_when_it_runs_too(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(TypeError, match="retries"):
            await run.step("s", fetch, "https://…", retries=3)  # type: ignore[call-overload]

    await store.run("typed", handler)
