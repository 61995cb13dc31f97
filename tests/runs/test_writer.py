"""Group commit: one transaction for many, an outcome for each."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import NoneType
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, insert, select

from orchestrator_state import ConfigurationError, LeaseLost, OrchestratorStateError, Run, StateStore, StoreUnavailable
from orchestrator_state.column_types import UtcTimestamp
from orchestrator_state.domain import utc_now
from orchestrator_state.models import checkpoints, step_states, workflow_states
from orchestrator_state.records import Ack, CheckpointRecord, FoldedContext, Lease, RunChange, SealedStep
from orchestrator_state.runs.journal.group_commit import MOST_CHARACTERS_IN_A_BATCH, MOST_IN_A_BATCH, GroupCommit
from tests.support.chance import dice
from tests.support.engines import own_engine
from tests.support.fated_commits import FatedCommits
from tests.support.running import count_rows, fetch, seconds
from tests.support.statements import traffic_of, without_the_fence

OWNER = uuid4()
TOO_LONG = "x" * 300
"""A step id that both databases refuse."""


async def leased(store: StateStore, count: int = 1, *, token: int = 1) -> list[Lease]:
    """Runs that OWNER holds."""
    now = utc_now()
    ids = [uuid4() for _ in range(count)]
    rows = [
        {
            "id": run_id,
            "workflow_id": str(run_id),
            "workflow_name": "w",
            "status": "running",
            "started_at": now,
            "updated_at": now,
            "context": "{}",
            "lease_owner": OWNER,
            "lease_token": token,
            "lease_expires_at": now + timedelta(hours=1),
        }
        for run_id in ids
    ]
    async with store.begin() as uow:
        await uow.session.execute(insert(workflow_states), rows)
    return [Lease(workflow_state_id=run_id, owner=OWNER, token=token, version=1) for run_id in ids]


def a_change(
    lease: Lease, step_id: str = "s", outputs: str = '"done"', *, position: int = 0, keep: int = 10
) -> RunChange:
    now = utc_now()
    step = SealedStep(
        workflow_state_id=lease.workflow_state_id,
        step_id=step_id,
        position=position,
        status="completed",
        started_at=now,
        completed_at=now,
        outputs=outputs,
        error=None,
        retry_count=0,
        context_patch=None,
        outputs_digest=None,
        error_digest=None,
        context_patch_digest=None,
        schema_version=None,
    )
    checkpoint = CheckpointRecord(id=uuid4(), step_id=step_id, timestamp=now, snapshot="{}", keep=keep)
    return RunChange(lease=lease, step=step, checkpoint=checkpoint)


def the_group_commit(store: StateStore) -> GroupCommit:
    return store._executor.group_commit


async def committed(store: StateStore, change: RunChange) -> Ack:
    """Waits for what it has sent, as a run does."""
    return await the_group_commit(store).send(change)


async def outcomes(store: StateStore, changes: list[RunChange]) -> list[Ack | BaseException]:
    return await asyncio.gather(*(committed(store, change) for change in changes), return_exceptions=True)


async def recorded(store: StateStore) -> set[UUID]:
    """The runs that have a step."""
    return {row.workflow_state_id for row in await fetch(store, select(step_states))}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[RunChange]]:
    """What was sent together, in order."""
    sent: list[list[RunChange]] = []
    commit = GroupCommit._commit

    async def noted(self: GroupCommit, changes: list[RunChange]) -> list[Ack | None]:
        sent.append(changes)
        return await commit(self, changes)

    monkeypatch.setattr(GroupCommit, "_commit", noted)
    return sent


class Held:
    """A writer's way to the database, closed until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = asyncio.Event(), asyncio.Event()
        commit = GroupCommit._commit

        async def held(group_commit: GroupCommit, changes: list[RunChange]) -> list[Ack | None]:
            self.reached.set()
            await self.opened.wait()
            return await commit(group_commit, changes)

        monkeypatch.setattr(GroupCommit, "_commit", held)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, batches: list[list[RunChange]]) -> Held:
    return Held(monkeypatch)


# --- one transaction for many ------------------------------------------------------------------------------------


