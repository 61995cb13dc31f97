"""`store.recover` on both databases: it finishes what is abandoned, leaves alone what is not, mends what is damaged."""

import asyncio
import copy
import logging
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from orchestrator_state import Checkpoint, CorruptPayload, Run, StateStore, WorkflowState, WorkflowStatus
from orchestrator_state.concurrency import ProcessIdentity
from orchestrator_state.hooks import FellBack, RunStarted
from orchestrator_state.models import checkpoints
from tests.support.interleaving import just_before
from tests.support.running import (
    Effect,
    Failing,
    Gate,
    Log,
    change_row,
    change_step,
    checkpoints_of,
    expire_lease,
    row_of,
    seconds,
    steps_of,
    vanish,
)


async def finish(run: Run) -> str:
    return str(await run.step("only", Effect(), "done"))


async def abandoned(store: StateStore, workflow_id: str = "w", name: str = "n") -> Any:
    """The row of a run whose worker was killed after a step, and whose lease has ended."""

    async def handler(run: Run) -> None:
        await run.step("kept", Effect(), "kept")
        vanish()

    with pytest.raises(asyncio.CancelledError):
        await store.run(name, handler, workflow_id=workflow_id)
    await expire_lease(store, (await row_of(store, workflow_id)).id)
    return await row_of(store, workflow_id)


# --- what is claimed ---


