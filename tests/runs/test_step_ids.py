"""No two calls of a handler share an id, in whatever order they come, and come again."""

import asyncio
from itertools import permutations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_state import InvalidPayload, Run, StateStore
from orchestrator_state.runs.step_ids import StepIds
from tests.support.raw_sql import execute
from tests.support.running import Effect, steps_of, vanish

IDS = ("a", "a#2", "a#2#1", "a#2#2", "a#1", "a#3", "a#02", "#2", "a#", "sleep#2")


def numbers_of(calls: tuple[str, ...]) -> dict[tuple[str, int], str]:
    """What each call is stored as, by the caller's id and how often it was called before."""
    ids = StepIds(())
    found: dict[tuple[str, int], str] = {}
    for call in calls:
        before = sum(known == call for known, _ in found)
        found[call, before] = ids.number(call)
    return found


@pytest.mark.parametrize(("one", "other"), list(product(IDS, IDS)))
def test_two_ids_share_no_number_and_the_order_makes_no_difference(one: str, other: str) -> None:
    calls = (one,) * 4 + (other,) * 4
    expected = numbers_of(calls)
    assert len(set(expected.values())) == len(expected)
    assert numbers_of(calls[::-1]) == expected
    assert numbers_of((one, other) * 4) == expected


@given(st.lists(st.text(alphabet="a#12", min_size=1, max_size=5), max_size=12))
def test_no_two_calls_share_an_id(calls: list[str]) -> None:
    ids = StepIds(())
    numbered = [ids.number(call) for call in calls]
    assert len(set(numbered)) == len(calls)


@pytest.mark.parametrize("step_id", ["page#1", "page #", "#", "a#b", "a#0", "a#02", "a#2b", "a#\u0662", "C#"])
def test_an_id_that_no_repetition_has_stays_as_it_is(step_id: str) -> None:
    ids = StepIds(())
    assert [ids.number(step_id), ids.number(step_id)] == [step_id, f"{step_id}#2"]


def test_an_id_that_is_too_long_with_its_number_is_refused() -> None:
    ids = StepIds(())
    ids.number("a" * 255)
    for step_id in ("a" * 255, "a" * 253 + "#2"):
        with pytest.raises(InvalidPayload, match="at most 255"):
            ids.number(step_id)


@pytest.mark.parametrize("later", list(permutations(["load", "load", "load#2"])))
@pytest.mark.parametrize("first", [["load", "load"], ["load#2"], ["load", "load#2"], ["load#2", "load", "load"]])
async def test_no_call_is_given_the_record_of_another_after_a_change_of_order(
    sqlite_url: str, first: list[str], later: tuple[str, ...]
) -> None:
    effect = Effect()

    async def call(run: Run, ids: Any) -> list[str]:
        seen: list[str] = []
        for step_id in ids:
            seen.append(step_id)
            assert await run.step(step_id, effect, [step_id, seen.count(step_id)]) == [step_id, seen.count(step_id)]
        return seen

    async def handler(run: Run) -> None:
        await call(run, first)
        vanish()

    async def changed(run: Run) -> list[str]:
        return await call(run, later)

    async with StateStore.open(sqlite_url) as store:
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w")
        assert await store.run("n", changed, workflow_id="w") == list(later)
    assert len(effect.calls) == 3, "each once"


async def test_children_and_signals_share_no_number_either(store: StateStore) -> None:
    async def child(run: Run) -> str:
        return run.workflow_id.partition("/")[2]

    async def handler(run: Run) -> list[Any]:
        for name in ("go", "go", "go#2"):
            await store.signal(run.id, name, name)
        signals = [await run.wait_for(name) for name in ("go#2", "go", "go")]
        return signals + [await run.child(name, child) for name in ("c#2", "c", "c")]

    assert await store.run("n", handler, workflow_id="w") == [
        "go#2", "go", "go", "child:c#2#1", "child:c", "child:c#2",
    ]  # fmt: skip


async def test_a_run_that_older_software_recorded_is_replayed(store: StateStore, database_url: str) -> None:
    effect = Effect()

    async def handler(run: Run) -> list[Any]:
        found = [await run.step(f"page#{number}", effect, number) for number in (1, 2, 3)]
        if len(effect.calls) == 3:
            vanish()
        return found

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    # It put no number behind what ends as one.
    execute(
        database_url,
        "UPDATE step_states SET step_id = replace(step_id, '#1', ''), outputs_digest = NULL WHERE step_id <> 'page#1'",
    )
    assert [*await steps_of(store, "w")] == ["page#1", "page#2", "page#3"]
    effect.calls.append("not all three by now")
    assert await store.run("n", handler, workflow_id="w") == [1, 2, 3]
    assert len(effect.calls) == 4
    assert list(await steps_of(store, "w")) == ["page#1", "page#2", "page#3"]
