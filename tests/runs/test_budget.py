"""A run that has spent its budget asks whether it may spend more, once for each limit, and goes on or stops."""

import asyncio
import contextlib
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator_state import (
    Budget,
    BudgetSpent,
    ConfigurationError,
    InvalidPayload,
    Question,
    Run,
    RunFailed,
    StateStore,
)
from tests.support.fated_commits import FatedCommits
from tests.support.running import VanishesEverywhere


async def spends(run: Run, calls: list[str], name: str, cost: float = 1, tokens: int = 100) -> str:
    calls.append(name)
    run.record_usage(model="m", input_tokens=tokens, cost=cost)
    return name


def handler_of(calls: list[str], *steps: str) -> Any:
    async def handler(run: Run) -> list[str]:
        return [await run.step(step, spends, run, calls, step) for step in steps]

    return handler


async def asked(store: StateStore) -> Question:
    [question] = await store.list_questions()
    return question


async def test_it_asks_before_the_next_new_step_and_goes_on_with_more(store: StateStore) -> None:
    calls: list[str] = []
    handlers = {"n": handler_of(calls, "a", "b", "c", "d")}
    state = await store.start("n", workflow_id="w", budget=2)
    await store.recover(handlers)
    assert calls == ["a", "b"]
    question = await asked(store)
    assert (question.name, question.prompt["limit"], question.prompt["spent"]) == ("budget", "2", "2")
    for bad in (2, 1, "go", None, -1):
        with pytest.raises(InvalidPayload):
            await store.answer(question.id, bad)
    await store.answer(question.id, 3)
    await store.recover(handlers)
    assert calls == ["a", "b", "c"]
    second = await asked(store)
    assert second.id != question.id
    await store.answer(second.id, 2.5 + 1)
    await store.recover(handlers)
    assert await store.result(state.id) == ["a", "b", "c", "d"]
    assert await store.run("n", handlers["n"], workflow_id="w", strict=True) == ["a", "b", "c", "d"]
    assert calls == ["a", "b", "c", "d"]


async def test_stop_fails_the_run_which_asks_again_when_it_is_resumed(store: StateStore) -> None:
    calls: list[str] = []
    handlers = {"n": handler_of(calls, "a", "b")}
    state = await store.start("n", workflow_id="w", budget=Budget(tokens=100))
    await store.recover(handlers)
    await store.answer((await asked(store)).id, "stop")
    await store.recover(handlers)
    with pytest.raises(RunFailed, match="budget"):
        await store.result(state.id)
    await store.resume(state.id)
    await store.recover(handlers)
    await store.answer((await asked(store)).id, 1000)
    await store.recover(handlers)
    assert await store.result(state.id) == ["a", "b"]
    assert calls == ["a", "b"]


@pytest.mark.parametrize("answer", [10, "stop"])
async def test_branches_share_one_question(store: StateStore, answer: Any) -> None:
    calls: list[str] = []

    async def handler(run: Run) -> Any:
        await run.step("first", spends, run, calls, "first")
        branches = (run.step(name, spends, run, calls, name) for name in "abc")
        return [str(each) for each in await asyncio.gather(*branches, return_exceptions=True)]

    state = await store.start("n", budget=1)
    await store.recover({"n": handler})
    await store.answer((await asked(store)).id, answer)
    await store.recover({"n": handler})
    assert (await store.load_workflow_state(state.id)).status == "completed"
    assert sorted(calls) == (["a", "b", "c", "first"] if answer == 10 else ["first"])


async def test_a_run_that_waits_where_it_is_goes_on_too(store: StateStore) -> None:
    calls: list[str] = []

    async def answers() -> None:
        while not (page := await store.list_questions()).questions:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        await store.answer(page.questions[0].id, "stop")

    answering = asyncio.create_task(answers())
    with pytest.raises(BudgetSpent):
        await store.run("n", handler_of(calls, "a", "b"), budget=Decimal("0.5"))
    await answering
    assert calls == ["a"]


async def test_what_failed_calls_have_used_counts_too(store: StateStore) -> None:
    calls: list[str] = []

    async def handler(run: Run) -> str:
        async def fails() -> None:
            await spends(run, calls, "fails")
            raise LookupError

        with pytest.raises(LookupError):
            await run.step("a", fails)
        return await run.step("b", spends, run, calls, "b")

    await store.start("n", budget=1)
    await store.recover({"n": handler})
    assert calls == ["fails"]
    await asked(store)


async def test_the_context_survives_a_question_that_was_the_last_on_record(store: StateStore) -> None:
    calls: list[str] = []

    async def handler(run: Run) -> Any:
        await run.step("a", spends, run, calls, "a")
        run.context["after a"] = 1
        await run.step("b", spends, run, calls, "b")
        run.context["after b"] = 1
        return dict(run.context)

    state = await store.start("n", budget=Budget(cost=1, tokens=100))
    for _ in range(2):
        await store.recover({"n": handler})
        question = await asked(store)
        await store.answer(question.id, 1000)
    await store.recover({"n": handler})
    assert await store.result(state.id) == {"after a": 1, "after b": 1}


@pytest.mark.parametrize(
    "budget", [0, -1, True, "5", float("nan"), 10**7, Decimal(0), Decimal("0.0000000001")], ids=str
)
async def test_a_budget_that_makes_no_sense_is_refused(store: StateStore, budget: Any) -> None:
    with pytest.raises(ConfigurationError):
        await store.start("n", budget=budget)
    with pytest.raises(ConfigurationError):
        Budget(cost=budget)
    with pytest.raises(ConfigurationError):
        Budget(tokens=0)
    with pytest.raises(ConfigurationError):
        Budget()
    assert not (await store.list_runs()).runs


