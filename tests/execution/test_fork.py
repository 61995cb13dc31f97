"""A process that forks, and processes that come and go: locks and connections belong to one process."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID

import pytest

from orchestrator_state import ConfigurationError, StateStore
from tests.support.children import child
from tests.support.states import a_state

pytestmark = pytest.mark.process

SAVES = 20
REFUSED = 2


async def save_often(store: StateStore, state_id: UUID) -> None:
    state = await store.load_workflow_state(state_id)
    for _ in range(SAVES):
        state.context += 1
        await store.save_workflow_state(state)


def in_a_fork(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `main` in a fork of this process, in a loop of its own; return the fork's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        asyncio.run(main())
        code = 0
    except ConfigurationError:
        code = REFUSED
    finally:
        os._exit(code)


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def fork(pipe: Connection, url: str, ids: list[UUID], *, own_store: bool, parent_closes: bool) -> None:
    """Use a store, fork, let the fork use it or one of its own, and then both; the fork in the end alone."""
    store = await StateStore.open(url)
    await asyncio.gather(*(store.load_workflow_state(ids[0]) for _ in range(3)))
    await save_often(store, ids[0])
    told, tell = os.pipe()
    heard, hear = os.pipe()

    async def in_fork() -> None:
        mine = await StateStore.open(url) if own_store else store
        await asyncio.gather(*(save_often(mine, state_id) for state_id in ids[1:]))
        os.write(hear, b"!")
        os.read(told, 1)
        await asyncio.gather(*(save_often(mine, state_id) for state_id in ids[1:]))
        if own_store:
            await mine.close()

    # In a thread, because a loop cannot begin where one runs.
    pid = await asyncio.to_thread(in_a_fork, in_fork)
    await asyncio.to_thread(os.read, heard, 1)
    if parent_closes:
        await store.close()
    os.write(tell, b"!")
    if not parent_closes:
        await save_often(store, ids[0])
    assert await asyncio.to_thread(end_of, pid) == 0
    if not parent_closes:
        await save_often(store, ids[1])
        await store.close()
    pipe.send("done")


async def fork_in_a_unit(pipe: Connection, url: str, ids: list[UUID], *, own_store: bool) -> None:
    """Fork in the middle of a write. The fork saves after the end of that write."""
    store = await StateStore.open(url, pool_timeout=timedelta(seconds=5))
    told, tell = os.pipe()

    async def in_fork() -> None:
        os.read(told, 1)
        brief = timedelta(seconds=1)
        mine = await StateStore.open(url, lock_timeout=brief, retry_timeout=brief) if own_store else store
        await save_often(mine, ids[1])

    async with store.begin() as uow:
        await uow.workflows.save(a_state("parent's"))
        pid = await asyncio.to_thread(in_a_fork, in_fork)
    os.write(tell, b"!")
    code = await asyncio.to_thread(end_of, pid)
    await save_often(store, ids[0])
    await store.close()
    pipe.send(code)


async def counts(url: str, ids: list[UUID]) -> list[Any]:
    async with StateStore.open(url) as store:
        return [(await store.load_workflow_state(state_id)).context for state_id in ids]


async def tell_counts(pipe: Connection, url: str) -> None:
    async with StateStore.open(url) as store:
        pipe.send([state.context for state in await store.list_active_workflows()])


async def saved(url: str, *names: str) -> list[UUID]:
    states = [a_state(name) for name in names]
    async with StateStore.open(url) as store:
        for state in states:
            await store.save_workflow_state(state)
    return [state.id for state in states]


@pytest.mark.parametrize("own_store", [False, True], ids=["the same store", "a store of the fork's own"])
@pytest.mark.parametrize("parent_closes", [False, True], ids=["parent goes on", "parent closes"])
def test_after_a_fork_neither_parent_nor_fork_loses_what_was_acknowledged(
    database_url: str, *, own_store: bool, parent_closes: bool
) -> None:
    """SQLite keeps its locks per process: a fork that inherits a connection believes that it holds the parent's."""
    ids = asyncio.run(saved(database_url, "parent's", "fork's", "fork's other"))
    with child(partial(fork, own_store=own_store, parent_closes=parent_closes), database_url, ids) as process:
        process.hear()
        process.finish()
    mine, forks = (1, 2) if parent_closes else (2, 3)
    assert asyncio.run(counts(database_url, ids)) == [SAVES * mine, SAVES * forks, SAVES * 2]


@pytest.mark.parametrize("own_store", [False, True], ids=["the same store", "a store of the fork's own"])
def test_a_fork_in_the_middle_of_a_write_works_or_is_refused_and_the_write_goes_on(
    database_url: str, backend: str, *, own_store: bool
) -> None:
    ids = asyncio.run(saved(database_url, "parent's", "fork's"))
    with child(partial(fork_in_a_unit, own_store=own_store), database_url, ids) as process:
        code = process.hear()
        process.finish()
    assert code == (REFUSED if backend == "sqlite" else 0)
    assert asyncio.run(counts(database_url, ids)) == [SAVES, 0 if code == REFUSED else SAVES]


async def come_and_go(pipe: Connection, url: str) -> None:
    async with StateStore.open(url) as store:
        pipe.send(len(await store.list_active_workflows()))


async def save_beside(url: str, first: StateStore, second: StateStore | None) -> None:
    """Save while another process opens the same file and closes it again."""
    (state_id,) = [state.id for state in await first.list_active_workflows()]
    if second is not None:
        await second.list_active_workflows()
    with child(come_and_go, url) as process:
        assert await asyncio.to_thread(process.hear) == 1
        await asyncio.to_thread(process.finish)
    await save_often(first, state_id)


@pytest.mark.parametrize("second", [False, True], ids=["one store", "two stores"])
async def test_a_process_that_comes_and_goes_takes_nothing_along_from_the_stores_of_this_one(
    database_url: str, *, second: bool
) -> None:
    """A process loses all its locks on a SQLite file when it closes that file anywhere, if only after a look at it."""
    async with StateStore.open(database_url) as first:
        await first.save_workflow_state(a_state())
        if second:
            async with StateStore.open(database_url) as other:
                await save_beside(database_url, first, other)
        else:
            await save_beside(database_url, first, None)
        with child(tell_counts, database_url) as process:
            told = await asyncio.to_thread(process.hear)
        assert told == [SAVES]
