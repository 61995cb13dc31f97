"""What a long context costs: nothing where nobody takes it up, and else what was changed of it. On both databases."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator_state import PayloadTooLarge, Run, StateStore
from orchestrator_state.records.context import PlainContext
from orchestrator_state.records.context.changes.differences import change_between, growth_between
from orchestrator_state.records.context.patches import Patch
from tests.support.cases import case
from tests.support.raw_sql import execute
from tests.support.running import Effect, row_of, steps_of, vanish

ROWS = [{"id": n, "name": f"row {n * 7919**23}", "marks": [0]} for n in range(1000)]  # few and long: that is faster
MANY: dict[str, Any] = {"rows": ROWS, "n": 0}
COMMITS = 4


async def patches_of(store: StateStore, workflow_id: str = "w") -> list[str]:
    return [step.context_patch or "" for step in (await steps_of(store, workflow_id)).values()]


# --- nested values -----------------------------------------------------------------------------------------------


async def test_of_a_nested_value_a_commit_stores_what_changed(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        context = run.context
        for n in range(12):
            context["deep"]["rows"][n]["marks"].append(n)
            context["deep"]["log"].append(f"entry {n}")
            context["deep"]["by_name"][f"name {n}"] = n
            del context["deep"]["by_name"][f"old {n}"]
            context["transcript"] += f" word {n}"
            await run.step("step", Effect())
            if not attempts:
                assert (await store.load_workflow_state(run.id)).context == context
        if not attempts:
            attempts.append(1)
            vanish()

    attempts: list[int] = []
    deep = {"rows": ROWS, "log": [], "by_name": {f"old {n}": 0 for n in range(100)}}
    start = {"deep": deep, "transcript": "said " * 200}
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context=start)
    assert max(map(len, await patches_of(store))) < 500
    await store.run("n", handler, workflow_id="w")
    ended = (await store.load_workflow_state_by_workflow_id("w")).context
    assert ended["deep"]["rows"][3]["marks"] == [0, 3]
    assert ended["deep"]["log"] == [f"entry {n}" for n in range(12)]
    assert len(ended["deep"]["by_name"]) == 100
    assert ended["transcript"].endswith(" word 10 word 11")


CHANGES: dict[str, Callable[[Any, int], Any]] = {
    "the first of a queue is taken": lambda value, n: value[1:],
    "one is inserted at the front": lambda value, n: [f"first {n}", *value],
    "some are deleted in the middle": lambda value, n: value[: 40 * n] + value[40 * n + 7 :],
    "a window moves on": lambda value, n: [*value[3:], *([{"new": n}] * 3)],
    "they are turned round": lambda value, n: [*value[500:], *value[:500]],
    "two are changed": lambda value, n: [*value[:n], {"id": -n}, *value[n + 1 : -1], {"id": n}],
}
WORDS = " ".join(f"word{n * 7919 % 10007}" for n in range(20_000))
EDITS: dict[str, Callable[[str, int], str]] = {
    "the beginning is cut": lambda text, n: text[100:] + f" and {n}",
    "a word is replaced": lambda text, n: text.replace(f"word{n * 7919 % 10007} ", "another ", 1),
    "something comes before": lambda text, n: f"{n} " + text,
    "there is a new paragraph, and an old one less": lambda text, n: text[:5000] + f" new {n}" + text[5000:-300],
}


@pytest.mark.slow
async def test_a_commit_stores_as_much_as_was_changed(store: StateStore) -> None:
    for named in (*CHANGES, *EDITS):
        with case(named):
            await assert_stores_as_much_as_was_changed(store, named)


async def assert_stores_as_much_as_was_changed(store: StateStore, named: str) -> None:
    key, change = ("text", EDITS[named]) if named in EDITS else ("rows", CHANGES[named])
    expected: dict[str, Any] = {"rows": ROWS, "text": WORDS}

    async def handler(run: Run) -> None:
        for n in range(COMMITS):
            run.context["inner"][key] = change(run.context["inner"][key], n)
            await run.step("step", Effect())
            if not attempts:
                expected[key] = change(expected[key], n)
                assert (await store.load_workflow_state(run.id)).context["inner"] == expected
        if not attempts:
            attempts.append(1)
            vanish()

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id=named, context={"inner": {"rows": ROWS, "text": WORDS}})
    assert sum(map(len, await patches_of(store, named))) < COMMITS * 400
    await store.run("n", handler, workflow_id=named)
    assert (await store.load_workflow_state_by_workflow_id(named)).context["inner"] == expected


async def test_what_is_changed_past_a_step_that_nobody_asks_for_is_found_on_resume(store: StateStore) -> None:
    """Its record is never replayed, so that no change may be told as one of what it left behind."""
    await _stops(store, _first_version)
    await _stops(store, _second_version)
    assert await store.run("n", _second_version, workflow_id="w") == ["z"] + ["x"] * 999


async def _stops(store: StateStore, handler: Any) -> None:
    async def stopping(run: Run) -> None:
        await handler(run)
        vanish()

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", stopping, workflow_id="w")


async def _first_version(run: Run) -> None:
    run.context["rows"] = ["x"] * 1000
    await run.step("a", Effect())
    run.context["rows"].insert(500, "y")
    await run.step("dropped", Effect())


async def _second_version(run: Run) -> Any:
    run.context["rows"] = ["x"] * 1000
    await run.step("a", Effect())
    run.context["rows"][0] = "z"
    await run.step("b", Effect())
    return run.context["rows"]


class Page(BaseModel):
    rows: list[dict[str, Any]]
    seen: dict[str, int] = {}


async def test_of_a_typed_state_too(store: StateStore) -> None:
    async def handler(run: Run[Page]) -> None:
        for n in range(3):
            run.state.rows[n]["marks"].append(n)
            run.state.seen[str(n)] = n
            await run.step("step", Effect())
        if not attempts:
            attempts.append(1)
            vanish()

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", state=Page, context=Page(rows=ROWS))
    assert max(map(len, await patches_of(store))) < 500
    await store.run("n", handler, workflow_id="w", state=Page)
    ended = (await store.load_workflow_state_by_workflow_id("w")).context
    assert [row["marks"] for row in ended["rows"][:4]] == [[0, 0], [0, 1], [0, 2], [0]]


async def test_the_row_gets_a_long_context_only_once_the_patches_outweigh_it(database_url: str) -> None:
    async def handler(run: Run) -> list[int]:
        positions = []
        for n in range(6):
            run.context["page"] = f"{n}" * 60_000
            await run.step("step", Effect())
            positions.append((await row_of(store, "w")).context_position)
            assert (await store.load_workflow_state(run.id)).context["page"] == f"{n}" * 60_000
        return positions

    async with StateStore.open(database_url, checkpoint_every=0, migrate=True) as store:
        positions = await store.run("n", handler, workflow_id="w", context=MANY)
    assert positions == [-1, -1, -1, 3, 3, 3]


async def test_patches_count_towards_the_size_of_a_workflow(database_url: str) -> None:
    async def handler(run: Run) -> None:
        for n in range(20):
            run.context["page"] = f"{n % 10}" * 20_000
            await run.step("step", Effect())

    async with StateStore.open(database_url, max_workflow_bytes=150_000, migrate=True) as store:
        with pytest.raises(PayloadTooLarge, match="workflow's payloads"):
            await store.run("n", handler, workflow_id="w")
        assert len(await steps_of(store, "w")) < 10


# --- what is missing in between ---


QUEUE = [f"item {n}" for n in range(10_000)]


def taking(effect: Effect, lives: list[int]) -> Any:
    """A handler that takes an item before each step, and whose worker vanishes once for each of `lives`."""

    async def handler(run: Run) -> Any:
        for name in "abc":
            run.context["queue"].pop(0)
            await run.step(name, effect, name)
        if lives:
            lives.pop()
            vanish()
        return run.context["queue"]

    return handler


@pytest.mark.parametrize("column", ["outputs", "context_patch"])
async def test_what_was_made_of_a_change_that_is_lost_is_lost_with_it_and_done_again(
    store: StateStore, database_url: str, column: str
) -> None:
    effect = Effect()
    handler = taking(effect, [1, 2])
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"queue": QUEUE})
    execute(database_url, f"UPDATE step_states SET {column} = '[1]' WHERE step_id = 'a'")
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == QUEUE[3:]
    assert effect.calls == ["a", "b", "c", "a"]


async def test_a_row_that_is_gone_costs_no_more_than_what_it_said(store: StateStore, database_url: str) -> None:
    effect = Effect()
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", taking(effect, [1]), workflow_id="w", context={"queue": QUEUE})
    execute(database_url, "DELETE FROM step_states WHERE step_id = 'b'")
    assert await store.run("n", taking(effect, []), workflow_id="w") == QUEUE[3:]
    assert effect.calls == ["a", "b", "c", "b"]


async def test_a_step_that_is_taken_out_by_hand_leaves_the_context_as_it_is(store: StateStore) -> None:
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", taking(Effect(), [1]), workflow_id="w", context={"queue": QUEUE})
    state = await store.load_workflow_state_by_workflow_id("w")
    del state.steps["b"]
    await store.save_workflow_state(state)
    edited = await store.load_workflow_state_by_workflow_id("w")
    assert edited.context["queue"] == QUEUE[3:]
    assert await store.run("n", taking(Effect(), []), workflow_id="w") == QUEUE[6:]  # from where it was left


# --- what nobody takes up ----------------------------------------------------------------------------------------


async def test_a_long_context_is_looked_at_only_where_somebody_took_it_up(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: set[str] = set()
    text_of = PlainContext._text_of

    def note(self: PlainContext, key: Any, *args: Any, **options: Any) -> str | None:
        looked_at.add(key)
        return text_of(self, key, *args, **options)

    async def handler(run: Run) -> list[list[str]]:
        phases = []
        for change in (None, "n", "rows"):
            looked_at.clear()
            if change == "n":
                run.context["n"] += 1
            if change == "rows":
                run.context["rows"][7]["marks"].append(1)
            await run.step("step", Effect())
            phases.append(sorted(looked_at))
        return phases

    monkeypatch.setattr(PlainContext, "_text_of", note)
    phases = await store.run("n", handler, workflow_id="w", context=MANY | {"long": "x" * 300_000})
    assert phases == [[], ["n"], ["n", "rows"]]
    ended = (await store.load_workflow_state_by_workflow_id("w")).context
    assert (ended["n"], ended["rows"][7]["marks"]) == (1, [0, 1])


@pytest.mark.parametrize(
    "take", [dict, lambda c: {**c}, lambda c: dict(c.items()), lambda c: c | {}, lambda c: c.copy()]
)
async def test_what_is_changed_inside_of_a_copy_of_the_context_is_saved(take: Any, database_url: str) -> None:
    async def handler(run: Run) -> Any:
        take(run.context)["rows"][0]["marks"].append("changed")
        await run.step("step", Effect())
        return (await store.load_workflow_state(run.id)).context["rows"][0]

    async with StateStore.open(database_url, migrate=True) as store:
        row = await store.run("n", handler, context=MANY | {"long": "x" * 300_000})
    assert row["marks"] == [0, "changed"]


async def test_values_have_a_limit_in_number(database_url: str) -> None:
    async def handler(run: Run) -> None:
        run.context["items"] = [[0] * 50, [0] * 60]
        await run.step("step", Effect())

    async with StateStore.open(database_url, max_values=100, migrate=True) as store:
        with pytest.raises(PayloadTooLarge, match=r"context holds 1.. values or more, over the limit of 100") as raised:
            await store.run("n", handler, context={"items": [0] * 101})
        assert raised.value.expected == 100
        with pytest.raises(PayloadTooLarge, match="over the limit of 100"):
            await store.run("n", handler, workflow_id="w")
        assert (await row_of(store, "w")).status == "failed"


# --- changes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": {"x": "1" * 300}}, {"a": {"x": "1" * 300, "y": 2}}),
        ({"a": {"x": "1" * 300, "y": 2}}, {"a": {"y": 2, "x": "1" * 300}}),
        ({"a": {"x": "1" * 300, "y": 2}}, {"a": {"x": "1" * 300}}),
        ({"a": [[1] * 200, [2]]}, {"a": [[1] * 200, [2, 3], 4]}),
        ({"a": [[1] * 200, [2]]}, {"a": [[1] * 200]}),
        ({"a": "x" * 300}, {"a": "x" * 300 + '"\\u'}),
        ({"a": "x" * 300}, {"a": "y" * 300}),
        ({"a": {"": [1], "x": "1" * 300}}, {"a": {"": [1, 2], "x": "1" * 300}}),
        ({"a": [{"": "1" * 300}]}, {"a": [{"": "1" * 301}, []]}),
        ({"a": []}, {"a": {}, "b": None}),
    ],
)
def test_a_change_leads_from_the_one_to_the_other_and_is_stored_as_it_is(before: Any, after: Any) -> None:
    then = {key: json.dumps(value, separators=(",", ":")) for key, value in before.items()}
    now = {key: json.dumps(value, separators=(",", ":")) for key, value in after.items()}
    for change in (change_between(then, now), growth_between(then, now)):
        stored = Patch.from_json(Patch(change, after=0).to_json()).change
        assert stored == change
        assert {key: json.loads(text) for key, text in stored.apply(then).items()} == after
    assert change_between(then, now).apply(then) == now


def test_growth_is_done_to_what_others_have_made_of_it() -> None:
    growth = growth_between(
        {"n": "1", "log": "[1]", "words": '"a"', "deep": '{"n":[5],"x":1}'},
        {"n": "3", "log": "[1,2]", "words": '"ab"', "deep": '{"n":[7],"x":1}', "new": "[1]"},
    )
    made = growth.apply({"n": "10", "log": "[]", "words": '"z"', "deep": '{"n":[1],"y":2}', "new": "[0]"})
    assert made == {"n": "12", "log": "[2]", "words": '"zb"', "deep": '{"n":[3],"y":2}', "new": "[0,1]"}