async def test_no_child_and_no_transaction_begins_either_and_a_fork_has_the_budget(store: StateStore) -> None:
    calls: list[str] = []

    async def child(run: Run) -> str:
        calls.append("child")
        return "child"

    async def write(session: Any) -> None:
        calls.append("write")

    async def by_child(run: Run) -> object:
        await run.step("a", spends, run, calls, "a")
        return await run.child("child", child)

    async def by_transact(run: Run) -> None:
        await run.step("a", spends, run, calls, "a")
        await run.transact("write", write)

    handlers = {"c": by_child, "t": by_transact}
    for name in handlers:
        await store.start(name, budget=1)
    await store.recover(handlers)
    assert calls == ["a", "a"]
    questions = (await store.list_questions()).questions
    assert len(questions) == 2
    [checkpoint] = (await store.list_checkpoints(questions[0].workflow_state_id)).checkpoints[-1:]
    await store.fork(checkpoint.id)
    for question in questions:
        await store.answer(question.id, 5)
    await store.recover(handlers)
    assert sorted(calls)[:2] == ["a", "a"]
    assert {"child", "write"} <= set(calls)


async def test_a_fork_begins_with_nothing_spent_and_asks_once_it_has(store: StateStore) -> None:
    calls: list[str] = []
    handlers = {"n": handler_of(calls, "a", "b", "c")}
    state = await store.start("n", budget=1)
    await store.recover(handlers)
    [checkpoint] = (await store.list_checkpoints(state.id)).checkpoints[-1:]
    fork = await store.fork(checkpoint.id)
    await store.recover(handlers)
    assert calls == ["a", "b"]
    assert {each.workflow_state_id for each in await store.list_questions()} == {state.id, fork.id}


async def test_a_run_that_is_put_back_has_spent_what_it_has(store: StateStore) -> None:
    calls: list[str] = []
    handlers = {"n": handler_of(calls, "a", "b")}
    state = await store.start("n", budget=1)
    await store.recover(handlers)
    await store.answer((await asked(store)).id, 2)
    await store.recover(handlers)
    assert calls == ["a", "b"]
    [checkpoint] = (await store.list_checkpoints(state.id)).checkpoints[-1:]
    await store.rewind(checkpoint.id)
    await store.recover(handlers)
    assert (await asked(store)).prompt["spent"] == "2"


async def test_a_damaged_budget_fails_the_run_and_no_step_begins(store: StateStore, backend: str) -> None:
    if backend == "postgres":
        return  # which keeps no text in a number
    calls: list[str] = []
    state = await store.start("n", budget=1)
    async with store.begin() as uow:
        await uow.session.execute(text("UPDATE workflow_states SET budget_cost = 'x'"))
    await store.recover({"n": handler_of(calls, "a")})
    assert calls == []
    assert (await store.load_workflow_state(state.id)).status == "failed"


@pytest.mark.parametrize("lost", range(1, 9))
async def test_whichever_answer_of_a_commit_is_lost_it_asks_once_and_counts_once(store: StateStore, lost: int) -> None:
    calls: list[str] = []
    handlers = {"n": handler_of(calls, "a", "b")}
    state = await store.start("n", budget=1)
    commits = FatedCommits(store)
    for _ in range(lost - 1):
        commits.fates.append("sound")
    commits.fates.append("answer lost")
    await store.recover(handlers)
    question = await asked(store)
    await store.answer(question.id, 2)
    await store.recover(handlers)
    assert await store.result(state.id) == ["a", "b"]
    assert calls == ["a", "b"]
    assert len((await store.list_questions(status=None)).questions) == 1
    [total] = await store.usage()
    assert (total.calls, total.failed_calls, total.cost) == (2, 0, Decimal(2))
    assert commits.faults == 1


async def test_a_worker_that_vanishes_at_each_event_of_branches_changes_nothing(database_url: str) -> None:
    calls: list[str] = []

    async def handler(run: Run) -> list[str]:
        branches = (run.step(name, spends, run, calls, name) for name in "ab")
        return [*await asyncio.gather(*branches), await run.step("c", spends, run, calls, "c")]

    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        state = await store.start("n", budget=2)
        while (await store.load_workflow_state(state.id)).status != "completed":
            with contextlib.suppress(asyncio.CancelledError):
                await store.recover({"n": handler})
            for question in await store.list_questions():
                await store.answer(question.id, 100)
        [total] = await store.usage()
    assert total.calls == 3
    assert total.calls + total.failed_calls <= len(calls)


@pytest.mark.parametrize("backend", ["postgres"])
async def test_in_a_schema_of_postgres_many_runs_ask_and_go_on(database_url: str) -> None:
    calls: list[str] = []
    handlers = {"n": handler_of(calls, "a", "b", "c")}
    async with StateStore.open(database_url, db_schema="other_place", migrate=True) as store:
        for number in range(8):
            await store.start("n", workflow_id=str(number), budget=2)
        await store.recover(handlers)
        questions = (await store.list_questions()).questions
        assert len(questions) == 8
        for question in questions:
            await store.answer(question.id, 9)
        await store.recover(handlers)
        [total] = await store.usage()
    assert (total.calls, total.failed_calls) == (24, 0)
