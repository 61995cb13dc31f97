"""`store.signal(..., once=True)` on both databases: of one name a run is sent one signal, whoever sends it and when."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator_state import AlreadyExists, ConfigurationError, InvalidPayload, InvalidTransition, Run, StateStore
from tests.support.lost_answers import answer_lost
from tests.support.running import checkpoints_of, count_rows, row_of, steps_of


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url) as store:
        yield store


async def wait_then_wait_on(run: Run) -> Any:
    return [await run.wait_for("approval"), await run.wait_for("go on")]


async def consumed(store: StateStore) -> Any:
    """The row of a run that has consumed the answer, and waits for something else."""
    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval", 1, once=True)
    assert len((await store.recover({"n": wait_then_wait_on})).suspended) == 1
    return await row_of(store, "w")


async def test_a_second_one_is_refused_while_the_first_is_unread_and_changes_nothing(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval", 1, once=True)
    before = await row_of(store, "w"), await count_rows(store, "requests")
    with pytest.raises(AlreadyExists, match="was sent a signal 'approval' before") as refused:
        await store.signal(state.id, "approval", 2, once=True)
    assert (refused.value.workflow_state_id, refused.value.name) == (state.id, "approval")  # type: ignore[attr-defined]
    assert (await row_of(store, "w"), await count_rows(store, "requests")) == before
    assert await count_rows(store, "signals") == 1


async def test_a_second_one_is_refused_after_the_first_was_consumed(store: StateStore) -> None:
    row = await consumed(store)
    with pytest.raises(AlreadyExists):
        await store.signal(row.id, "approval", 2, once=True)
    await store.signal(row.id, "go on", once=True)
    assert len((await store.recover({"n": wait_then_wait_on})).completed) == 1
    assert await store.run("n", wait_then_wait_on, workflow_id="w") == [1, None]


async def test_an_ordinary_signal_counts_as_one_and_is_itself_always_accepted(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval", 1)
    with pytest.raises(AlreadyExists):
        await store.signal(state.id, "approval", 2, once=True)
    await store.signal(state.id, "approval", 3)
    assert await count_rows(store, "signals") == 2


@pytest.mark.parametrize("name", ["approval#2", "APPROVAL", "approval#1", "approva_", "%", "approval#", "approval#2#1"])
async def test_another_name_is_another_question(store: StateStore, name: str) -> None:
    async def handler(run: Run) -> None:
        await run.wait_for("approval")
        await run.wait_for("approval")
        await run.wait_for("never")

    state = await store.start("n", workflow_id="w")
    for answer in (1, 2):
        await store.signal(state.id, "approval", answer)
    await store.recover({"n": handler})
    assert {"signal:approval", "signal:approval#2"} <= set(await steps_of(store, "w"))
    await store.signal(state.id, name, once=True)


@pytest.mark.parametrize("name", ["approval#2", "a#1", "a#2#1", "%#", 'x"\n', "x" * 248, "\N{SNOWMAN}#3"])
async def test_a_name_of_any_form_is_found_again(store: StateStore, name: str) -> None:
    async def handler(run: Run) -> None:
        await run.wait_for(name)
        await run.wait_for("never")

    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, name, once=True)
    await store.recover({"n": handler})
    assert await count_rows(store, "signals") == 0
    with pytest.raises(AlreadyExists):
        await store.signal(state.id, name, once=True)


async def test_one_that_comes_after_a_wait_in_vain_is_accepted(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(TimeoutError):
            await run.wait_for("approval", timeout=0)
        await run.wait_for("never")

    state = await store.start("n", workflow_id="w")
    await store.recover({"n": handler})
    assert (await steps_of(store, "w"))["signal:approval"].status == "skipped"
    await store.signal(state.id, "approval", 1, once=True)
    with pytest.raises(AlreadyExists):
        await store.signal(state.id, "approval", 2, once=True)


async def test_one_that_the_runs_type_refused_may_be_sent_anew(store: StateStore) -> None:
    async def handler(run: Run) -> int:
        try:
            return await run.wait_for("approval", returns=int)
        except InvalidPayload:
            return await run.wait_for("approval", returns=int)

    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval", "yes", once=True)
    assert len((await store.recover({"n": handler})).suspended) == 1
    await store.signal(state.id, "approval", 7, once=True)
    await store.recover({"n": handler})
    assert await store.run("n", handler, workflow_id="w") == 7


async def test_a_wait_that_is_under_way_has_accepted_nothing(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.wait_for("approval", timeout=60)

    state = await store.start("n", workflow_id="w")
    await store.recover({"n": handler})
    assert (await steps_of(store, "w"))["signal:approval"].status == "running"
    await store.signal(state.id, "approval", "yes", once=True)
    await store.recover({"n": handler})
    assert await store.run("n", handler, workflow_id="w") == "yes"


async def test_of_many_at_the_same_time_one_is_accepted(store: StateStore, other: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    task = asyncio.create_task(other.run("n", wait_then_wait_on, workflow_id="w"))  # which takes it meanwhile
    calls = [each.signal(state.id, "approval", n, once=True) for n in range(8) for each in (store, other)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer for answer in answers if not isinstance(answer, AlreadyExists)] == [None]
    await store.signal(state.id, "go on")
    assert len(await task) == 2
    assert await count_rows(store, "signals") == 0


@pytest.mark.parametrize("is_consumed", [False, True])
async def test_it_is_not_refused_because_of_itself_when_its_answer_was_lost(
    store: StateStore, other: StateStore, is_consumed: bool
) -> None:
    state = await store.start("n", workflow_id="w")

    async def consume() -> None:
        if is_consumed:
            await other.recover({"n": wait_then_wait_on})

    with answer_lost(store, consume):
        await store.signal(state.id, "approval", 1, once=True)
    assert await count_rows(store, "signals") == (not is_consumed)
    with pytest.raises(AlreadyExists):
        await other.signal(state.id, "approval", 1, once=True)


async def test_a_rewind_before_the_answer_forgets_it(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        await run.checkpoint("asked")
        return await run.wait_for("approval")

    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "approval", 1, once=True)
    assert await store.run("n", handler, workflow_id="w") == 1
    with pytest.raises(InvalidTransition, match="is completed and cannot be signalled"):
        await store.signal(state.id, "approval", 2, once=True)
    await store.rewind((await checkpoints_of(store, "w"))[0].id)
    await store.signal(state.id, "approval", 2, once=True)
    assert await store.run("n", handler, workflow_id="w") == 2


async def test_once_is_true_or_false(store: StateStore) -> None:
    with pytest.raises(ConfigurationError, match="once must be True or False, not a str"):
        await store.signal("00000000-0000-4000-8000-000000000000", "approval", once="no")  # type: ignore[arg-type]