async def test_what_waits_together_goes_together(store: StateStore, batches: list[list[RunChange]]) -> None:
    changes = [a_change(lease) for lease in await leased(store, 20)]
    with traffic_of(store) as traffic:
        acks = await outcomes(store, changes)
    assert acks == [Ack(request=None)] * 20
    assert batches == [changes]
    assert traffic.commits <= 3, "one, and asyncpg's questions about types that it has not met before"
    assert await recorded(store) == {change.lease.workflow_state_id for change in changes}


async def test_runs_that_began_a_moment_apart_fall_into_step(sqlite_url: str, batches: list[list[RunChange]]) -> None:
    async with StateStore.open(sqlite_url) as store:
        everybody = asyncio.Barrier(30)  # which lets the last ones through a turn of the loop before the others

        async def handler(run: Run) -> None:
            await everybody.wait()
            for n in range(10):
                await run.step("s", asyncio.sleep, 0, n)

        await asyncio.gather(*(store.run("order", handler, workflow_id=f"w-{n}") for n in range(30)))
    assert [len(batch) for batch in batches].count(30) >= 8, "all but the first and the last"


async def test_a_single_change_goes_at_once(store: StateStore, batches: list[list[RunChange]]) -> None:
    """No timer: it is on its way before anything else could have happened in the loop but two turns of it."""
    [lease] = await leased(store)
    waiting = asyncio.ensure_future(committed(store, a_change(lease)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(batches) == 1
    await waiting


async def test_every_column_of_a_change_arrives(store: StateStore) -> None:
    """The same rows, through the writer and through a session."""
    leases = await leased(store, 2)
    context = FoldedContext(context='{"a":1}', position=3)
    changes = [replace(a_change(lease, position=3), context=context) for lease in leases]
    changes = [
        replace(change, step=change.step._replace(context_patch="{}", error="e", retry_count=2)) for change in changes
    ]
    await committed(store, changes[0])
    async with store._transactions.begin() as uow:
        await uow.commits.commit(changes[1])
    for table in (workflow_states, step_states, checkpoints):
        names = [column for column in table.c if column.name not in ("id", "workflow_state_id", "workflow_id")]
        # When each came is the database's to say, whose clock moves on between the two.
        names = [column for column in names if not isinstance(column.type, type(UtcTimestamp))]
        key = table.c.id if table is workflow_states else table.c.workflow_state_id
        rows = [
            (await fetch(store, select(*names).where(key == lease.workflow_state_id)))[0]._mapping for lease in leases
        ]
        assert rows[0] == rows[1], table.name
    [row] = await fetch(store, select(workflow_states).where(workflow_states.c.id == leases[0].workflow_state_id))
    assert (row.context, row.initial_context, row.context_position, row.checkpoint_seq) == ('{"a":1}', "{}", 3, 1)


async def test_the_newest_checkpoints_are_kept(store: StateStore) -> None:
    leases = await leased(store, 3)
    for number in range(5):
        await outcomes(store, [a_change(lease, f"s{number}", keep=2) for lease in leases])
    rows = await fetch(store, select(checkpoints.c.seq, checkpoints.c.step_id).order_by(checkpoints.c.seq))
    assert [tuple(row) for row in rows] == [(4, "s3")] * 3 + [(5, "s4")] * 3


async def test_a_thousand_runs_at_once_lose_and_double_nothing(store: StateStore) -> None:
    leases = await leased(store, 1000)

    async def step_on(lease: Lease) -> None:
        for number in range(3):
            assert await committed(store, a_change(lease, f"s{number}", position=number)) == Ack(request=None)

    await asyncio.gather(*map(step_on, leases))
    assert await count_rows(store, "step_states") == await count_rows(store, "checkpoints") == 3000
    assert {row.checkpoint_seq for row in await fetch(store, select(workflow_states))} == {3}


# --- each its own outcome ----------------------------------------------------------------------------------------


async def test_a_stale_token_fails_alone(store: StateStore) -> None:
    leases = await leased(store, 9)
    stale = replace(leases[4], token=0)
    foreign = replace(leases[5], owner=uuid4())
    gone = Lease(workflow_state_id=uuid4(), owner=OWNER, token=1, version=1)
    changes = [a_change(lease) for lease in [*leases[:4], stale, foreign, gone, *leases[6:]]]
    results = await outcomes(store, changes)
    assert [type(result) for result in results] == [Ack] * 4 + [LeaseLost] * 3 + [Ack] * 3
    assert await recorded(store) == {lease.workflow_state_id for lease in [*leases[:4], *leases[6:]]}
    assert len({id(result) for result in results[4:7]}) == 3, "each has its own"


@pytest.mark.parametrize("way", ["the application's engine", "PgBouncer"])
async def test_past_a_session_or_through_one_the_outcomes_are_the_same(database_url: str, way: str) -> None:
    """Where the driver cannot be spoken to directly, the same statements go through a session."""
    engine = own_engine(database_url)
    options: dict[str, Any] = (
        {"engine": engine} if way != "PgBouncer" else {"database": database_url, "pgbouncer": True}
    )
    try:
        async with StateStore.open(**options) as store:
            assert not store._transactions.database.is_direct
            leases = await leased(store, 6)
            changes = [a_change(lease) for lease in (*leases[:2], replace(leases[2], token=0), *leases[3:])]
            changes[4] = a_change(leases[4], TOO_LONG)
            results = await outcomes(store, changes)
            assert [isinstance(result, Ack) for result in results] == [True, True, False, True, False, True]
            assert isinstance(results[2], LeaseLost)
            assert len(await recorded(store)) == 4
            again = [ack.already_recorded for ack in await outcomes(store, changes[:2]) if isinstance(ack, Ack)]
            assert again == [True, True]
    finally:
        await engine.dispose()


async def test_a_row_that_the_database_refuses_fails_alone(store: StateStore, batches: list[list[RunChange]]) -> None:
    leases = await leased(store, 16)
    changes = [a_change(lease, TOO_LONG if number in (3, 11) else "s") for number, lease in enumerate(leases)]
    results = await outcomes(store, changes)
    refused = [number for number, result in enumerate(results) if isinstance(result, OrchestratorStateError)]
    assert refused == [3, 11]
    assert not any(isinstance(results[number], StoreUnavailable) for number in refused)
    assert len(await recorded(store)) == 14
    assert len(batches) < 16, "halved, not one by one"


async def test_a_value_that_the_driver_refuses_fails_alone(store: StateStore) -> None:
    leases = await leased(store, 4)
    changes = [a_change(lease) for lease in leases]
    changes[2] = replace(changes[2], step=changes[2].step._replace(retry_count=2**70))
    results = await outcomes(store, changes)
    assert [isinstance(result, Ack) for result in results] == [True, True, False, True]
    assert not isinstance(results[2], StoreUnavailable), "another try would not help"


async def test_a_completed_step_is_never_written_again(store: StateStore) -> None:
    leases = await leased(store, 3)
    first = [a_change(lease, outputs="1") for lease in leases]
    await outcomes(store, first[:1])
    acks = await outcomes(store, [a_change(lease, outputs="2") for lease in leases])
    assert acks == [Ack(request=None, already_recorded=known) for known in (True, False, False)]
    outputs = {row.workflow_state_id: row.outputs for row in await fetch(store, select(step_states))}
    assert [outputs[lease.workflow_state_id] for lease in leases] == ["1", "2", "2"]


async def test_a_change_that_is_repeated_finds_itself(store: StateStore) -> None:
    [lease] = await leased(store)
    change = a_change(lease, keep=1)
    for known in (False, True):
        assert await committed(store, change) == Ack(request=None, already_recorded=known)
    assert await count_rows(store, "step_states") == await count_rows(store, "checkpoints") == 1


async def test_a_request_reaches_its_run_and_no_other(store: StateStore) -> None:
    leases = await leased(store, 3)
    async with store._transactions.begin() as uow:
        await uow.runs.leave_request(leases[1].workflow_state_id, "pause")
    acks = await outcomes(store, [a_change(lease) for lease in leases])
    assert [ack.request for ack in acks if isinstance(ack, Ack)] == [None, "pause", None]


async def test_checkpoints_of_older_software_are_numbered_first(store: StateStore) -> None:
    leases = await leased(store, 3)
    async with store.begin() as uow:
        for day in (2, 1):
            await uow.session.execute(
                insert(checkpoints).values(
                    id=uuid4(),
                    workflow_state_id=leases[1].workflow_state_id,
                    step_id=f"old {day}",
                    timestamp=utc_now().replace(year=2020, day=day),
                    snapshot="{}",
                )
            )
    await outcomes(store, [a_change(lease) for lease in leases])
    query = select(checkpoints).where(checkpoints.c.workflow_state_id == leases[1].workflow_state_id)
    rows = await fetch(store, query.order_by(checkpoints.c.seq))
    assert [(row.seq, row.step_id) for row in rows] == [(1, "old 1"), (2, "old 2"), (3, "s")]


async def test_neighbours_do_not_wait_for_a_row_that_somebody_has_locked(postgres_url: str) -> None:
    async with StateStore.open(postgres_url) as store, StateStore.open(postgres_url) as other:
        leases = await leased(store, 3)
        async with other._transactions.begin() as uow:
            await uow.runs.lock(leases[1].workflow_state_id)
            waiting = [asyncio.ensure_future(committed(store, a_change(lease))) for lease in leases]
            await asyncio.wait_for(asyncio.gather(waiting[0], waiting[2]), 10)
            assert not waiting[1].done()
            [later] = await leased(store)
            await asyncio.wait_for(committed(store, a_change(later)), 10)
        assert await waiting[1] == Ack(request=None)


async def test_a_batch_is_repeated_as_a_whole_when_the_database_gives_up(
    store: StateStore,
) -> None:
    leases = await leased(store, 5)
    commits = FatedCommits(store)
    commits.fates += ["answer lost"] * 2
    acks = await outcomes(store, [a_change(lease) for lease in leases])
    assert acks == [Ack(request=None, already_recorded=True)] * 5
    assert commits.faults == 2
    assert await count_rows(store, "checkpoints") == 5


async def test_a_batch_that_cannot_be_written_fails_for_each(
    database_url: str,
) -> None:
    async with StateStore.open(database_url, retry_timeout=seconds(0.2)) as store:
        leases = await leased(store, 3)
        FatedCommits(store).fates += ["answer lost"] * 1000
        errors = await outcomes(store, [a_change(lease) for lease in leases])
    assert [type(error) for error in errors] == [StoreUnavailable] * 3
    assert all(error.outcome_unknown for error in errors if isinstance(error, StoreUnavailable))


async def test_what_is_told_before_sending_may_stop_one_and_no_other(store: StateStore) -> None:
    leases = await leased(store, 3)

    def vanish() -> None:
        raise asyncio.CancelledError

    writing = [the_group_commit(store).send(a_change(leases[0]))]
    writing.append(the_group_commit(store).send(a_change(leases[1]), vanish))
    writing.append(the_group_commit(store).send(a_change(leases[2])))
    await asyncio.wait(writing)
    assert [type(future.exception()) for future in writing] == [NoneType, asyncio.CancelledError, NoneType]
    assert await recorded(store) == {leases[0].workflow_state_id, leases[2].workflow_state_id}


# --- the queue ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_the_way(store: StateStore, held: Held) -> AsyncIterator[None]:
    """While inside, every place on the way to the database is taken."""
    blockers = []
    for lease in await leased(store, the_group_commit(store)._most_batches):
        held.reached.clear()
        blockers.append(asyncio.ensure_future(committed(store, a_change(lease, "blocker"))))
        await held.reached.wait()
    try:
        yield
    finally:
        held.opened.set()
        await asyncio.gather(*blockers)


async def test_a_change_that_waits_is_written_although_its_caller_gave_up(
    store: StateStore, held: Held, batches: list[list[RunChange]]
) -> None:
    leases = await leased(store, 4)
    async with in_the_way(store, held):
        waiting = [asyncio.ensure_future(committed(store, a_change(lease))) for lease in leases]
        await asyncio.sleep(0)
        for number in (0, 2):
            waiting[number].cancel()
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting), "or memory would not know what the database holds"
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, False, True, False]
    assert [change.lease for change in batches[-1]] == leases


