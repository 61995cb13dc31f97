"""The answer to a COMMIT is lost: the call took effect, and its repetition finds that. Nothing is done twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert, text

from orchestrator_state import (
    AesGcm,
    Checkpoint,
    KeyRing,
    Payloads,
    Run,
    StateStore,
    StoreUnavailable,
    Worker,
    WorkflowStatus,
)
from orchestrator_state.models import checkpoints, requests, workflow_states
from tests.support.absences import absence_of
from tests.support.cases import case
from tests.support.lost_answers import answer_lost
from tests.support.running import (
    LONG_AGO,
    Effect,
    change_row,
    checkpoints_of,
    count_rows,
    row_of,
    seconds,
    steps_of,
)
from tests.support.states import a_checkpoint, a_state, is_stored


@pytest.fixture
async def near(database_url: str) -> AsyncIterator[StateStore]:
    """Another process's store on the same database, whose answers arrive."""
    async with StateStore.open(database_url) as store:
        yield store


async def two_waits(run: Run) -> Any:
    first = await run.wait_for("pay")
    try:
        return [first, await run.wait_for("pay", timeout=0.2)]
    except TimeoutError:
        return [first, None]


async def test_a_signal_that_was_consumed_meanwhile_is_not_delivered_twice(store: StateStore, near: StateStore) -> None:
    state = await near.start("n", workflow_id="w")
    running = asyncio.create_task(near.run("n", two_waits, workflow_id="w"))

    async def consume() -> None:
        await running

    with answer_lost(store, consume):
        await store.signal(state.id, "pay", 100)
    assert await running == [100, None]
    assert await count_rows(near, "signals") == 0


async def test_a_signal_is_not_left_in_front_of_later_ones(store: StateStore, near: StateStore) -> None:
    state = await near.start("n", workflow_id="w")
    with answer_lost(store):
        await store.signal(state.id, "pay", 1)
    await store.signal(state.id, "pay", 2)
    assert await near.run("n", two_waits, workflow_id="w") == [1, 2]
    assert await count_rows(near, "signals") == 0


async def test_a_rewind_drops_nothing_that_was_acknowledged_after_it(store: StateStore, near: StateStore) -> None:
    async with near.begin() as uow:
        await uow.session.execute(text("CREATE TABLE payments (id INTEGER)"))

    async def pay(session: Any) -> None:
        await session.execute(text("INSERT INTO payments VALUES (1)"))

    async def fails(run: Run) -> None:
        await run.step("a", Effect())
        raise LookupError

    async def pays(run: Run) -> str:
        await run.step("a", Effect())
        await run.transact("pay", pay)
        return "paid"

    with pytest.raises(LookupError):
        await near.run("n", fails, workflow_id="w")
    [checkpoint] = await checkpoints_of(near, "w")
    with answer_lost(store, lambda: near.run("n", pays, workflow_id="w")):
        rewound = await store.rewind(checkpoint.id)
    assert (rewound.status, list(rewound.steps)) == ("pending", ["a"])
    assert (await row_of(near, "w")).status == "completed"
    assert list(await steps_of(near, "w")) == ["a", "pay"]
    assert await count_rows(near, "payments") == 1


async def test_a_fork_exists_once_and_is_returned(store: StateStore, near: StateStore) -> None:
    async def handler(run: Run) -> str:
        await run.step("a", Effect())
        return "done"

    await near.run("n", handler, workflow_id="w")
    [checkpoint] = await checkpoints_of(near, "w")
    with answer_lost(store, lambda: near.run("n", handler, workflow_id="fork")):
        fork = await store.fork(checkpoint.id, workflow_id="fork")
    assert (fork.status, list(fork.steps)) == ("pending", ["a"])
    assert (await near.load_workflow_state(fork.id)).status == "completed"
    assert await count_rows(near, "workflow_states") == 2


