"""Every argument of every call: what is of a wrong kind is refused by an error of ours, before any SQL.

A call refuses an argument before it goes to the database, so that no database has a say in the words.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, cast
from uuid import uuid4

import pytest

from orchestrator_state import (
    AesGcm,
    BlobStore,
    KeyRing,
    Payloads,
    Retry,
    Run,
    StateSchema,
    StateStore,
    UnitOfWork,
    Worker,
    WorkflowNotFound,
    Zstd,
)
from tests.support.odd_values import Array, Odder, OddId, OddInt, OddText, but, refused
from tests.support.running import Effect, steps_of
from tests.support.statements import traffic_of
from tests.support.workflows import a_workflow, checkpointed, saved

Call = Callable[[StateStore, Any], Any]


async def steps(run: Run) -> int:
    return await run.step("s", lambda: 1)


async def written(_: Any) -> None: ...


ITERABLE: Final[tuple[type, ...]] = (list, dict, tuple, str, bytes, type(iter([])))
NUMBER: Final = (int, float, bool, timedelta)
WRONG: dict[str, tuple[list[Any], Call]] = {
    "save": (but(), lambda store, odd: store.save_workflow_state(odd)),
    "create_checkpoint": (but(), lambda store, odd: store.create_checkpoint(odd)),
    "load": (but(), lambda store, odd: store.load_workflow_state(odd)),
    "restore": (but(), lambda store, odd: store.restore_from_checkpoint(odd)),
    "signal": (but(), lambda store, odd: store.signal(odd, "go")),
    "cancel": (but(), lambda store, odd: store.cancel(odd)),
    "fork": (but(), lambda store, odd: store.fork(odd)),
    "delete_old_states": (but(timedelta), lambda store, odd: store.delete_old_states(odd)),
    "progress of a deletion": (but(type(None), type), lambda store, odd: store.prune_checkpoints(keep=1, progress=odd)),
    "progress of verify": (but(type(None), type), lambda store, odd: store.verify(progress=odd)),
    "progress of rekey": (but(type(None), type), lambda store, odd: store.rekey(progress=odd)),
    "on_damaged": (but(type(None), type), lambda store, odd: store.list_active_workflows(on_damaged=odd)),
    "name of a run": (but(), lambda store, odd: store.run(odd, steps)),
    "name of a start": (but(), lambda store, odd: store.start(odd)),
    "returns": ([5, "int", "x" * 300, object(), Odder()], lambda store, odd: store.run("n", steps, returns=odd)),
    "handlers": (but(dict), lambda store, odd: store.recover(odd)),
    "handlers of a worker": (but(), Worker),
    "name of a handler": ([None, 5, b"n", (), "", "x" * 300], lambda store, odd: store.recover({odd: steps})),
    "concurrency": (but(int), lambda store, odd: store.recover({"n": steps}, concurrency=odd)),
    "concurrency of a worker": (but(int), lambda store, odd: Worker(store, {"n": steps}, concurrency=odd)),
    "store of a worker": (but(), lambda _, odd: Worker(odd, {"n": steps})),
    "payloads": (but(), lambda _, odd: StateStore.open(":memory:", payloads=odd)),
    "schemas": (but(*ITERABLE), lambda _, odd: StateStore.open(":memory:", schemas=odd)),
    "hook": (but(type(None), list, tuple), lambda _, odd: StateStore.open(":memory:", hook=odd)),
    "name of a schema": (but(), lambda _, odd: StateSchema(odd)),
    "outputs of a schema": (but(type(None), dict), lambda _, odd: StateSchema("n", outputs=odd)),
    "codecs": (but(*ITERABLE), lambda _, odd: Payloads(odd)),
    "blobs": (but(type(None)), lambda _, odd: Payloads(blobs=odd)),
    "keys": (but(), lambda _, odd: KeyRing(odd, primary="k")),
    "ring": (but(), lambda _, odd: AesGcm(odd)),
    "level": (but(int), lambda _, odd: Zstd(odd)),
    "above": (but(int), lambda _, odd: BlobStore("memory://x", above=odd)),
    "timeout of blobs": (but(timedelta), lambda _, odd: BlobStore("memory://x", timeout=odd)),
    "find": (but(str), lambda store, odd: store.load_workflow_state_by_workflow_id(odd)),
    "latest": (but(), lambda store, odd: store.get_latest_checkpoint(odd)),
    "pause": (but(), lambda store, odd: store.pause(odd)),
    "resume": (but(), lambda store, odd: store.resume(odd)),
    "rewind": (but(), lambda store, odd: store.rewind(odd)),
    "keep": (but(int, float), lambda store, odd: store.prune_checkpoints(keep=odd)),
    "whose checkpoints": (but(), lambda store, odd: store.cleanup_old_checkpoints(odd)),
    "keep of one": (but(int, float), lambda store, odd: store.cleanup_old_checkpoints(uuid4(), keep=odd)),
    "age of garbage": (but(*NUMBER), lambda store, odd: store.collect_garbage(odd)),
    "timeout of a check": (but(*NUMBER), lambda store, odd: store.health_check(odd)),
    "load of verify": (but(bool), lambda store, odd: store.verify(load=odd)),
    "dry_run": (but(bool), lambda store, odd: store.rekey(dry_run=odd)),
    "strict": (but(bool), lambda store, odd: store.run("n", steps, strict=odd)),
    "wait": (but(*NUMBER, type(None)), lambda store, odd: store.run("n", steps, wait=odd)),
    "id of a start": (but(type(None)), lambda store, odd: store.start("n", workflow_id=odd)),
    "user of a start": (but(type(None)), lambda store, odd: store.start("n", user_id=odd)),
    "key of a start": (but(type(None)), lambda store, odd: store.start("n", idempotency_key=odd)),
    "context of a start": (but(type(None), dict), lambda store, odd: store.start("n", context=odd)),
    "state of a start": (but(type(None)), lambda store, odd: store.start("n", state=odd)),
    "name of a signal": (but(), lambda store, odd: store.signal(uuid4(), odd)),
    "name of a fork": (but(type(None)), lambda store, odd: store.fork(uuid4(), workflow_id=odd)),
    "session of a unit": (but(), lambda store, odd: store.unit_of_work(odd)),
    "migrate": (but(bool, type(None)), lambda _, odd: StateStore.open(":memory:", migrate=odd)),
    "command_timeout": (
        [timedelta(days=11), timedelta.max],
        lambda _, odd: StateStore.open(":memory:", command_timeout=odd),
    ),
    "lock_timeout": ([timedelta(days=11), timedelta.max], lambda _, odd: StateStore.open(":memory:", lock_timeout=odd)),
    "poll": (but(*NUMBER), lambda store, odd: Worker(store, {"n": steps}, poll=odd)),
    "grace": (but(*NUMBER), lambda store, odd: Worker(store, {"n": steps}, grace=odd)),
    "handle_signals": (but(bool), lambda store, odd: Worker(store, {"n": steps}, handle_signals=odd)),
    "pause of a retry": (but(*NUMBER), lambda _, odd: Retry(wait_initial=odd)),
    "attempts of a retry": (but(int), lambda _, odd: Retry(attempts=odd)),
    "kinds of a retry": (but(type, tuple), lambda _, odd: Retry(on=odd)),
    "version of a schema": (but(), lambda _, odd: StateSchema("n", version=odd)),
    "key of outputs": ([None, 5, b"n", (), "", "x" * 300], lambda _, odd: StateSchema("n", outputs={odd: int})),
    "version of an upcaster": (but(), lambda _, odd: StateSchema("n", version=3).upcast(odd)(str)),
    "an upcaster": (but(type), lambda _, odd: StateSchema("n", version=3).upcast(1)(odd)),
    "step of an upcaster": (but(), lambda _, odd: StateSchema("n", version=3).upcast_outputs(odd, 1)(str)),
    "strict of payloads": (but(bool), lambda _, odd: Payloads(strict=odd)),
    "primary": (but(), lambda _, odd: KeyRing({"k": bytes(32)}, primary=odd)),
    "namespace of a ring": (
        [*but(str), "\ud800"],
        lambda _, odd: KeyRing({"k": bytes(32)}, primary="k").for_namespace(odd),
    ),
    "threshold": (but(int), lambda _, odd: Zstd(threshold=odd)),
    "a level that cannot be printed": ([10**5000], lambda _, odd: Zstd(odd)),
    "place of blobs": ([*but(str), "", "a\0b", "\ud800"], lambda _, odd: BlobStore(odd)),
}
IN_A_UNIT: dict[str, tuple[list[Any], Callable[[UnitOfWork, Any], Any]]] = {
    "save": (but(), lambda unit, odd: unit.workflows.save(odd)),
    "get": (but(), lambda unit, odd: unit.workflows.get(odd)),
    "find by id": (but(str), lambda unit, odd: unit.workflows.find_by_workflow_id(odd)),
    "on_damaged": (but(type(None), type), lambda unit, odd: unit.workflows.list_active(odd)),
    "delete": (but(list, tuple), lambda unit, odd: unit.workflows.delete(odd)),
    "delete one": (but(), lambda unit, odd: unit.workflows.delete([odd])),
    "older_than to count": (but(), lambda unit, odd: unit.workflows.count_finished(older_than=odd)),
    "older_than": (but(), lambda unit, odd: unit.workflows.delete_finished(older_than=odd, limit=1)),
    "limit": (
        but(int, float),
        lambda unit, odd: unit.workflows.delete_finished(older_than=datetime(2020, 1, 1, tzinfo=UTC), limit=odd),
    ),
    "list steps": (but(), lambda unit, odd: unit.steps.list(odd)),
    "step": (but(str), lambda unit, odd: unit.steps.get(uuid4(), odd)),
    "step of": (but(), lambda unit, odd: unit.steps.get(odd, "s")),
    "add": (but(), lambda unit, odd: unit.checkpoints.add(odd)),
    "checkpoint": (but(), lambda unit, odd: unit.checkpoints.get(odd)),
    "latest": (but(), lambda unit, odd: unit.checkpoints.find_latest(odd)),
    "list": (but(), lambda unit, odd: unit.checkpoints.list(odd)),
    "prune": (but(), lambda unit, odd: unit.checkpoints.prune(odd, keep=1)),
    "keep": (but(int, float), lambda unit, odd: unit.checkpoints.prune(uuid4(), keep=odd)),
    "namespace": (but(), lambda unit, odd: UnitOfWork(unit.session, namespace=odd)),
    "schema": (but(type(None)), lambda unit, odd: UnitOfWork(unit.session, schema=odd)),
    "payloads": (but(type(None)), lambda unit, odd: UnitOfWork(unit.session, payloads=odd)),
    "schemas": (but(*ITERABLE), lambda unit, odd: UnitOfWork(unit.session, schemas=odd)),
}
IN_A_RUN: dict[str, tuple[list[Any], Callable[[Run, Any], Any]]] = {
    "step id": (but(), lambda run, odd: run.step(odd, Effect())),
    "on_unknown": ([None, 5, "later", True, OddInt(1), Array()], lambda r, odd: r.step("s", Effect(), on_unknown=odd)),
    "retry": (but(type(None), int), lambda run, odd: run.step("s", Effect(), retry=odd)),
    "timeout": (but(*NUMBER, type(None)), lambda run, odd: run.step("s", Effect(), timeout=odd)),
    "step id of transact": (but(), lambda run, odd: run.transact(odd, written)),
    "label": (but(), lambda run, odd: run.checkpoint(odd)),
    "key": (but(str), lambda run, odd: run.append(odd, 1)),
    "duration": (but(*NUMBER), lambda run, odd: run.sleep(odd)),
    "name of a signal": (but(), lambda run, odd: run.wait_for(odd)),
    "timeout of a signal": (but(*NUMBER, type(None)), lambda run, odd: run.wait_for("x", odd)),
    "name of a child": (but(), lambda run, odd: run.child(odd, steps)),
    "context of a child": (but(type(None), dict), lambda run, odd: run.child("c", steps, context=odd)),
    "state of a child": (but(type(None)), lambda run, odd: run.child("c", steps, state=odd)),
}


async def all_are_refused(of: Any, table: dict[str, tuple[list[Any], Callable[[Any, Any], Any]]]) -> None:
    for argument, (values, call) in table.items():
        for number, odd in enumerate(values):
            about = f"{argument}: {number}, a {type(odd).__name__}"
            assert str(await refused(partial(call, of, odd), about)).encode(), "it can be printed"


PARTS = 4  # several arguments have one store, and so it is tested, too, that it goes on


@pytest.mark.parametrize("part", range(PARTS))
async def test_an_argument_of_a_wrong_kind_is_refused_before_any_sql(store: StateStore, part: int) -> None:
    names = list(WRONG)[part::PARTS]
    with traffic_of(store) as traffic:
        await all_are_refused(store, {name: WRONG[name] for name in names})
    assert traffic.statements == []
    assert await store.list_active_workflows() == []
    assert store._transactions.database._pool.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_unit_refuses_an_argument_of_a_wrong_kind_before_any_sql_and_commits(store: StateStore) -> None:
    async with store.begin() as unit:
        await unit.workflows.save(state := a_workflow())
        with traffic_of(store) as traffic:
            await all_are_refused(unit, IN_A_UNIT)
        assert traffic.statements == []
    assert await store.load_workflow_state(state.id) == state


async def test_a_run_refuses_an_argument_of_a_wrong_kind_before_any_sql_and_goes_on(store: StateStore) -> None:
    async def handler(run: Run) -> int:
        with traffic_of(store) as traffic:
            await all_are_refused(run, IN_A_RUN)
        assert traffic.statements == []
        return await run.step("goes on", lambda: 1)

    assert await store.run("n", handler, workflow_id="w") == 1
    assert list(await steps_of(store, "w")) == ["goes on"]


async def test_what_is_of_a_subclass_is_taken_for_what_python_has_of_it(store: StateStore) -> None:
    state = await saved(store, "load", workflow_id="w")
    checkpoint = await checkpointed(store, state)
    mine = OddId(int=state.id.int)
    assert await store.load_workflow_state(mine) == state
    assert await store.load_workflow_state(OddText(state.id)) == state
    assert await store.load_workflow_state_by_workflow_id(OddText("w")) == state
    assert await store.get_latest_checkpoint(mine) == checkpoint
    await store.signal(mine, OddText("go"))
    assert (await store.fork(OddId(int=checkpoint.id.int), workflow_id=OddText("f"))).workflow_id == "f"
    with pytest.raises(WorkflowNotFound):
        await store.load_workflow_state(OddId(int=1))
    async with store.begin() as unit:
        assert await unit.steps.get(mine, OddText("load")) == state.steps["load"]
        assert await unit.checkpoints.prune(mine, keep=OddInt(3)) == 0
        await unit.workflows.delete([mine])

    async def handler(run: Run) -> Any:
        await run.sleep(OddInt(0))
        return await run.step(OddText("s"), Effect(), 1, on_unknown=cast("Any", OddText("retry")))

    assert await store.run(OddText("n"), handler, workflow_id="r") == 1
    assert list(await steps_of(store, "r")) == ["sleep", "s"]


async def test_an_iterable_that_fails_halfway_writes_nothing(store: StateStore) -> None:
    class Halfway(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield state.id
            raise ZeroDivisionError

    state = await saved(store)
    with traffic_of(store) as traffic, pytest.raises(ZeroDivisionError):
        async with store.begin() as unit:
            await unit.workflows.delete(Halfway([1, 2]))
    assert not any("DELETE" in statement for statement in traffic.statements)
    assert await store.load_workflow_state(state.id) == state