async def test_every_kind_of_abandoned_run_is_claimed_and_resumed(database_url: str, store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("kept", Effect(), "new")

    async def let_go(run: Run) -> None:
        vanish()

    await store.start("n", workflow_id="pending")
    await abandoned(store, "expired")
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", let_go, workflow_id="released")
    async with StateStore.open(database_url) as other:
        report = await other.recover({"n": handler})
    assert {run.workflow_id: run.outcome for run in report.runs} == dict.fromkeys(
        ("pending", "expired", "released"), "completed"
    )
    assert {run.name for run in report.runs} == {"n"}
    assert report.unknown == []
    assert await store.run("n", handler, workflow_id="expired") == "kept"
    attempts = {name: (await row_of(store, name)).attempts for name in ("pending", "expired", "released")}
    assert attempts == {"pending": 0, "expired": 1, "released": 0}


async def test_runs_that_are_owned_finished_failed_paused_or_cancelled_are_left_alone(
    database_url: str, store: StateStore
) -> None:
    gate = Gate()

    async def owned(run: Run) -> Any:
        return await run.step("under way", gate)

    task = asyncio.create_task(store.run("n", owned, workflow_id="owned"))
    await gate.reached.wait()
    await store.run("n", finish, workflow_id="completed")
    with pytest.raises(LookupError):
        await store.run("n", lambda run: Failing(LookupError())(), workflow_id="failed")
    await store.pause((await store.start("n", workflow_id="paused")).id)
    await store.cancel((await store.start("n", workflow_id="cancelled")).id)
    names = ("owned", "completed", "failed", "paused", "cancelled")

    async def rows() -> list[dict[str, Any]]:
        """As they are, but for the end of leases: their owner may renew them meanwhile."""
        found = [(await row_of(store, name))._asdict() for name in names]
        return [{column: row[column] for column in row.keys() - {"lease_expires_at"}} for row in found]

    before = await rows()
    async with StateStore.open(database_url) as other:
        for each in (store, other):
            report = await each.recover({"n": finish})
            assert (report.runs, report.unknown) == ([], [])
    assert await rows() == before
    gate.opened.set()
    await task


async def test_many_runs_are_recovered_a_few_at_a_time(store: StateStore) -> None:
    under_way: set[int] = set()
    most: list[int] = []
    four = asyncio.Event()

    async def handler(run: Run) -> int:
        async def work(n: int) -> int:
            under_way.add(n)
            most.append(len(under_way))
            if len(under_way) == 4:
                four.set()
            await four.wait()
            under_way.discard(n)
            return n

        return await run.step("work", work, run.context["n"])

    for n in range(15):
        await store.start("n", workflow_id=f"w-{n}", context={"n": n})
    report = await store.recover({"n": handler}, concurrency=4)
    assert len(report.completed) == 15
    assert max(most) == 4


async def test_two_stores_recover_each_run_once(database_url: str, store: StateStore) -> None:
    effect = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("once", effect, run.workflow_id)

    for n in range(20):
        await store.start("n", workflow_id=f"w-{n}")
    async with StateStore.open(database_url) as other:
        reports = await asyncio.gather(*(each.recover({"n": handler}) for each in (store, other)))
    assert sorted(run.workflow_id for report in reports for run in report.runs) == sorted(effect.calls)
    assert len(set(effect.calls)) == len(effect.calls) == 20


async def test_a_run_of_another_namespace_is_not_touched(database_url: str, store: StateStore) -> None:
    await store.start("n", workflow_id="w")
    async with StateStore.open(database_url, namespace="tenant") as tenant:
        report = await tenant.recover({"n": finish})
        assert (report.runs, report.unknown) == ([], [])
        assert (await tenant.recover({})).unknown == []
    assert (await row_of(store, "w")).status == "pending"


async def test_what_a_dead_process_left_is_claimed_however_long_the_end_of_its_leases_takes(store: StateStore) -> None:
    """On SQLite a unit that keeps others from writing prolongs their leases by as long, but none that it has ended."""
    mine, row = ProcessIdentity.mine(), await abandoned(store)
    dead = ProcessIdentity(mine.machine, mine.pid, "1")
    await change_row(store, row.id, lease_process=str(dead), lease_expires_at=datetime.now(UTC) + seconds(3600))
    with just_before(store, "UPDATE workflow_states SET lease_expires_at", partial(asyncio.sleep, 2)):
        report = await store.recover({"n": finish})
    assert [run.workflow_id for run in report.completed] == ["w"]


# --- the report ---


async def test_a_run_whose_handler_is_unknown_is_reported_and_stays_for_a_worker_that_knows_it(
    store: StateStore,
) -> None:
    row = await abandoned(store, name="theirs")
    await store.start("ours", workflow_id="ours")
    report = await store.recover({"ours": finish})
    assert [run.name for run in report.completed] == ["ours"]
    assert [(run.workflow_state_id, run.workflow_id, run.name) for run in report.unknown] == [(row.id, "w", "theirs")]
    assert await row_of(store, "w") == row
    assert len((await store.recover({"theirs": finish})).completed) == 1


async def test_without_handlers_all_that_is_abandoned_is_unknown(store: StateStore) -> None:
    await abandoned(store)
    report = await store.recover({})
    assert ([run.workflow_id for run in report.unknown], report.runs) == (["w"], [])


async def test_a_handlers_exception_is_in_the_report_and_does_not_stop_the_others(store: StateStore) -> None:
    error = LookupError("no such page")

    async def handler(run: Run) -> str:
        if run.workflow_id == "bad":
            raise error
        return await finish(run)

    for workflow_id in ("good", "bad", "also good"):
        await store.start("n", workflow_id=workflow_id)
    report = await store.recover({"n": handler}, concurrency=1)
    assert {run.workflow_id for run in report.completed} == {"good", "also good"}
    assert [(run.workflow_id, run.error) for run in report.failed] == [("bad", error)]
    assert (await row_of(store, "bad")).status == "failed"


async def test_cancelling_a_recovery_releases_what_it_claimed(database_url: str, store: StateStore) -> None:
    gate = Gate()

    async def handler(run: Run) -> Any:
        return await run.step("under way", gate, "done")

    await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.recover({"n": handler}))
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    row = await row_of(store, "w")
    assert (row.status, row.lease_expires_at) == ("running", None)
    gate.opened.set()
    async with StateStore.open(database_url) as other:
        assert len((await other.recover({"n": handler})).completed) == 1