async def test_a_resume_gives_one_budget(store: StateStore, near: StateStore) -> None:
    declined = Effect()

    async def handler(run: Run) -> None:
        await declined()
        raise LookupError

    with pytest.raises(LookupError):
        await near.run("n", handler, workflow_id="w")
    failed = await row_of(near, "w")

    async def use_it_up() -> None:
        report = await near.recover({"n": handler})
        assert len(report.failed) == 1

    with answer_lost(store, use_it_up):
        await store.resume(failed.id)
    assert (await near.recover({"n": handler})).runs == []
    assert len(declined.calls) == 2


async def test_a_pause_does_not_come_back_after_somebody_resumed(store: StateStore, near: StateStore) -> None:
    state = await near.start("n", workflow_id="w")
    with answer_lost(store, lambda: near.resume(state.id)):
        await store.pause(state.id)
    assert (await row_of(near, "w")).status == "pending"


async def test_a_cancel_does_not_come_back_after_the_run_was_put_back(store: StateStore, near: StateStore) -> None:
    state = a_state("w")
    await near.save_workflow_state(state)
    checkpoint = a_checkpoint(state)
    checkpoint.snapshot = state.to_snapshot()
    await near.create_checkpoint(checkpoint)
    with answer_lost(store, lambda: near.rewind(checkpoint.id)):
        await store.cancel(state.id)
    assert (await row_of(near, "w")).status == "pending"


async def test_a_start_whose_run_was_deleted_meanwhile_does_not_start_it_again(
    store: StateStore, near: StateStore
) -> None:
    async def finish_and_delete() -> None:
        await near.cancel((await row_of(near, "w")).id)
        await change_row(near, (await row_of(near, "w")).id, updated_at=LONG_AGO)
        assert await near.delete_old_states(LONG_AGO + seconds(1)) == 1

    with answer_lost(store, finish_and_delete), pytest.raises(Exception, match="there is no workflow"):
        await store.start("n", workflow_id="w")
    assert await count_rows(near, "workflow_states") == 0


async def test_a_checkpoint_that_was_pruned_meanwhile_does_not_come_back_as_the_newest(
    store: StateStore, near: StateStore
) -> None:
    state = a_state()
    await near.save_workflow_state(state)
    first = a_checkpoint(state, 0)

    async def newer() -> None:
        await near.create_checkpoint(a_checkpoint(state, 1))
        await near.cleanup_old_checkpoints(state.id, keep=1)

    with answer_lost(store, newer):
        await store.create_checkpoint(first)
    assert first.seq == 1
    latest = await near.get_latest_checkpoint(state.id)
    assert isinstance(latest, Checkpoint)
    assert (latest.seq, await count_rows(near, "checkpoints")) == (2, 1)


async def test_what_is_deleted_and_pruned_is_counted_once(store: StateStore, near: StateStore) -> None:
    old, state = a_state("old"), a_state()
    old.mark_completed()
    for each in (old, state):
        await near.save_workflow_state(each)
    for number in range(4):
        await near.create_checkpoint(a_checkpoint(state, number))
    with answer_lost(store):
        assert await store.cleanup_old_checkpoints(state.id, keep=2) == 2
    with answer_lost(store):
        assert await store.prune_checkpoints(keep=1) == 1
    with answer_lost(store):
        assert await store.delete_old_states(old.updated_at + seconds(1)) == 1
    assert [await is_stored(near, each) for each in (old, state)] == [False, True]


CALLS = (
    *("signal", "pause", "resume", "cancel", "fork", "rewind"),
    *("start", "run", "save", "checkpoint", "delete", "prune"),
)


def the_call(store: StateStore, call: str, state: Any, checkpoint: Checkpoint) -> Awaitable[Any]:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "signal": lambda: store.signal(state.id, "x"),
        "pause": lambda: store.pause(state.id),
        "resume": lambda: store.resume(state.id),
        "cancel": lambda: store.cancel(state.id),
        "start": lambda: store.start("n", workflow_id="another"),
        "checkpoint": lambda: store.create_checkpoint(a_checkpoint(state, 1)),
        "fork": lambda: store.fork(checkpoint.id),
        "rewind": lambda: store.rewind(checkpoint.id),
        "delete": lambda: store.delete_old_states(LONG_AGO),
        "prune": lambda: store.prune_checkpoints(keep=1),
        "save": lambda: store.save_workflow_state(a_state("saved")),
        "run": lambda: store.run("n", two_waits, workflow_id="run"),
    }
    return calls[call]()


