"""What a type checker refuses in the calls of a run: this module is a test also to mypy and to pyright.

Each `type: ignore` in here is an assertion: both report those that are not needed, so they do refuse that line. See
`tests/project/test_types.py`.
"""

from functools import partial
from typing import Any, assert_type

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import ConfigurationError, InvalidPayload, Retry, Run, StateStore


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


def slow(url: str, *, timeout: str, retry: bool = False) -> str:
    return f"{url} {timeout} {retry}"


def named_as_parameters_of_ours(*, step_id: str, fn: int) -> list[Any]:
    return [step_id, fn]


async def anything(**given: int) -> int:
    return sum(given.values())


async def insert(session: AsyncSession, amount: int, *, note: str = "") -> str:
    return f"row {amount} {note}"


async def total(run: Run[Totals]) -> int:
    return run.state.count


async def accepted(run: Run, account: Account, unknown: Any) -> None:
    assert_type(await run.step("all", account.charge, 7, "USD"), float)
    assert_type(await run.step("default", account.charge, 7), float)
    assert_type(await run.step("sync", account.balance, "mine", timeout=1.5), int)
    assert_type(await run.step("more", fetch, "https://…", "accept", "cookie", retry=3), list[str])
    # Pyright takes what an async `partial` returns for Any.
    assert_type(await run.step("partial", partial(fetch, depth=2), "https://…"), list[str])  # pyright: ignore[reportAssertTypeFailure]
    assert_type(await run.step("lambda", lambda amount: amount + 1, 7), int)
    assert_type(await run.step("built in", sum, [1, 2]), int)
    assert_type(await run.step("any", unknown, 7, "what", on_unknown="raise"), Any)
    assert_type(await run.step("as", account.balance, "mine", returns=int), int)
    assert_type(await run.step("keyword", account.charge, 7, currency="USD"), float)
    assert_type(await run.step("keywords", account.charge, amount=7, currency="USD"), float)
    assert_type(await run.step("keyword only", fetch, "https://…", "accept", depth=2), list[str])
    assert_type(await run.step("sync keyword", account.balance, of="mine"), int)
    assert_type(await run.step("class", dict, one=1), dict[str, int])
    careful = run.with_options(retry=3, timeout=5)
    assert_type(await careful.step("with", account.charge, 7, currency="USD"), float)
    assert_type(await careful.step("with, sync", account.balance, of="mine"), int)
    assert_type(await careful.step("with, its own", slow, "https://…", timeout="late", retry=True), str)
    assert_type(await careful.step("with, ours", named_as_parameters_of_ours, step_id="s", fn=7), list[Any])
    assert_type(await run.with_options(returns=int).step("typed", account.balance, of="mine"), int)
    assert_type(await run.with_options(returns=int | None).step("union", account.balance, of="mine"), Any)
    assert_type(await run.transact("row", insert, 7), str)
    assert_type(await run.transact("row, keyword", insert, 7, note="n"), str)
    assert_type(await run.transact("row, type", insert, 7, returns=str), str)
    assert_type(await run.child("total", total, context=Totals(count=2), state=Totals), int)


async def refused(run: Run, account: Account) -> None:
    await run.step("kind", account.charge, "seven")  # type: ignore[arg-type]
    await run.step("missing", account.charge)  # type: ignore[call-arg, arg-type]
    await run.step("surplus", account.balance, "mine", 7)  # type: ignore[call-arg, arg-type]
    await run.step("with a type", account.balance, 7, returns=int)  # type: ignore[arg-type]
    await run.step("no option", fetch, "https://…", retries=3)  # type: ignore[call-arg]
    await run.step("an option's kind", fetch, "https://…", timeout="soon")  # type: ignore[call-arg]
    await run.step("keyword's kind", account.charge, 7, currency=978)  # type: ignore[arg-type]
    await run.step("no keyword", account.charge, 7, curency="USD")  # type: ignore[call-arg]
    await run.step("both", account.charge, 7, currency="USD", retry=3)  # type: ignore[call-arg]
    await run.step("an executor's kind", account.balance, "mine", executor=3)  # type: ignore[call-arg, arg-type]
    await run.with_options(retry=3).step("kind", account.charge, "seven")  # type: ignore[call-overload]
    await run.with_options(retry=3).step("no keyword", account.charge, 7, retry=3)  # type: ignore[call-arg]
    await run.with_options(returns=int).step("kind", account.balance, of=7)  # type: ignore[arg-type]
    run.with_options(retries=3)  # type: ignore[call-overload]
    await run.step("called", fetch("https://…"))  # type: ignore[call-overload]
    await run.transact("no session", fetch, "https://…")  # type: ignore[type-var]
    await run.transact("kind", insert, "seven")  # type: ignore[arg-type]
    await run.transact("keyword's kind", insert, 7, note=7)  # type: ignore[arg-type]
    await run.transact("no keyword", insert, 7, not_e="n")  # type: ignore[call-arg]
    await run.child("another model", total, state=Other)  # type: ignore[arg-type]
    await run.child("another model", total, context=Other())  # type: ignore[arg-type]


async def test_what_the_checker_accepts_runs(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await accepted(run, Account(), lambda *_: None)

    await store.run("typed", handler, context={})


async def test_keywords_are_the_functions_unless_they_are_options(store: StateStore) -> None:
    seen: list[Any] = []

    def look(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    async def handler(run: Run) -> None:
        await run.step("a", look, 1, other=2, timeout=30)
        await run.step("b", partial(look, timeout=1), 2, retry=2)
        await run.with_options(timeout=30, retry=2).step("c", look, 3, timeout="mine", retry=None, fn=4, step_id=5)
        await run.with_options().step("d", look, self=6)

    await store.run("typed", handler)
    assert seen == [
        ((1,), {"other": 2}),
        ((2,), {"timeout": 1}),
        ((3,), {"timeout": "mine", "retry": None, "fn": 4, "step_id": 5}),
        ((), {"self": 6}),
    ]


async def test_keywords_reach_the_function_of_transact(store: StateStore) -> None:
    async def handler(run: Run) -> list[str]:
        return [
            await run.transact("a", insert, 7, note="n"),
            await run.transact("b", insert, amount=8, returns=str),  # type: ignore[call-overload]
        ]

    assert await store.run("typed", handler) == ["row 7 n", "row 8 "]


async def test_options_that_are_kept_are_used_for_each_step(store: StateStore) -> None:
    calls: list[int] = []

    def flaky(number: int) -> int:
        calls.append(number)
        if calls.count(number) < 2:
            raise ValueError
        return number

    async def handler(run: Run) -> list[Any]:
        careful = run.with_options(retry=Retry(attempts=2, wait_initial=0, wait_jitter=0), returns=int)
        return [await careful.step("s", flaky, number=number) for number in range(2)]

    assert await store.run("typed", handler) == [0, 1]
    assert calls == [0, 0, 1, 1]


@pytest.mark.parametrize("options", [{"retry": "often"}, {"timeout": "soon"}, {"on_unknown": 1}, {"returns": object()}])
async def test_options_that_make_no_sense_are_refused(store: StateStore, options: dict[str, Any]) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises((ConfigurationError, InvalidPayload)):
            await run.with_options(**options).step("s", sum, [1])

    await store.run("typed", handler)


async def test_an_option_that_there_is_not_is_refused_when_it_runs_too(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(TypeError, match="retries"):
            await run.step("s", fetch, "https://…", retries=3)  # type: ignore[call-arg]

    await store.run("typed", handler)
