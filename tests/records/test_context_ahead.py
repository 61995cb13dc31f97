"""The context when a step comes to its end only on resume, though later ones are on record. On both databases.

It had failed, was cut short by a limit, or was never reached: then what it does now is there beside what they did.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator_state import Run, StateStore
from orchestrator_state.records.context import Patch
from tests.support.running import Effect, steps_of, vanish

Life = list[int]
"""One entry for each life that is over."""
Call = Callable[[], Awaitable[object]]


async def _caught(late: Call) -> None:
    with contextlib.suppress(ValueError):
        await late()


async def _limited(late: Call) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await late()


async def _limited_task(late: Call) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.ensure_future(late()), 0.3)


async def _gathered(late: Call) -> None:
    await asyncio.gather(late(), asyncio.sleep(0), return_exceptions=True)


WAYS: dict[str, Callable[[Call], Awaitable[None]]] = {
    "it failed": _caught,
    "it failed in a gather": _gathered,
    "it was cut short": _limited,
    "it was cut short in a task of its own": _limited_task,
}


class Late:
    """The function of a step that comes to its end in the second life only."""

    def __init__(self, way: str, lives: Life, change: Callable[[], object]) -> None:
        self._is_slow = "cut" in way
        self._lives = lives
        self._change = change

    async def __call__(self) -> None:
        if not self._lives:
            if self._is_slow:
                await asyncio.Event().wait()
            raise ValueError
        self._change()


async def live(store: StateStore, handler: Any, lives: Life, **options: Any) -> Any:
    """Call the handler, whose worker vanishes; return the context that is saved."""
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", **options)
    lives.append(1)
    return (await store.load_workflow_state_by_workflow_id("w")).context


async def end(store: StateStore, handler: Any, **options: Any) -> Any:
    result = await store.run("n", handler, workflow_id="w", **options)
    assert result == (await store.load_workflow_state_by_workflow_id("w")).context
    return result


@pytest.mark.parametrize("way", WAYS)
async def test_what_both_did_to_the_same_key_counts_in_the_order_of_the_handler(store: StateStore, way: str) -> None:
    lives: Life = []

    async def handler(run: Run) -> Any:
        def late() -> None:
            run.context.update(n=run.context["n"] + 1, status="late", late=True)
            run.append("log", "late()")

        def recorded() -> None:
            run.context.update(n=run.context["n"] + 1, status="recorded", recorded=True)
            run.append("log", "recorded()")

        run.append("log", "line")
        await WAYS[way](lambda: run.step("late", Late(way, lives, late)))
        if len(lives) == 1:
            seen.append((await store.load_workflow_state(run.id)).context)
        await run.step("recorded", recorded)
        if len(lives) < 3:
            vanish()
        await run.step("last", lambda: run.append("log", "last()"))
        return dict(run.context)

    seen: list[dict[str, Any]] = []
    first = await live(store, handler, lives, context={"n": 0, "log": [], "status": "new"})
    assert first == {"n": 1, "log": ["line", "recorded()"], "status": "recorded", "recorded": True}
    between = {"n": 2, "late": True, "status": "recorded", "recorded": True}
    for _ in range(2):
        saved = await live(store, handler, lives)
        assert sorted(saved.pop("log")) == ["late()", "line", "recorded()"], "it is saved with the commit, and stays so"
        assert saved == between
    assert sorted(seen[0]["log"]) == ["late()", "line", "recorded()"]
    assert await end(store, handler) == between | {"log": ["line", "late()", "recorded()", "last()"]}


@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_that_ends_with_the_recorded_step_has_both(store: StateStore, way: str) -> None:
    lives: Life = []

    async def handler(run: Run) -> Any:
        run.append("log", "line")
        await WAYS[way](lambda: run.step("late", Late(way, lives, lambda: run.append("log", "late()"))))
        await run.step("recorded", lambda: run.append("log", "recorded()"))
        if not lives:
            vanish()
        run.append("log", "end")
        return dict(run.context)

    await live(store, handler, lives)
    assert await end(store, handler) == {"log": ["line", "late()", "recorded()", "end"]}


@pytest.mark.parametrize("way", [*WAYS, "its time had not come"])
async def test_lines_that_follow_it_count_too_and_those_that_are_not_executed_again_leave_their_keys(
    store: StateStore, way: str
) -> None:
    lives: Life = []

    async def handler(run: Run) -> Any:
        async def late() -> None:
            if lives or way in WAYS:
                await run.step("late", Late(way, lives, lambda: None))
                run.append("log", "fetched")
                await run.step("noted", Effect())

        await WAYS.get(way, _caught)(late)
        if not lives:
            run.context["degraded"] = True
        await run.step("recorded", lambda: run.append("log", "recorded()"))
        if len(lives) < 3:
            vanish()
        return dict(run.context)

    assert await live(store, handler, lives) == {"degraded": True, "log": ["recorded()"]}
    for _ in range(2):
        saved = await live(store, handler, lives)
        assert saved["degraded"]
        assert sorted(saved["log"]) == ["fetched", "recorded()"]
    assert await end(store, handler) == {"degraded": True, "log": ["fetched", "recorded()"]}


class Seen(BaseModel):
    n: int = 0
    log: list[str] = []
    late: bool = False
    degraded: bool = False


@pytest.mark.parametrize("way", WAYS)
async def test_a_typed_state_has_both(store: StateStore, way: str) -> None:
    lives: Life = []

    async def handler(run: Run[Seen]) -> Any:
        def late() -> None:
            run.state.n += 1
            run.state.late = True

        def recorded() -> None:
            run.state.n += 1
            run.state.log.append("recorded()")

        async def fetch() -> None:
            await run.step("late", Late(way, lives, late))
            run.state.log.append("fetched")

        await WAYS[way](fetch)
        if not lives:
            run.state.degraded = True
        await run.step("recorded", recorded)
        if len(lives) < 2:
            vanish()
        return run.state.model_dump()

    assert await live(store, handler, lives, state=Seen) == {
        "n": 1,
        "log": ["recorded()"],
        "late": False,
        "degraded": True,
    }
    await live(store, handler, lives, state=Seen)
    expected = {"n": 2, "log": ["fetched", "recorded()"], "late": True, "degraded": True}
    assert await end(store, handler, state=Seen) == expected


WORDS = "".join(f" word{n * 7919 % 10007}" for n in range(600))


def _grow(value: list[str], name: str) -> list[str]:
    return [*value, name + WORDS]


def _take(value: list[str], name: str) -> list[str]:
    return value[1:]


@pytest.mark.parametrize("length", [200, 20_000])
@pytest.mark.parametrize("change", [_grow, _take])
async def test_what_a_function_did_to_a_long_value_is_not_stored_twice(
    store: StateStore, change: Callable[[list[str], str], list[str]], length: int
) -> None:
    lives: Life = []
    start = [f"item {n}" for n in range(length)]

    async def handler(run: Run) -> Any:
        def late() -> None:
            run.context["late"] = True
            if change is _grow:
                run.context["items"] = change(run.context["items"], "late")

        def recorded() -> None:
            run.context["items"] = change(run.context["items"], "recorded")

        await _caught(lambda: run.step("late", Late("it failed", lives, late)))
        await run.step("recorded", recorded)
        if len(lives) < 2:
            vanish()
        return dict(run.context)

    await live(store, handler, lives, context={"items": start})
    patch = (await steps_of(store, "w"))["recorded"].context_patch
    assert patch is not None
    assert len(patch) < (len(WORDS) if change is _grow else 0) + 400
    await live(store, handler, lives)
    expected = [*start, "late" + WORDS, "recorded" + WORDS] if change is _grow else start[1:]
    assert await end(store, handler) == {"items": expected, "late": True}


def test_a_patch_that_tells_in_brief_what_a_function_did_is_read_as_one_that_tells_it_all() -> None:
    text = '[2,{"change":{"append":{"a":[1]},"set":{"b":2}},"made":[{"edit":{"a":[0,0],"b":[0,1]}}]}]'
    patch = Patch.from_json(text)
    assert json.loads(patch.to_json()) == json.loads(text)
    [made] = patch.made_between({"a": "[0]", "b": "1"}, {"a": "[0,1]", "b": "2"})
    assert (made.appended, made.changed, made.edited) == ({"a": "1"}, {"b": "2"}, {})