async def test_when_the_database_stays_away_every_call_says_that_its_outcome_is_unknown(
    database_url: str, near: StateStore
) -> None:
    for call in CALLS:
        with case(call):
            await assert_its_outcome_is_unknown(database_url, near, call)


async def assert_its_outcome_is_unknown(database_url: str, near: StateStore, call: str) -> None:
    state = a_state(f"of {call}")
    await near.save_workflow_state(state)
    checkpoint = a_checkpoint(state)
    checkpoint.snapshot = state.to_snapshot()
    for each in (a_checkpoint(state), checkpoint):
        await near.create_checkpoint(each)
    async with StateStore.open(database_url, retry_timeout=seconds(0.1)) as store:
        with (
            absence_of(store) as absence,
            answer_lost(store, absence.begin),
            pytest.raises(StoreUnavailable) as raised,
        ):
            await the_call(store, call, state, checkpoint)
        assert raised.value.outcome_unknown


async def fill_several_transactions(store: StateStore) -> None:
    """Store more workflows, ended long ago and with two checkpoints each, than a clean-up deletes at once."""
    times = {"started_at": LONG_AGO, "updated_at": LONG_AGO}
    ended = [
        {"id": uuid4(), "workflow_id": "old", "workflow_name": "n", "status": "completed", "context": "0", **times}
        for _ in range(201)
    ]
    points = [
        {
            "id": uuid4(),
            "workflow_state_id": row["id"],
            "step_id": "s",
            "timestamp": LONG_AGO,
            "snapshot": "1",
            "seq": seq,
        }
        for row in ended
        for seq in (1, 2)
    ]
    async with store.begin() as uow:
        await uow.session.execute(insert(workflow_states), ended)
        await uow.session.execute(insert(checkpoints), points)


@pytest.mark.parametrize("call", ["start", "run", "delete", "prune", "rekey", "recover"])
async def test_when_the_database_goes_away_after_the_effect_the_outcome_is_unknown_too(
    database_url: str, near: StateStore, call: str
) -> None:
    if call in ("delete", "prune"):
        await fill_several_transactions(near)
    await near.start("n")
    payloads = Payloads([AesGcm(KeyRing({"a": b"a" * 32}, "a"))] if call == "rekey" else [])
    async with StateStore.open(database_url, retry_timeout=seconds(0.1), payloads=payloads) as store:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "rekey": store.rekey,
            "recover": lambda: store.recover({"n": two_waits}),
            "start": lambda: store.start("n", workflow_id="w"),
            "run": lambda: store.run("n", two_waits),
            "delete": lambda: store.delete_old_states(LONG_AGO + seconds(1)),
            "prune": lambda: store.prune_checkpoints(keep=1),
        }
        with absence_of(store) as absence:
            absence.begins_at_a_commit = True
            with pytest.raises(StoreUnavailable) as raised:
                await calls[call]()
    assert raised.value.outcome_unknown


async def test_the_ids_of_calls_are_forgotten_after_a_day(store: StateStore) -> None:
    state = await store.start("n", workflow_id="w")
    async with store.begin() as uow:
        await uow.session.execute(requests.update().values(made_at=LONG_AGO))
    for _ in range(70):
        await store.pause(state.id)
    assert await count_rows(store, "requests") == 70
    assert (await row_of(store, "w")).status == WorkflowStatus.PAUSED


async def test_a_worker_forgets_them_now_and_then(store: StateStore) -> None:
    """For processes that live too short to come to it."""
    await store.start("n", workflow_id="w")
    async with store.begin() as uow:
        await uow.session.execute(requests.update().values(made_at=LONG_AGO))
    worker = Worker(store, {"n": two_waits}, poll=0.1, handle_signals=False)
    worker._tidied_at = float("-inf")  # long ago
    async with worker:
        while await count_rows(store, "requests"):  # noqa: ASYNC110 - the worker does it
            await asyncio.sleep(0.05)
