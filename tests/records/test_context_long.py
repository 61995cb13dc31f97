"""Long values of the context, in branches: they are looked at less often, and each change of them counts once as well.

So does one that is saved with a commit of which nobody knows at first whether it took effect. On both databases.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Event, Run, StateStore
from orchestrator_state.hooks import StepCommitting
from tests.support.fated_commits import FatedCommits
from tests.support.running import Effect, vanish

Body = Callable[[Run, bool], Any]


def start() -> dict[str, Any]:
    return {"long": {"text": "word " * 20_000, "n": 0, "marks": []}}


def change(run: Run, mark: str) -> None:
    run.context["long"]["n"] += 1
    run.context["long"]["marks"].append(mark)


async def marks_of(store: StateStore, body: Body) -> list[list[str]]:
    """Let the worker vanish at the end of `body`; what the context holds then, and when the run is resumed."""
    found: list[list[str]] = []

    async def handler(run: Run) -> None:
        is_first = not found
        await body(run, is_first)
        found.append(sorted(run.context["long"]["marks"]))
        assert run.context["long"]["n"] == len(found[-1])
        if is_first:
            vanish()

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context=start())
    await store.run("n", handler, workflow_id="w")
    ended = (await store.load_workflow_state_by_workflow_id("w")).context["long"]
    assert sorted(ended["marks"]) == found[-1]
    return found


async def line(run: Run) -> None:
    change(run, "line")


async def test_what_a_step_does_after_branches_were_joined_counts_beside_their_lines(store: StateStore) -> None:
    async def body(run: Run, is_first: bool) -> None:
        await asyncio.gather(line(run), asyncio.sleep(0))
        await run.step("joined", lambda: change(run, "joined"))

    assert await marks_of(store, body) == [["joined", "line"]] * 2


async def test_a_line_that_is_executed_during_a_commit_is_not_the_next_functions_doing(database_url: str) -> None:
    async def body(run: Run, is_first: bool) -> None:
        async def line_during_the_commit() -> None:
            if is_first:
                await committing.wait()
            change(run, "line")

        async def steps() -> None:
            await run.step("one", lambda: change(run, "one"))
            await run.step("two", lambda: change(run, "two"))

        committing = asyncio.Event()
        told.append(committing)
        await asyncio.gather(line_during_the_commit(), steps())

    class Hook:
        def on_event(self, event: Event) -> None:
            if isinstance(event, StepCommitting) and event.step_id == "one":
                told[-1].set()

    told: list[asyncio.Event] = []
    async with StateStore.open(database_url, hook=Hook()) as store:
        assert await marks_of(store, body) == [["line", "one", "two"]] * 2


async def test_a_function_in_whose_midst_another_branch_commits_has_done_all_of_it_once(store: StateStore) -> None:
    async def body(run: Run, is_first: bool) -> None:
        changed, saved = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            change(run, "slow")
            changed.set()
            await saved.wait()
            change(run, "slow, too")

        async def other() -> None:
            if is_first:
                await changed.wait()
            await run.step("other", Effect())
            saved.set()

        branches = [run.step("slow", slow), other()]
        await asyncio.gather(*(branches if is_first else reversed(branches)))

    assert await marks_of(store, body) == [["slow", "slow, too"]] * 2


async def test_a_function_that_follows_a_line_is_told_from_it_beside_a_branch_that_begins_with_plain_code(
    store: StateStore,
) -> None:
    async def body(run: Run, is_first: bool) -> None:
        changed, saved = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            change(run, "slow")
            changed.set()
            await saved.wait()

        async def one() -> None:
            change(run, "line")
            await run.step("slow", slow)

        async def other() -> None:
            if is_first:
                await changed.wait()
            await run.step("other", Effect())
            saved.set()

        await asyncio.gather(one(), other())

    assert await marks_of(store, body) == [["line", "slow"]] * 2


async def test_what_a_repeated_transaction_did_is_taken_back_although_another_branch_came_to_it(
    store: StateStore,
) -> None:
    commits = FatedCommits(store)

    async def body(run: Run, is_first: bool) -> None:
        changed, goes_on = asyncio.Event(), asyncio.Event()

        async def work(session: AsyncSession) -> None:
            change(run, "work")
            changed.set()
            await goes_on.wait()

        async def beside() -> None:
            if is_first:
                await changed.wait()
            change(run, "line")
            goes_on.set()

        if is_first:
            commits.fates += ["refused"] * 2
        await asyncio.gather(run.transact("work", work), beside())

    assert await marks_of(store, body) == [["line", "work"]] * 2
    assert commits.faults == 2


async def test_a_transaction_of_unknown_outcome_is_taken_up_beside_what_is_still_to_be_come_to(
    store: StateStore,
) -> None:
    """On record is what a line of an earlier attempt did, which has not been executed once more by then."""
    commits = FatedCommits(store)
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        async def work(session: AsyncSession) -> None:
            change(run, "work")

        async def branch() -> None:
            if attempts:
                await done.wait()
            change(run, "line")

        done = asyncio.Event()
        tasks = [asyncio.ensure_future(branch())]
        await asyncio.sleep(0)
        await run.step("saves", Effect())
        if not attempts:
            vanish()
        commits.fates.append("answer lost")
        await run.transact("work", work)
        assert commits.faults == 1, "or else its outcome was known"
        done.set()
        await asyncio.gather(*tasks)
        if len(attempts) == 1:
            vanish()
        return run.context["long"]

    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w", context=start())
        attempts.append(1)
    found = await store.run("n", handler, workflow_id="w")
    assert (found["n"], sorted(found["marks"])) == (2, ["line", "work"])
