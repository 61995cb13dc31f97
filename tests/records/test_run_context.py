"""`run.context`, `run.append` and the checkpoints of a run, on both databases.

A resumed handler starts again from the top: what it does to the context between its steps must count once.
"""

import asyncio
import copy
import json
from typing import Any

import pytest

from orchestrator_state import CorruptPayload, InvalidPayload, Run, StateStore, WorkflowState
from orchestrator_state.records.context.patches import Patch
from tests.support.running import (
    Effect,
    Failing,
    VanishesEverywhere,
    checkpoints_of,
    row_of,
    steps_of,
    until_done,
    vanish,
)
from tests.support.statements import traffic_of

# --- once, however often the worker vanished ---


async def test_what_happens_to_the_context_between_steps_counts_once_wherever_the_worker_vanishes(
    database_url: str,
) -> None:
    async def handler(run: Run) -> dict[str, Any]:
        context = run.context
        for n in range(3):
            context["n"] += 1
            run.append("log", f"item {n}")
            context["nested"]["list"].append(n)
            await run.step("count", Effect(), n)
            context.pop(f"dropped {n}")
            context[f"added {n}"] = n
        context["n"] += 1
        await run.checkpoint()
        context["n"] += 1
        return context

    start = {"n": 0, "nested": {"list": []}} | {f"dropped {n}": n for n in range(3)}
    expected = {
        "n": 5,
        "nested": {"list": [0, 1, 2]},
        "log": ["item 0", "item 1", "item 2"],
        **{f"added {n}": n for n in range(3)},
    }
    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        result = await until_done(lambda: store.run("n", handler, workflow_id="w", context=start))
        state = await store.load_workflow_state_by_workflow_id("w")
    assert result == state.context == expected


async def test_branches_side_by_side_may_assign_keys_of_their_own_and_count_once_they_are_joined(
    database_url: str,
) -> None:
    async def branch(run: Run, name: str) -> int:
        for n in range(2):
            await run.step(f"{name} {n}", Effect())
            run.context[f"{name} {n}"] = n
        await run.checkpoint(f"{name} done")
        return 1

    async def handler(run: Run) -> Any:
        run.append("log", "before")
        names.append(names.pop(0))  # another one comes first in each attempt
        run.context["total"] = sum(await asyncio.gather(*(branch(run, name) for name in names)))
        run.append("log", "after")
        await run.step("last", Effect())
        return run.context

    names = ["a", "b", "c"]
    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        result = await until_done(lambda: store.run("n", handler, workflow_id="w", context={"log": []}))
        state = await store.load_workflow_state_by_workflow_id("w")
    keys = {f"{name} {n}": n for name in names for n in range(2)}
    assert result == state.context == {"log": ["before", "after"], "total": 3, **keys}


async def test_what_a_recorded_step_committed_counts_once_when_another_step_comes_first(store: StateStore) -> None:
    """As when the branches of a resumed handler take their turns in another order."""

    async def handler(run: Run) -> Any:
        run.append("log", "before")
        run.context["n"] += 1
        for step_id in steps:
            await run.step(step_id, Effect())
        if "last" not in steps:
            vanish()
        return run.context

    steps = ["recorded"]
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"n": 0, "log": ["start"]})
    steps = ["new"]
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    steps = ["new", "recorded", "last"]
    assert await store.run("n", handler, workflow_id="w") == {"n": 1, "log": ["start", "before"]}


async def test_a_new_version_may_change_the_context_ahead_of_recorded_steps_or_drop_them(store: StateStore) -> None:
    async def old(run: Run) -> None:
        for step_id in ("a", "dropped", "b"):
            run.context["n"] += 1
            await run.step(step_id, Effect())
        vanish()

    async def new(run: Run) -> Any:
        run.context["version"] = 2
        run.append("log", "new")
        await run.step("added", Effect())
        for step_id in ("a", "b"):
            run.context["n"] += 1
            await run.step(step_id, Effect())
        await run.step("added too", Effect())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    attempts: list[int] = []
    for handler in (old, new):
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w", context={"n": 0, "log": ["old"]})
        assert (await store.load_workflow_state_by_workflow_id("w")).context["n"] == 3
    result = await store.run("n", new, workflow_id="w")
    assert result == {"n": 3, "log": ["old", "new"], "version": 2}, "n is what the last recorded step made of it"


async def test_it_counts_once_when_the_run_failed_in_between(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        run.context["n"] += 1
        await run.step("first", Effect())
        run.context["n"] += 1
        if outages:
            raise outages.pop()
        await run.step("second", Effect())
        return run.context["n"]

    outages = [ConnectionError() for _ in range(3)]
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await store.run("n", handler, workflow_id="w", context={"n": 0})
        assert (await store.load_workflow_state_by_workflow_id("w")).context == {"n": 1}
    assert await store.run("n", handler, workflow_id="w") == 2


# --- what a commit saves ---


async def test_the_context_is_saved_with_the_steps_commit(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        run.context["seen"] = "before the step"
        await run.step("a", Effect())
        state = await store.load_workflow_state(run.id)
        assert state.context == {"seen": "before the step"}
        run.context["seen"] = "after it"
        assert (await store.load_workflow_state(run.id)).context == {"seen": "before the step"}

    await store.run("n", handler, workflow_id="w")
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"seen": "after it"}


async def test_what_a_steps_function_does_to_the_context_is_kept(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        def remember() -> None:
            run.context["pages"] = [1]
            run.append("pages", 2)
            run.context.pop("old")

        await run.step("remember", remember)
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"old": 1})
    assert await store.run("n", handler, workflow_id="w") == {"pages": [1, 2]}