async def test_a_cancelled_recovery_leaves_no_task_behind(store: StateStore) -> None:
    before = asyncio.all_tasks()
    gates = [Gate() for _ in range(3)]

    async def handler(run: Run) -> None:
        await asyncio.gather(*(run.step("work", gate) for gate in gates))

    await store.start("n", workflow_id="w")
    task = asyncio.create_task(store.recover({"n": handler}))
    for gate in gates:
        await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


# --- a run that kills its workers ---


async def test_a_run_over_which_too_many_workers_vanished_fails_with_a_reason(database_url: str) -> None:
    attempts: list[int] = []

    async def deadly(run: Run) -> None:
        attempts.append(run.attempts)
        vanish()

    async with StateStore.open(database_url, max_attempts=2) as store:
        row = await abandoned(store)
        for _ in range(2):
            with pytest.raises(asyncio.CancelledError):
                await store.recover({"n": deadly})
            await expire_lease(store, row.id)
        report = await store.recover({"n": deadly})
        assert attempts == [1, 2]
        assert [run.workflow_state_id for run in report.failed] == [row.id]
        state = await store.load_workflow_state(row.id)
        assert state.status is WorkflowStatus.FAILED
        assert state.error is not None
        assert "3 workers vanished" in state.error
        assert (await store.recover({"n": deadly})).runs == []

        await store.resume(row.id)
        assert len((await store.recover({"n": finish})).completed) == 1


async def test_the_handler_and_the_hook_know_how_many_workers_vanished(database_url: str) -> None:
    log = Log()
    async with StateStore.open(database_url, hook=log) as store:
        await abandoned(store)
        await store.recover({"n": finish})
    assert [event.attempts for event in log.of(RunStarted)] == [0, 1]


# --- damaged rows ---


class Counting:
    """A handler of three steps that counts in the context; the last step fails until it is mended."""

    def __init__(self) -> None:
        self.effect = Effect()
        self.last = Failing(LookupError("not yet"))
        self.started_with: list[Any] = []

    async def __call__(self, run: Run) -> list[Any]:
        self.started_with.append(copy.deepcopy(run.context))
        outputs = []
        for step_id in ("a", "b"):
            run.context["n"] += 1
            run.append("log", step_id)
            outputs.append(await run.step(step_id, self.effect, step_id.upper()))
        return [*outputs, await run.step("c", self.last), run.context]


EXPECTED = ["A", "B", "done", {"n": 2, "log": ["a", "b"]}]


async def interrupted(store: StateStore, handler: Counting) -> Any:
    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w", context={"n": 0})
    handler.effect.calls.clear()
    return await row_of(store, "w")


