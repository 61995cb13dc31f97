"""What calls of models have used: committed with the step, counted once, added up by run, name, user, model and day."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from orchestrator_state import ConfigurationError, InvalidPayload, LeaseLost, Run, StateStore, UsageTotal, hooks
from orchestrator_state.models import run_usage
from tests.support.fated_commits import FatedCommits
from tests.support.lost_answers import answer_lost
from tests.support.running import LONG_AGO, change_row, count_rows, fetch, vanish
from tests.support.statements import traffic_of


async def total_of(store: StateStore, **filters: Any) -> UsageTotal:
    [total] = await store.usage(**filters)
    return total


def uses(run: Run, tokens: int = 10, result: Any = None, **options: Any) -> Callable[[], Any]:
    async def call() -> Any:
        usual: dict[str, Any] = {"model": "m", "input_tokens": tokens, "output_tokens": 1, "cost": Decimal("0.5")}
        run.record_usage(**usual | options)
        if isinstance(result, Exception):
            raise result
        return result

    return call


async def test_it_is_committed_with_the_step_and_a_replay_counts_nothing(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.step("a", uses(run))
        seen.append((await total_of(store)).input_tokens)
        await run.step("b", uses(run, 5))
        if len(seen) == 1:
            vanish()

    seen: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    await store.run("n", handler, workflow_id="w")
    assert seen == [10, 15]
    total = await total_of(store)
    assert (total.calls, total.input_tokens, total.output_tokens, total.cost) == (2, 15, 2, Decimal(1))
    assert (total.failed_calls, total.failed_cost, total.unpriced) == (0, Decimal(0), 0)


async def test_it_costs_no_statement_where_nothing_is_recorded_and_no_commit_where_it_is(
    store: StateStore, backend: str
) -> None:
    async def handler(run: Run) -> None:
        await run.step("warm", lambda: None)
        for fn in (lambda: None, uses(run)):
            with traffic_of(store) as traffic:
                await run.step("a", fn)
            costs.append(traffic)

    costs: list[Any] = []
    await store.run("n", handler)
    assert [cost.commits for cost in costs] == [1, 1]
    assert [len(cost.statements) for cost in costs] == ([1, 1] if backend == "postgres" else [4, 5])


async def test_many_runs_that_commit_together_have_each_its_own(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        number = int(run.workflow_id)
        await run.step("a", uses(run, number) if number % 2 else lambda: None)

    await asyncio.gather(*(store.run("n", handler, workflow_id=str(number)) for number in range(20)))
    totals = await store.usage(by="run")
    assert {(total.workflow_id, total.input_tokens) for total in totals} == {(str(n), n) for n in range(1, 20, 2)}


async def test_of_a_retried_step_the_call_counts_that_gave_its_result(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        def call() -> None:  # in a thread
            Run.current().record_usage(model="m", input_tokens=7, cost=2)
            calls.append(1)
            if len(calls) < 3:
                raise OSError

        await run.step("a", call, retry=3)

    calls: list[int] = []
    await store.run("n", handler)
    total = await total_of(store)
    assert (total.calls, total.input_tokens, total.cost) == (1, 7, Decimal(2))
    assert (total.failed_calls, total.failed_input_tokens, total.failed_cost) == (2, 14, Decimal(4))


async def test_what_a_failed_step_has_used_is_kept_as_failed(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(OSError, match="no"):
            await run.step("a", uses(run, result=OSError("no")))
        with pytest.raises(InvalidPayload):
            await run.step("b", uses(run, result={1, 2}, cost=1))

    with pytest.raises(Exception, match="outputs"):
        await store.run("n", lambda run: run.step("a", uses(run, result=object())))
    await store.run("n", handler)
    total = await total_of(store)
    assert (total.calls, total.failed_calls) == (0, 3)


async def test_what_a_cancelled_step_has_used_goes_with_the_next_commit_or_the_end(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        async def call() -> None:
            run.record_usage(model="m", input_tokens=1)
            await asyncio.Event().wait()

        for step in ("a", "b"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await run.step(step, call)
            if step == "a":
                await run.step("next", lambda: None)
                seen.append((await total_of(store)).failed_calls)

    seen: list[int] = []
    await store.run("n", handler)
    assert seen == [1]
    assert (await total_of(store)).failed_calls == 2


async def test_branches_record_for_their_own_steps(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        async def call(number: int) -> None:
            await asyncio.to_thread(lambda: Run.current().record_usage(model=f"m{number}", input_tokens=number))
            if number == 0:
                await go.wait()
            else:
                go.set()

        go = asyncio.Event()
        await asyncio.gather(*(run.step(f"s{number}", call, number) for number in range(3)))

    await store.run("n", handler)
    rows = await fetch(store, run_usage.select())
    assert {(row.step_id, row.model, row.failed) for row in rows} == {(f"s{n}", f"m{n}", False) for n in range(3)}


async def test_the_rows_of_a_transact_and_what_it_used_commit_together(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        async def call(session: Any, tokens: int) -> None:
            await session.execute(text("SELECT 1"))
            run.record_usage(model="m", input_tokens=tokens)

        await run.transact("a", call, 3)
        await run.transact("b", call, 4)

    with answer_lost(store, commit=2) as _:
        await store.run("n", handler, workflow_id="w")
    total = await total_of(store)
    assert (total.calls + total.failed_calls, total.input_tokens) == (2, 7)


async def test_a_commit_whose_answer_is_lost_is_counted_once(store: StateStore) -> None:

    async def handler(run: Run) -> None:
        commits.fates.append("answer lost")
        await run.step("a", uses(run))
        await run.step("b", uses(run))

    commits = FatedCommits(store)
    await store.run("n", handler)
    assert commits.faults == 1
    total = await total_of(store)
    assert (total.calls, total.failed_calls) == (2, 0)


async def test_outside_of_a_step_and_after_it_is_an_error_that_says_what_to_do(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        with pytest.raises(ConfigurationError, match=r"function of a step.*run\.step"):
            run.record_usage(model="m")

        async def leaks() -> None:
            async def late() -> None:
                await over.wait()
                run.record_usage(model="m", input_tokens=5)

            tasks.append(asyncio.create_task(late()))

        over = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        await run.step("a", leaks)
        over.set()
        with pytest.raises(ConfigurationError, match="after the end of step 'a'"):
            await tasks[0]

        async def other() -> None:
            with pytest.raises(ConfigurationError, match="function of a step"):
                await store.run("other", records)

        async def records(inner: Run) -> None:
            inner.record_usage(model="m")

        await run.step("b", other)

    await store.run("n", handler)
    assert await count_rows(store, "run_usage") == 0


async def test_a_thread_that_was_given_up_on_records_what_failed(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        def call() -> None:
            calls.append(1)
            if len(calls) == 1:
                is_over.wait()
                run.record_usage(model="m", input_tokens=1)
                has_recorded.set()
            else:
                is_over.set()
                has_recorded.wait()
                run.record_usage(model="m", input_tokens=100)

        await run.step("a", call, retry=2, timeout=0.3 if not calls else None)

    calls: list[int] = []
    is_over, has_recorded = threading.Event(), threading.Event()
    await store.run("n", handler)
    total = await total_of(store)
    assert (total.input_tokens, total.failed_input_tokens) == (100, 1)


async def test_a_worker_that_has_lost_its_lease_has_spent_all_the_same(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        async def call() -> None:
            run.record_usage(model="m", input_tokens=1)
            await change_row(store, run.id, lease_token=99)

        await run.step("a", call)

    with pytest.raises(LeaseLost):
        await store.run("n", handler)
    total = await total_of(store)
    assert (total.calls, total.failed_calls) == (0, 1)


async def test_totals_by_everything(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.step("a", uses(run, model="big", cost=Decimal("0.000000001")))
        await run.step("b", uses(run, model="small", cost=None))

    for name, user in (("x", "ann"), ("x", "bob"), ("y", None)):
        await store.run(name, handler, user_id=user)
    assert [(each.name, each.calls) for each in await store.usage("name")] == [("x", 4), ("y", 2)]
    assert [(each.user_id, each.unpriced) for each in await store.usage("user", name="x")] == [("ann", 1), ("bob", 1)]
    assert [(each.model, each.cost) for each in await store.usage("model")] == [
        ("big", Decimal("0.000000003")),
        ("small", 0),
    ]
    today = datetime.now(UTC).date()
    [day] = await store.usage("day", until=datetime.now(UTC) + timedelta(days=1))
    assert day.day in (today, today - timedelta(days=1))
    assert day.calls == 6
    assert {(each.user_id, each.model) for each in await store.usage(["model", "user"], limit=2)} <= {
        (user, model) for user in ("ann", "bob", None) for model in ("big", "small")
    }
    assert (await total_of(store, since=datetime.now(UTC) + timedelta(days=1))).calls == 0
    [run] = await store.list_runs(name="y")
    assert (await total_of(store, workflow_state_id=run.id)).calls == 2
    assert (await total_of(store, model="none")).cost == 0


async def test_another_namespace_counts_for_itself(store: StateStore, database_url: str) -> None:
    await store.run("n", lambda run: run.step("a", uses(run)))
    async with StateStore.open(database_url, namespace="other") as other:
        assert (await total_of(other)).calls == 0


async def test_bills_outlive_runs_until_their_user_is_erased(store: StateStore) -> None:
    for user in ("ann", "bob"):
        await store.run("n", lambda run: run.step("a", uses(run)), user_id=user)
    for run in await store.list_runs():
        if run.user_id == "ann":
            await store.delete(run.id)
    assert (await total_of(store)).calls == 2
    await store.run("n", lambda run: run.step("a", uses(run)), user_id="ann")
    assert (await store.erase(user_id="ann", dry_run=True)).usage == 2
    assert (await store.erase(user_id="ann")).usage == 2
    assert [each.user_id for each in await store.usage("user")] == ["bob"]


async def test_what_is_owed_is_not_written_for_a_run_that_was_erased(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        async def call() -> None:
            run.record_usage(model="m", input_tokens=1)
            await store.erase(user_id="ann", force=True)

        await run.step("a", call)

    with pytest.raises(LeaseLost):
        await store.run("n", handler, user_id="ann")
    assert await count_rows(store, "run_usage") == 0


async def test_a_fork_copies_none_and_a_step_that_was_rewound_spends_again(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await run.step("a", uses(run))
        await run.step("b", uses(run))

    await store.run("n", handler, workflow_id="w")
    [run] = await store.list_runs()
    checkpoint = (await store.list_checkpoints(run.id)).checkpoints[-1]
    fork = await store.fork(checkpoint.id)
    assert (await total_of(store)).calls == 2
    await store.recover({"n": handler})
    assert (await total_of(store, workflow_state_id=fork.id)).calls == 1
    await store.rewind(checkpoint.id)
    await store.recover({"n": handler})
    assert (await total_of(store, workflow_state_id=run.id)).calls == 3


BAD = [
    ({"model": ""}, "model"),
    ({"model": "x" * 256}, "model"),
    ({"model": "\0"}, "model"),
    ({"model": 3}, "model"),
    ({"provider": ""}, "provider"),
    ({"input_tokens": -1}, "input_tokens"),
    ({"input_tokens": True}, "input_tokens"),
    ({"output_tokens": 1.5}, "output_tokens"),
    ({"output_tokens": 10**13}, "output_tokens"),
    ({"cost": -1}, "cost"),
    ({"cost": True}, "cost"),
    ({"cost": "1"}, "cost"),
    ({"cost": float("nan")}, "cost"),
    ({"cost": Decimal("Infinity")}, "cost"),
    ({"cost": Decimal("sNaN")}, "cost"),
    ({"cost": 10**7}, "cost"),
    ({"cost": Decimal("1e-999999")}, None),
]


@pytest.mark.parametrize(("options", "path"), BAD, ids=str)
async def test_what_cannot_be_recorded_is_refused(store: StateStore, options: dict[str, Any], path: str | None) -> None:
    async def handler(run: Run) -> None:
        async def call() -> None:
            if path is None:
                run.record_usage(**{"model": "m"} | options)
                return
            with pytest.raises(InvalidPayload) as refused:
                run.record_usage(**{"model": "m"} | options)
            assert refused.value.path == path

        await run.step("a", call)

    await store.run("n", handler)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"by": "hour"}, "by"),
        ({"by": 3}, "by"),
        ({"by": ["run", []]}, "by"),
        ({"limit": 0}, "limit"),
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001
        ({"workflow_state_id": "x"}, "workflow_state_id"),
        ({"user_id": "\0"}, "user_id"),
    ],
)
async def test_what_cannot_be_asked_is_refused(store: StateStore, options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        await store.usage(**options)
    assert refused.value.path == path


async def test_a_hook_hears_of_it_once_it_is_durable(database_url: str) -> None:
    class Listens:
        def on_event(self, event: hooks.Event) -> None:
            if isinstance(event, hooks.UsageRecorded):
                heard.append(event)

    heard: list[hooks.UsageRecorded] = []
    async with StateStore.open(database_url, hook=Listens()) as store:
        await store.run("n", lambda run: run.step("a", uses(run, provider="p")))
    assert [(each.model, each.provider, each.cost, each.failed) for each in heard] == [
        ("m", "p", Decimal("0.5"), False)
    ]


async def test_prices_come_from_genai_prices_and_its_faults_fail_no_step(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import genai_prices

    async def handler(run: Run) -> None:
        await run.step("a", uses(run, 1_000_000, model="gpt-4o", cost=None))
        await run.step("b", uses(run, model="nobody-knows-it", cost=None))
        monkeypatch.setattr(genai_prices, "calc_price", lambda *_, **__: 1 / 0)
        await run.step("c", uses(run, model="gpt-4o", cost=None))

    await store.run("n", handler)
    totals = {each.model: each for each in await store.usage("model")}
    assert totals["gpt-4o"].cost > 1
    assert totals["gpt-4o"].unpriced == 1
    assert totals["nobody-knows-it"].unpriced == 1


async def test_old_rows_of_a_day_are_found_by_it(store: StateStore) -> None:
    await store.run("n", lambda run: run.step("a", uses(run)))
    async with store.begin() as uow:
        await uow.session.execute(run_usage.update().values(recorded_at=LONG_AGO))
    [total] = await store.usage("day")
    assert total.day == LONG_AGO.date()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21])
async def test_of_a_step_that_a_handler_left_behind_the_record_says_what_became_of_it(
    store: StateStore, turns: int
) -> None:
    async def handler(run: Run) -> None:
        async def call() -> None:
            run.record_usage(model="m", input_tokens=1)
            has_recorded.set()
            for _ in range(turns):
                await asyncio.sleep(0)

        has_recorded = asyncio.Event()
        left.append(asyncio.ensure_future(run.step("a", call)))
        await has_recorded.wait()

    left: list[asyncio.Future[Any]] = []
    await store.run("n", handler)
    await asyncio.wait(left)
    [run] = await store.list_runs()
    [row] = await fetch(store, run_usage.select())
    assert row.failed == (not (await store.get_run(run.id)).timeline)


async def test_names_with_anything_in_them_are_kept_as_they_are(store: StateStore) -> None:
    name = "\"'\\ \x1b[2J\u202e {}[],\N{SNOWMAN}\U0001f600"

    async def handler(run: Run) -> None:
        await run.step(name, uses(run, model=name, provider=name))

    await asyncio.gather(*(store.run(name, handler, workflow_id=f"{name}{n}", user_id=name) for n in range(3)))
    [total] = await store.usage(["name", "user", "model"])
    assert (total.name, total.user_id, total.model, total.calls) == (name, name, name, 3)
    rows = await fetch(store, run_usage.select())
    assert {(row.step_id, row.provider) for row in rows} == {(name, name)}
    with pytest.raises(InvalidPayload):
        await store.run("n", lambda run: run.step("a", uses(run, model="\ud800")))


async def test_it_commits_on_an_engine_of_the_applications_too(database_url: str, backend: str) -> None:
    driver = "postgresql+asyncpg" if backend == "postgres" else "sqlite+aiosqlite"
    engine = create_async_engine(f"{driver}:{database_url.split(':', 1)[1]}")
    try:
        async with StateStore.open(engine=engine) as store:

            async def handler(run: Run) -> None:
                with answer_lost(store):
                    await run.step("a", uses(run))
                await run.step("b", uses(run))

            await store.run("n", handler)
            total = await total_of(store)
            assert (total.calls, total.failed_calls) == (2, 0)
    finally:
        await engine.dispose()