async def test_a_resumed_handler_sees_the_context_of_the_step_it_has_reached(store: StateStore) -> None:
    async def handler(run: Run) -> list[Any]:
        seen = [dict(run.context)]
        for n in range(2):
            run.context[f"key {n}"] = n
            await run.step("step", Effect())
            seen.append(dict(run.context))
        if not attempts:
            attempts.append(1)
            vanish()
        return seen

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == [{}, {"key 0": 0}, {"key 0": 0, "key 1": 1}]


async def test_a_failed_step_does_not_commit_the_context(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        def count_and_fail() -> None:
            run.context["calls"] += 1
            if outages:
                raise outages.pop()

        await run.step("count", count_and_fail)
        return run.context["calls"]

    outages = [ConnectionError()]
    with pytest.raises(ConnectionError):
        await store.run("n", handler, workflow_id="w", context={"calls": 0})
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"calls": 0}
    assert await store.run("n", handler, workflow_id="w") == 1


async def test_a_context_that_cannot_be_stored_fails_the_step_that_would_commit_it(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        run.context["bad"] = {1, 2}
        await run.step("a", Effect())

    with pytest.raises(InvalidPayload, match=r"context\.bad"):
        await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    assert (row.status, row.context) == ("failed", "{}")


async def test_a_key_that_is_no_text_is_refused(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        context: dict[Any, Any] = run.context
        context[1] = "one"

    with pytest.raises(InvalidPayload, match="context"):
        await store.run("n", handler, workflow_id="w")


# --- append ---


async def test_append_writes_the_item_and_not_the_list_again(database_url: str) -> None:
    async def handler(run: Run) -> int:
        for n in range(5):
            run.append("messages", f"message-{n}")
            await run.step("step", Effect())
        with traffic_of(store) as traffic:
            run.append("messages", "the last one")
            await run.step("step", Effect())
        sent = repr(traffic.parameters)
        assert "the last one" in sent
        assert "message-" not in sent
        return len(run.context["messages"])

    async with StateStore.open(database_url, checkpoint_every=0) as store:
        assert await store.run("n", handler, workflow_id="w", context={"messages": ["message-first"]}) == 7
        patches = [json.loads(step.context_patch) for step in (await steps_of(store, "w")).values()]
    assert [patch["append"] for patch in patches] == [
        {"messages": [item]} for item in (*(f"message-{n}" for n in range(5)), "the last one")
    ]
    assert not any(patch["set"] or patch["drop"] for patch in patches)


async def test_while_the_run_goes_on_others_see_what_was_appended(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        for n in range(3):
            run.append("messages", n)
            await run.step("step", Effect())
            assert json.loads((await row_of(store, "w")).context) == {"messages": []}, "the row itself is not rewritten"
            assert (await store.load_workflow_state(run.id)).context == {"messages": list(range(n + 1))}
            [active] = await store.list_active_workflows()
            assert active.context == {"messages": list(range(n + 1))}

    await store.run("n", handler, workflow_id="w", context={"messages": []})
    assert json.loads((await row_of(store, "w")).context) == {"messages": [0, 1, 2]}


async def test_an_unchanged_context_is_not_written(database_url: str) -> None:
    async def handler(run: Run) -> None:
        with traffic_of(store) as traffic:
            await run.step("step", Effect())
        assert "large" not in repr(traffic.parameters)

    async with StateStore.open(database_url, checkpoint_every=0) as store:
        await store.run("n", handler, workflow_id="w", context={"large": "large" * 100})
        assert [step.context_patch for step in (await steps_of(store, "w")).values()] == [None]


async def test_append_starts_the_list_and_refuses_what_is_none(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        run.append("new", 1)
        with pytest.raises(InvalidPayload, match=r"context\.text is not a list"):
            run.append("text", 1)
        with pytest.raises(InvalidPayload, match=r"context\.new"):
            run.append("new", {1, 2})
        return run.context

    assert await store.run("n", handler, context={"text": "abc"}) == {"text": "abc", "new": [1]}


# --- changed by hand ---


async def edit(store: StateStore, context: dict[str, Any]) -> WorkflowState:
    state = await store.load_workflow_state_by_workflow_id("w")
    state.context = context
    await store.save_workflow_state(state)
    return state


async def test_a_context_edited_by_hand_is_where_a_resumed_run_starts(store: StateStore) -> None:
    work = Failing(LookupError("no such page"), LookupError("still not"))

    async def handler(run: Run) -> Any:
        started_with = copy.deepcopy(run.context)
        await run.step("first", Effect())
        run.append("log", "first done")
        await run.step("second", Effect())
        await run.step("work", work)
        return [started_with, run.context]

    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w", context={"url": "wrong"})
    edited = await edit(store, {"url": "right", "log": []})
    assert (await store.load_workflow_state(edited.id)).context == {"url": "right", "log": []}
    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w")
    started_with, ended_with = await store.run("n", handler, workflow_id="w")
    assert started_with == {"url": "right", "log": []}
    assert ended_with == {"url": "right", "log": ["first done"]}
    assert work.calls == 3


async def test_an_edit_that_changes_nothing_is_none(store: StateStore) -> None:
    work = Failing(LookupError("no such page"))

    async def handler(run: Run) -> Any:
        run.context["n"] += 1
        run.append("log", "x")
        await run.step("first", Effect())
        await run.step("work", work)
        return run.context

    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w", context={"n": 0})
    await edit(store, {"n": 1, "log": ["x"]})
    assert await store.run("n", handler, workflow_id="w") == {"n": 1, "log": ["x"]}


# --- checkpoints ---


async def three_steps(run: Run) -> None:
    run.context["n"] = 0
    for step_id in ("a", "b", "c"):
        run.context["n"] += 1
        await run.step(step_id, Effect(), step_id.upper())


async def test_every_step_makes_a_checkpoint_of_the_whole_state(store: StateStore) -> None:
    await store.run("n", three_steps, workflow_id="w", user_id="u-1")
    checkpoints = await checkpoints_of(store, "w")
    assert [checkpoint.step_id for checkpoint in checkpoints] == ["a", "b", "c"]
    assert [checkpoint.seq for checkpoint in checkpoints] == [1, 2, 3]
    state = await store.load_workflow_state_by_workflow_id("w")
    then = WorkflowState.from_snapshot(checkpoints[1].snapshot)
    assert (then.id, then.workflow_id, then.workflow_name, then.user_id) == (state.id, "w", "n", "u-1")
    assert (then.status, then.context) == ("running", {"n": 2})
    assert then.steps == {step_id: state.steps[step_id] for step_id in ("a", "b")}


async def test_the_policy_may_be_every_nth_step(database_url: str) -> None:
    async with StateStore.open(database_url, checkpoint_every=2) as store:
        await store.run("n", three_steps, workflow_id="w")
        assert [checkpoint.step_id for checkpoint in await checkpoints_of(store, "w")] == ["b"]


async def test_the_policy_may_be_off_and_a_checkpoint_by_hand_is_made_all_the_same(database_url: str) -> None:
    async def handler(run: Run) -> None:
        await three_steps(run)
        run.context["by"] = "hand"
        await run.checkpoint("halfway")
        await run.step("d", Effect())
        await run.checkpoint()

    async with StateStore.open(database_url, checkpoint_every=0) as store:
        await store.run("n", handler, workflow_id="w")
        checkpoints = await checkpoints_of(store, "w")
        assert [checkpoint.step_id for checkpoint in checkpoints] == ["halfway", "checkpoint"]
        assert WorkflowState.from_snapshot(checkpoints[0].snapshot).context == {"n": 3, "by": "hand"}
        assert (await steps_of(store, "w"))["halfway"].status == "completed"


async def test_a_checkpoint_by_hand_is_made_once(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.checkpoint("halfway")
        if not attempts:
            attempts.append(1)
            vanish()

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    await store.run("n", handler, workflow_id="w")
    assert [checkpoint.step_id for checkpoint in await checkpoints_of(store, "w")] == ["halfway"]


async def test_only_the_newest_checkpoints_are_kept(database_url: str) -> None:
    async def handler(run: Run) -> None:
        for n in range(6):
            await run.step("step", Effect(), n)
        await run.checkpoint("last")

    async with StateStore.open(database_url, keep_checkpoints=3) as store:
        await store.run("n", handler, workflow_id="w")
        checkpoints = await checkpoints_of(store, "w")
        assert [checkpoint.step_id for checkpoint in checkpoints] == ["step#5", "step#6", "last"]
        assert [checkpoint.seq for checkpoint in checkpoints] == [5, 6, 7]


async def test_a_failed_step_makes_no_checkpoint_but_the_next_one_holds_it(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(ValueError, match="no"):
            await run.step("failing", Failing(ValueError("no")))
        await run.step("after", Effect())

    await store.run("n", handler, workflow_id="w")
    [checkpoint] = await checkpoints_of(store, "w")
    steps = WorkflowState.from_snapshot(checkpoint.snapshot).steps
    assert {step_id: step.status for step_id, step in steps.items()} == {"failing": "failed", "after": "completed"}


@pytest.mark.parametrize(
    "part", ['"drop":1', '"drop":[[]]', '"drop":{}', '"drop":[],"unseen":["a"]', '"drop":[],"unseen":1']
)
def test_a_patch_that_is_none_is_corrupt(part: str) -> None:
    with pytest.raises(CorruptPayload):
        Patch.from_json(f'{{"set":{{}},"append":{{}},{part}}}')


def test_a_patch_that_appends_no_items_is_corrupt() -> None:
    with pytest.raises(CorruptPayload):
        Patch.from_json('{"set":{},"append":{"a":1},"drop":[]}')
