"""What newcomers do wrong: a clear error of ours before any SQL, the same on both databases, and nothing is lost."""

import asyncio
import gc
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from orchestrator_state import (
    ConfigurationError,
    LeaseHeld,
    Run,
    StateStore,
    Worker,
)
from tests.support.cases import case
from tests.support.odd_values import Odder, but, refused
from tests.support.running import Effect, row_of, steps_of
from tests.support.workflows import checkpointed, saved


async def steps(run: Run) -> int:
    return await run.step("s", lambda: 1)


def in_a_run(store: StateStore, call: Callable[[Run], Any]) -> Any:
    async def handler(run: Run) -> Any:
        return await call(run)

    return store.run("n", handler)


Call = Callable[[StateStore, Any], Any]
NO_FUNCTIONS = but(type, float)
NOT_CALLABLE: dict[str, Call] = {
    "store.run": lambda store, odd: store.run("n", odd),
    "store.recover": lambda store, odd: store.recover({"n": odd}),
    "Worker": lambda store, odd: Worker(store, {"n": odd}),
    "run.step": lambda store, odd: in_a_run(store, lambda run: run.step("s", odd)),
    "run.transact": lambda store, odd: in_a_run(store, lambda run: run.transact("s", odd)),
    "run.child": lambda store, odd: in_a_run(store, lambda run: run.child("c", odd)),
}


async def test_what_is_no_function_is_refused_before_anything_is_called(store: StateStore) -> None:
    for place, call in NOT_CALLABLE.items():
        for odd in [*NO_FUNCTIONS, Odder()]:
            with case(place):
                assert "function" in str(await refused(partial(call, store, odd), type(odd).__name__))


async def test_a_call_in_the_place_of_its_function_is_refused_with_the_remedy(store: StateStore) -> None:
    called = Effect()
    for place, call in NOT_CALLABLE.items():
        error = await refused(lambda call=call: call(store, called("already")), place)  # type: ignore[misc]
        with case(place):
            assert "without calling it" in str(error)
            assert called.calls == []


def yields(*_: Any) -> Iterator[int]:
    yield 1


async def yields_later(*_: Any) -> AsyncIterator[int]:
    yield 1


async def test_a_generator_function_is_refused(store: StateStore) -> None:
    for place, call in NOT_CALLABLE.items():
        for generator in (yields, yields_later):
            with case(f"{place}, {generator.__name__}"):
                assert "generator" in str(await refused(partial(call, store, generator), place))


async def test_an_async_listener_is_refused_since_nobody_would_await_it(store: StateStore) -> None:
    async def listen(*_: Any) -> None: ...

    for call in (
        lambda: store.verify(progress=listen),
        lambda: store.list_active_workflows(on_damaged=listen),
    ):
        with pytest.raises(ConfigurationError, match="plain function"):
            await call()


async def test_a_handler_that_is_not_async_says_so(store: StateStore) -> None:
    def not_async(*_: Any) -> Any:
        return 1

    for call in (
        lambda: store.run("n", not_async),
        lambda: in_a_run(store, lambda run: run.transact("s", not_async)),
        lambda: in_a_run(store, lambda run: run.child("c", not_async)),
    ):
        with pytest.raises(TypeError, match="async def"):
            await call()


@pytest.fixture
def collected_afterwards() -> Iterator[None]:
    """Python tells of a forgotten coroutine when it is collected: not in the next test, and not in the constructor of a
    named tuple, which cannot import what a warning needs.
    """
    gc.disable()
    yield
    gc.collect()
    gc.enable()


@pytest.mark.filterwarnings("ignore:coroutine 'Steps._call' was never awaited")
@pytest.mark.usefixtures("collected_afterwards")
async def test_a_step_that_is_not_awaited_fails_the_run_and_is_done_once_it_is(store: StateStore) -> None:
    paid, is_mended = Effect(), False

    async def handler(run: Run) -> str:
        await run.step("first", Effect())
        forgotten = run.step("paid", paid, 1)
        if is_mended:
            await forgotten
        return "done"

    with pytest.raises(ConfigurationError, match="without awaiting its steps 'paid'"):
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == "failed"
    is_mended = True
    assert await store.run("n", handler, workflow_id="w") == "done"
    assert paid.calls == [1]


async def test_a_step_whose_task_was_cancelled_before_it_began_is_not_forgotten(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(run.step("never", Effect()))
                raise ValueError
        never = asyncio.ensure_future(run.step("never either", Effect()))
        never.cancel()
        with suppress(asyncio.CancelledError):
            await never
        return "done"

    assert await store.run("n", handler) == "done"


# --- a run, or a store, in a wrong place ---------------------------------------------------------------------------


async def test_a_run_that_waits_for_itself_is_told_who_has_it(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("s", store.run, "n", steps)

    async def itself(run: Run) -> Any:
        async def again() -> Any:
            return await store.run("n", itself, workflow_id=run.workflow_id)

        return await run.step("s", again)

    assert await store.run("n", handler) == 1
    with pytest.raises(LeaseHeld):
        await asyncio.wait_for(store.run("n", itself, workflow_id="w"), 10)


async def test_a_run_in_another_loop_or_after_its_end_is_refused_and_its_own_goes_on(store: StateStore) -> None:
    runs: list[Run] = []
    refusals: list[BaseException] = []

    def in_another_loop(run: Run) -> None:
        async def call() -> Any:
            return await run.step("elsewhere", Effect())

        try:
            asyncio.run(call())
        except ConfigurationError as error:
            refusals.append(error)

    async def handler(run: Run) -> str:
        runs.append(run)
        thread = threading.Thread(target=in_another_loop, args=(run,))
        thread.start()
        await run.step("s", lambda: thread.join())  # noqa: PLW0108
        return "done"

    assert await store.run("n", handler, workflow_id="w") == "done"
    assert len(refusals) == 1
    assert list(await steps_of(store, "w")) == ["s"]
    late: list[Callable[[Run], Any]] = [
        lambda run: run.step("late", Effect()),
        lambda run: run.sleep(0),
        lambda run: run.checkpoint(),
    ]
    for call in late:
        with pytest.raises(ConfigurationError, match="has ended"):
            await call(runs[0])


async def test_neither_a_run_nor_a_store_pickles(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        pickle.dumps(run)

    with pytest.raises(ConfigurationError, match="belongs to its process"):
        await store.run("n", handler)
    with pytest.raises(ConfigurationError, match="belongs to its process"):
        pickle.dumps(store)


async def test_a_closed_store_is_refused_whatever_is_asked_of_it(database_url: str) -> None:
    async with StateStore.open(database_url) as store:
        state = await saved(store)
        checkpoint = await checkpointed(store, state)
    for call in (
        lambda: store.run("n", steps),
        lambda: store.start("n"),
        lambda: store.recover({"n": steps}),
        lambda: Worker(store, {"n": steps}).run(),
        lambda: store.signal(state.id, "go"),
        lambda: store.rewind(checkpoint.id),
        lambda: store.save_workflow_state(state),
        store.health_check,
        store.verify,
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            await asyncio.wait_for(call(), 10)


@pytest.mark.parametrize("name", ["run", "close", "begin", "namespace"])
def test_a_store_whose_opening_was_not_awaited_says_so(database_url: str, name: str) -> None:
    opening = StateStore.open(database_url)
    with pytest.raises(ConfigurationError, match="await StateStore"):
        getattr(opening, name)
    with pytest.raises(ConfigurationError, match="await StateStore"):
        Worker(opening, {"n": steps})  # type: ignore[arg-type]
    assert not hasattr(opening, "_repr_html_")  # which notebooks ask every object for