async def test_a_change_on_its_way_comes_to_its_end_although_its_caller_gave_up(store: StateStore, held: Held) -> None:
    leases = await leased(store, 2)
    waiting = [asyncio.ensure_future(committed(store, a_change(lease))) for lease in leases]
    await held.reached.wait()
    waiting[0].cancel()
    held.opened.set()
    await asyncio.wait(waiting)
    assert waiting[0].cancelled()
    assert await recorded(store) == {lease.workflow_state_id for lease in leases}


async def test_batches_are_bounded_and_in_order_of_arrival(
    store: StateStore, held: Held, batches: list[list[RunChange]]
) -> None:
    changes = [a_change(lease) for lease in await leased(store, 2 * MOST_IN_A_BATCH + 2)]
    async with in_the_way(store, held):
        waiting = [asyncio.ensure_future(committed(store, change)) for change in changes]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    sent = [batch for batch in batches if batch[0].step.step_id == "s"]
    assert [len(batch) for batch in sent] == [MOST_IN_A_BATCH, MOST_IN_A_BATCH, 2]
    assert [change for batch in sent for change in batch] == changes


async def test_batches_are_bounded_by_their_size(store: StateStore, held: Held, batches: list[list[RunChange]]) -> None:
    most = MOST_CHARACTERS_IN_A_BATCH
    sizes = [most * 2 // 5] * 3 + [most + 1, 100]
    changes = [
        a_change(lease, outputs=f'"{"x" * size}"') for lease, size in zip(await leased(store, 5), sizes, strict=True)
    ]
    async with in_the_way(store, held):
        waiting = [asyncio.ensure_future(committed(store, change)) for change in changes]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    sent = [[changes.index(change) for change in batch] for batch in batches if batch[0].step.step_id == "s"]
    assert sent == [[0, 1], [2], [3], [4]]


async def test_one_run_has_one_change_under_way_and_keeps_its_order(
    store: StateStore, batches: list[list[RunChange]]
) -> None:
    leases = await leased(store, 2)
    changes = [a_change(lease, f"s{number}", position=number) for number in range(4) for lease in leases]
    dice().shuffle(changes)
    assert await outcomes(store, changes) == [Ack(request=None)] * 8
    for batch in batches:
        assert len({change.lease for change in batch}) == len(batch)
    for lease in leases:
        sent = [change.step.step_id for batch in batches for change in batch if change.lease == lease]
        assert sent == [change.step.step_id for change in changes if change.lease == lease]


async def test_closing_writes_what_was_taken_and_takes_no_more(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    store = await StateStore.open(database_url)
    leases = await leased(store, 4)
    async with in_the_way(store, held):
        waiting = [asyncio.ensure_future(committed(store, a_change(lease))) for lease in leases]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(StoreUnavailable):
            await committed(store, a_change(leases[0], "late"))
    assert await asyncio.gather(*waiting) == [Ack(request=None)] * 4
    await closing
    async with StateStore.open(database_url) as again:
        assert len(await recorded(again)) == 4 + the_group_commit(store)._most_batches


async def test_an_idle_writer_has_no_task(store: StateStore) -> None:
    before = asyncio.all_tasks()
    await outcomes(store, [a_change(lease) for lease in await leased(store, 5)])
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_step_inside_a_unit_of_the_same_task_is_refused_and_does_not_wait_for_itself(store: StateStore) -> None:
    [lease] = await leased(store)
    async with store.begin():
        with pytest.raises(ConfigurationError):
            await committed(store, a_change(lease))


# --- the harness can fail ----------------------------------------------------------------------------------------


async def test_a_stale_write_would_be_seen_if_the_token_were_not_in_the_where_clause(
    store: StateStore,
) -> None:
    engine = store._transactions.database._pool.sync_engine
    event.listen(engine, "before_cursor_execute", without_the_fence, retval=True)
    [lease] = await leased(store)
    await committed(store, a_change(replace(lease, token=0)))
    assert await recorded(store) == {lease.workflow_state_id}
