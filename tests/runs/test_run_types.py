"""What a type checker makes of the calls of a run: this module is a test also to mypy."""

from datetime import datetime
from typing import Any, assert_type

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore


def length(text: str) -> int:
    return len(text)


async def shout(text: str) -> str:
    return text.upper()


async def handler(run: Run) -> list[object]:
    return [
        assert_type(await run.step("sync", length, "abc"), int),
        assert_type(await run.step("async", shout, "abc"), str),
        assert_type(await run.step("method", "abc".upper), str),
        assert_type(await run.step("retried", shout, "abc", retry=2, timeout=5), str),
    ]


class Totals(BaseModel):
    count: int = 0


class Page(BaseModel):
    words: int


async def fetch() -> dict[str, int]:
    return {"words": 3}


async def insert(session: AsyncSession) -> dict[str, int]:
    return {"words": 3}


async def typed(run: Run[Totals]) -> Page:
    assert_type(run.state, Totals)
    assert_type(await run.step("model", fetch, returns=Page), Page)
    assert_type(await run.step("list", lambda: [{"words": 1}], returns=list[Page]), list[Page])
    assert_type(await run.step("time", lambda: "2026-11-23T12:00:00Z", returns=datetime), datetime)
    assert_type(await run.step("union", fetch, returns=Page | None), Any)  # no type checker's `type[...]` is a union
    assert_type(await run.transact("row", insert, returns=Page), Page)
    assert_type(await run.transact("plain", insert), dict[str, int])
    assert_type(await run.child("child", child, state=Totals, context=Totals(count=2)), int)
    assert_type(await run.child("page", page, returns=Page), Page)
    return Page(words=run.state.count)


async def child(run: Run[Totals]) -> int:
    return run.state.count


async def page(run: Run) -> dict[str, int]:
    assert_type(run.context, dict[str, Any])
    return {"words": 5}


async def test_returns_and_state_say_what_comes_back(store: StateStore) -> None:
    result = await store.run("typed", typed, state=Totals, context=Totals(count=7), returns=Page)
    assert_type(result, Page)
    assert result == Page(words=7)
    assert_type(await store.run("page", page), dict[str, int])


async def test_a_step_has_the_type_of_its_functions_result_sync_or_async(store: StateStore) -> None:
    assert await store.run("typed", handler) == [3, "ABC", "ABC", "ABC"]
