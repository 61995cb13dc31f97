"""What the functions of recorded steps did to the context is there once more after an upcast. On both databases."""

import asyncio
import contextlib
from typing import Any

import pytest

from orchestrator_state import Run, StateSchema, StateStore
from tests.support.running import until_done, vanish

V1 = StateSchema("grow", version=1)


def version_2(name: str) -> StateSchema:
    """`n` is called `name` from now on, and there is a currency."""
    schema = StateSchema("grow", version=2)

    @schema.upcast(1)
    def _(context: dict[str, Any]) -> dict[str, Any]:
        context[name] = context.pop("n")
        return {"currency": "EUR", **context}

    return schema


async def _begun_by_old_code_and_ended_by_new(
    database_url: str, name: str, handler: Any, context: dict[str, Any]
) -> dict[str, Any]:
    async with StateStore.open(database_url, schemas=[V1]) as old:
        with contextlib.suppress(asyncio.CancelledError):
            await old.run("grow", handler, workflow_id="w", context=context)
    async with StateStore.open(database_url, schemas=[version_2(name)]) as new:
        await until_done(lambda: new.run("grow", handler, workflow_id="w"))
        state = await new.load_workflow_state_by_workflow_id("w")
        return dict(state.context)


@pytest.mark.parametrize("name", ["n", "total"])
async def test_a_step_that_succeeds_only_after_the_upcast_is_beside_later_ones(database_url: str, name: str) -> None:
    lives: list[int] = []

    async def grow(by: int, run: Run) -> None:
        if by == 1 and not lives:
            raise ValueError("not the first time")
        run.context[name if lives else "n"] += by
        run.context["text"] += f"{by}."
        run.context["counts"]["x"] += by

    async def handler(run: Run) -> None:
        with contextlib.suppress(ValueError):
            await run.step("fails first", grow, 1, run)
        await run.step("later", grow, 10, run)
        if len(lives) < 2:  # once as old code, and once as new code
            lives.append(0)
            vanish()

    context = {"n": 0, "text": "", "counts": {"x": 0}}
    after = await _begun_by_old_code_and_ended_by_new(database_url, name, handler, context)
    assert after == {"currency": "EUR", name: 11, "text": "1.10.", "counts": {"x": 11}}


@pytest.mark.parametrize("name", ["n", "total"])
async def test_what_a_function_set_or_dropped_before_another_steps_commit_stays_so(
    database_url: str, name: str
) -> None:
    lives: list[int] = []
    done = asyncio.Event()

    async def change(run: Run) -> None:
        context = run.context
        context["set"], context["inside"]["set"] = 1, 1
        del context["dropped"], context["inside"]["dropped"]
        context["n"] = 5
        done.set()

        async with asyncio.timeout(60):
            await other.wait()

    other = asyncio.Event()

    async def first(run: Run) -> None:
        await run.step("first", done.wait)  # its commit saves what the function beside it has done so far
        other.set()

    async def handler(run: Run) -> None:
        await asyncio.gather(run.step("changes", change, run), first(run))
        if not lives:
            lives.append(0)
            vanish()

    context = {"n": None, "dropped": 1, "inside": {"dropped": 1}}
    after = await _begun_by_old_code_and_ended_by_new(database_url, name, handler, context)
    assert after == {"currency": "EUR", name: 5, "set": 1, "inside": {"set": 1}}
