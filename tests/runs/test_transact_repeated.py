"""What the function of `run.transact` does to the context counts once, however often the database has it repeated."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore
from tests.support.cases import case
from tests.support.fated_commits import FatedCommits
from tests.support.running import Effect, vanish

START: dict[str, Any] = {
    "n": 1,
    "log": ["start"],
    "text": "start",
    "deep": {"rows": [{"marks": []}], "left": 1},
    "gone": [1],
    "long": {"text": "word " * 14_000, "n": 0},
}


def count(context: dict[str, Any]) -> None:
    context["n"] += 1


def make(context: dict[str, Any]) -> None:
    context.setdefault("made", []).append("function")


def change_inside(context: dict[str, Any]) -> None:
    context["deep"]["rows"][0]["marks"].append("function")
    del context["deep"]["left"]


def change_inside_of_a_long_one(context: dict[str, Any]) -> None:
    context["long"]["n"] += 1
    context["long"]["n"] += 1


def go_through_all(context: dict[str, Any]) -> None:
    for items in context.values():
        if isinstance(items, list):
            items.append("function")


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    count,
    make,
    change_inside,
    change_inside_of_a_long_one,
    lambda context: context["log"].append("function"),
    lambda context: context["log"].pop(0) if context["log"] else None,
    lambda context: context.update(text=f"function, {context['text']}", other=len(context)),
    lambda context: context.pop("gone", None),
    go_through_all,
]


async def outcome(
    store: StateStore,
    commits: FatedCommits,
    workflow_id: str,
    change: Any,
    *,
    line: Any = None,
    start: Any = START,
    refused: int,
) -> Any:
    """What the context is after the step, in the handler and in the store; and once more after a resume."""
    attempts, faults = list[int](), commits.faults

    async def handler(run: Run) -> Any:
        async def work(session: AsyncSession) -> None:
            change(run.context)

        if not attempts:
            commits.fates += ["refused"] * refused
        if line is not None:
            line(run.context)
        await run.transact("work", work)
        seen = dict(run.context)
        if not attempts:
            attempts.append(1)
            vanish()
        return seen

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id=workflow_id, context=start)
    assert commits.faults - faults == refused, "or else nothing was repeated"
    saved = (await store.load_workflow_state_by_workflow_id(workflow_id)).context
    assert saved == await store.run("n", handler, workflow_id=workflow_id)
    return saved


@pytest.mark.slow
async def test_it_counts_once(store: StateStore) -> None:
    commits = FatedCommits(store)
    lines = [None, change_inside_of_a_long_one, lambda context: context["log"].append("line")]
    for (nth, change), (number, line) in itertools.product(enumerate(CHANGES), enumerate(lines)):
        with case(name := f"change {nth} after line {number}"):
            expected = await outcome(store, commits, f"{name}, undisturbed", change, line=line, refused=0)
            assert await outcome(store, commits, f"{name}, repeated", change, line=line, refused=2) == expected


async def test_it_counts_once_also_of_who_goes_through_more_keys_than_are_told_apart(store: StateStore) -> None:
    many: dict[str, list[str]] = {f"list {number}": [] for number in range(1_001)}

    def go_through(context: dict[str, Any]) -> None:
        context["log"].append("before")
        for items in context.values():
            items.append("function")
        context["log"].append("after")
        context["new"] = len(context)

    commits = FatedCommits(store)
    expected = await outcome(store, commits, "undisturbed", go_through, start={**many, "log": []}, refused=0)
    assert await outcome(store, commits, "repeated", go_through, start={**many, "log": []}, refused=2) == expected


async def test_what_other_branches_did_to_one_of_many_keys_stays(store: StateStore) -> None:
    commits = FatedCommits(store)
    changed, goes_on = asyncio.Event(), asyncio.Event()

    async def handler(run: Run) -> Any:
        async def work(session: AsyncSession) -> None:
            for items in run.context.values():
                items.append("function")
            changed.set()
            await goes_on.wait()

        async def beside() -> None:
            await changed.wait()
            run.context["theirs"].append("beside")
            goes_on.set()

        commits.fates += ["refused"]
        await asyncio.gather(run.transact("work", work), beside())
        return run.context

    many: dict[str, list[str]] = {f"list {number}": [] for number in range(1_001)}
    found = await store.run("n", handler, workflow_id="w", context={**many, "theirs": []})
    assert commits.faults == 1
    assert "beside" in found.pop("theirs")
    assert found == {key: ["function"] for key in many}


async def test_what_other_branches_did_in_between_stays(store: StateStore) -> None:
    commits = FatedCommits(store)
    changed, goes_on = asyncio.Event(), asyncio.Event()

    async def handler(run: Run) -> Any:
        async def work(session: AsyncSession) -> None:
            run.context["n"] += 1
            run.append("log", "function")
            if not changed.is_set():
                changed.set()
                await goes_on.wait()
            run.append("log", "function, too")
            run.context["deep"]["rows"][0]["marks"].append("function")

        async def beside() -> None:
            await changed.wait()
            run.context["n"] += 1
            run.append("log", "beside")
            run.context["deep"]["left"] += 1
            goes_on.set()

        commits.fates += ["refused"]
        await asyncio.gather(run.transact("work", work), beside())
        return run.context

    found = await store.run("n", handler, workflow_id="w", context=START)
    assert commits.faults == 1
    assert sorted(found["log"]) == ["beside", "function", "function, too", "start"]
    assert found["n"] == 3
    assert found["deep"] == {"rows": [{"marks": ["function"]}], "left": 2}
    assert (await store.load_workflow_state_by_workflow_id("w")).context == found


@pytest.mark.parametrize("where", ["at a key", "deeper"])
@pytest.mark.parametrize("is_step", [False, True])
async def test_each_item_of_a_queue_is_taken_by_one_branch(store: StateStore, is_step: bool, where: str) -> None:
    commits = FatedCommits(store)
    taken, goes_on = asyncio.Event(), asyncio.Event()
    found: dict[str, list[str]] = {"work": [], "beside": []}

    async def handler(run: Run) -> Any:
        def jobs() -> Any:
            return run.context["jobs"] if where == "at a key" else run.context["all"]["jobs"]

        async def work(session: AsyncSession) -> None:
            found["work"].append(jobs().pop(0))
            jobs().append("of the function")
            taken.set()
            await goes_on.wait()

        async def take() -> None:
            found["beside"].append(jobs().pop(0))
            goes_on.set()

        async def beside() -> None:
            await taken.wait()
            await (run.step("take", take) if is_step else take())

        commits.fates += ["refused"]
        await asyncio.gather(run.transact("work", work), beside())
        return jobs()

    jobs = ["first", "second", "third"]
    left = await store.run("n", handler, workflow_id="w", context={"jobs": jobs, "all": {"jobs": jobs}})
    assert (commits.faults, found) == (1, {"work": ["first", "first"], "beside": ["second"]})
    assert left == ["third", "of the function"]


async def test_another_kind_of_value_that_others_made_in_between_is_no_failure(store: StateStore) -> None:
    commits = FatedCommits(store)

    async def handler(run: Run) -> Any:
        changed, goes_on = asyncio.Event(), asyncio.Event()

        async def work(session: AsyncSession) -> None:
            run.context.update(text=1, log="now a text", n=["and a list"])
            changed.set()
            await goes_on.wait()

        async def beside() -> None:
            await changed.wait()
            run.context["text"] += 1
            run.context["log"] += ", longer"
            run.context["n"].append("beside")
            goes_on.set()

        commits.fates += ["refused"]
        await asyncio.gather(run.transact("work", work), beside())
        return {key: run.context[key] for key in ("text", "log", "n")}

    found = await store.run("n", handler, workflow_id="w", context=START)
    assert commits.faults == 1
    assert found == {"text": 1, "log": "now a text", "n": ["and a list"]}


class Orders(BaseModel):
    placed: int = 0
    log: list[str] = []


@pytest.mark.parametrize("is_kept", [False, True])
async def test_it_counts_once_in_a_typed_state(store: StateStore, is_kept: bool) -> None:
    """Also of a handler that keeps the state in a variable, which is good for the whole attempt."""
    commits = FatedCommits(store)

    async def handler(run: Run[Orders]) -> Any:
        state = run.state

        async def work(session: AsyncSession) -> None:
            of = state if is_kept else run.state
            of.placed += 1
            of.log.append("function")

        run.state.log.append("line")
        commits.fates += ["refused"]
        await run.transact("work", work)
        return state.model_dump()

    assert await store.run("n", handler, workflow_id="w", state=Orders) == {"placed": 1, "log": ["line", "function"]}
    assert commits.faults == 1


async def test_it_counts_once_if_only_the_answer_was_lost(store: StateStore) -> None:
    """Then the function is not called once more, and what it did is not taken back."""
    commits = FatedCommits(store)
    work = Effect()

    async def handler(run: Run) -> Any:
        async def place(session: AsyncSession) -> None:
            await work()
            count(run.context)

        commits.fates += ["answer lost"]
        await run.transact("work", place)
        await run.step("after", Effect())
        return run.context["n"]

    assert await store.run("n", handler, workflow_id="w", context=START) == 2
    assert (commits.faults, len(work.calls)) == (1, 1)