async def test_damaged_steps_are_taken_from_the_newest_checkpoint_and_it_says_so(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, handler = Log(), Counting()
    async with StateStore.open(database_url, hook=log) as store:
        row = await interrupted(store, handler)
        newest = (await checkpoints_of(store, "w"))[-1]
        await change_step(store, row.id, "a", outputs='{"torn')
        with caplog.at_level(logging.WARNING, "orchestrator_state"):
            assert await store.run("n", handler, workflow_id="w") == EXPECTED
        assert handler.effect.calls == []
        assert [(event.step_ids, event.seq) for event in log.of(FellBack)] == [(("a",), newest.seq)]
        assert "damaged" in caplog.text
        state = await store.load_workflow_state(row.id)
    assert (state.steps["a"].outputs, state.context) == ("A", EXPECTED[-1])


@pytest.mark.parametrize("damage", ['{"torn', "{}"])
async def test_where_a_steps_change_of_the_context_is_lost_the_run_starts_with_the_stored_context(
    store: StateStore, damage: str
) -> None:
    handler = Counting()
    row = await interrupted(store, handler)
    await change_step(store, row.id, "a", context_patch=damage)
    *outputs, _ = await store.run("n", handler, workflow_id="w")
    assert outputs == EXPECTED[:-1]
    assert handler.effect.calls == []
    assert handler.started_with == [{"n": 0}, EXPECTED[-1]]


async def test_a_damaged_step_that_no_checkpoint_has_runs_again(database_url: str) -> None:
    handler = Counting()
    async with StateStore.open(database_url, checkpoint_every=0) as store:
        row = await interrupted(store, handler)
        await change_step(store, row.id, "b", outputs='{"torn')
        assert await store.run("n", handler, workflow_id="w") == EXPECTED
        assert handler.effect.calls == ["B"]
        assert (await store.load_workflow_state(row.id)).context == EXPECTED[-1]


async def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(store: StateStore) -> None:
    handler = Counting()
    row = await interrupted(store, handler)
    newest = (await checkpoints_of(store, "w"))[-1]
    async with store.begin() as uow:
        torn = update(checkpoints).where(checkpoints.c.id == newest.id).values(snapshot='{"torn')
        await uow.session.execute(torn)
    for step_id in ("a", "b"):
        await change_step(store, row.id, step_id, outputs='{"torn')
    assert await store.run("n", handler, workflow_id="w") == EXPECTED
    assert handler.effect.calls == ["B"], "the older checkpoint has a only"


async def test_a_damaged_context_is_put_together_again_from_the_first_one(store: StateStore) -> None:
    handler = Counting()
    row = await interrupted(store, handler)
    await change_row(store, row.id, context='{"torn')
    assert await store.run("n", handler, workflow_id="w") == EXPECTED
    assert handler.effect.calls == []


async def test_without_the_first_context_a_run_starts_with_the_newest_checkpoints(store: StateStore) -> None:
    handler = Counting()
    row = await interrupted(store, handler)
    await change_row(store, row.id, initial_context='{"torn')
    assert (await store.run("n", handler, workflow_id="w"))[:-1] == EXPECTED[:-1]
    assert handler.effect.calls == []
    assert handler.started_with == [{"n": 0}, EXPECTED[-1]]


async def test_a_context_that_was_edited_by_hand_survives_a_damaged_step(store: StateStore) -> None:
    handler = Counting()
    row = await interrupted(store, handler)
    state = await store.load_workflow_state(row.id)
    state.context = {"n": 100, "log": []}
    await store.save_workflow_state(state)
    await change_step(store, row.id, "a", outputs='{"torn')
    context = (await store.run("n", handler, workflow_id="w"))[-1]
    assert context == {"n": 102, "log": ["a", "b"]}


async def test_a_run_whose_context_is_no_dict_is_refused(store: StateStore) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n", context=[1, 2])
    await store.save_workflow_state(state)
    await store.create_checkpoint(
        Checkpoint(workflow_state_id=state.id, step_id="by hand", snapshot=state.to_snapshot())
    )
    with pytest.raises(CorruptPayload, match="no JSON object"):
        await store.run("n", finish, workflow_id="w")


async def test_a_damaged_context_without_a_checkpoint_fails_the_run_with_a_reason(database_url: str) -> None:
    handler = Counting()
    async with StateStore.open(database_url, checkpoint_every=0) as store:
        row = await interrupted(store, handler)
        await change_row(store, row.id, initial_context='{"torn')
        with pytest.raises(CorruptPayload, match="no checkpoint has one"):
            await store.run("n", handler, workflow_id="w")
        assert (await row_of(store, "w")).status == "failed"
        await change_row(store, row.id, initial_context=row.initial_context)
        assert await store.run("n", handler, workflow_id="w") == EXPECTED


async def test_recovery_resumes_damaged_runs_as_well(store: StateStore) -> None:
    handler = Counting()
    row = await interrupted(store, handler)
    await change_step(store, row.id, "b", outputs='{"torn')
    await store.resume(row.id)
    assert len((await store.recover({"n": handler})).completed) == 1
    assert list(await steps_of(store, "w")) == ["a", "b", "c"]
