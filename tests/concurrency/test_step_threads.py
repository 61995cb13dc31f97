"""Sync functions of steps, and blob stores, have threads of their own, and a time limit counts the call alone."""

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from typing import Any

import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

from orchestrator_state import BlobStore, Run, StateStore
from orchestrator_state.concurrency.threads import Threads


class Held:
    """A sync function that blocks until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.let_go = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, value: Any = None, *_: Any) -> Any:
        with self._lock:
            self.calls += 1
        self.let_go.wait(60)
        return value

    async def are_called(self, count: int) -> None:
        while self.calls < count:  # noqa: ASYNC110 - threads, not tasks, change it
            await asyncio.sleep(0.005)


# --- steps ---


async def test_a_time_limit_does_not_count_the_wait_for_a_thread(sqlite_url: str) -> None:
    def call(number: int) -> int:
        time.sleep(0.5)
        return number

    async def handler(run: Run) -> list[int]:
        return await asyncio.gather(*(run.step(f"step {n}", call, n, timeout=4) for n in range(10)))

    async with StateStore.open(sqlite_url, step_threads=1) as store:
        assert await store.run("n", handler) == list(range(10))


async def test_many_sync_steps_are_called_at_the_same_time(store: StateStore) -> None:
    together = threading.Barrier(100)

    async def handler(run: Run) -> int:
        return len(await asyncio.gather(*(run.step(f"step {n}", together.wait, 60) for n in range(100))))

    assert await store.run("n", handler) == 100


async def test_steps_are_not_held_up_by_what_occupies_the_event_loops_own_threads(store: StateStore) -> None:
    held = Held()
    elsewhere = [asyncio.create_task(asyncio.to_thread(held)) for _ in range(64)]
    await asyncio.sleep(0)

    async def handler(run: Run) -> Any:
        return await run.step("quick", lambda: "done", timeout=30)

    try:
        assert await store.run("n", handler) == "done"
    finally:
        held.let_go.set()
        await asyncio.gather(*elsewhere)


async def test_steps_that_hang_past_their_limit_make_room_for_others(sqlite_url: str) -> None:
    held = Held()

    async def handler(run: Run) -> Any:
        hanging = [run.step(f"hangs {n}", held, timeout=0.05) for n in range(2)]
        results = await asyncio.gather(*hanging, return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError, TimeoutError]
        return await run.step("quick", lambda: "done", timeout=30)

    async with StateStore.open(sqlite_url, step_threads=2) as store:
        try:
            assert await store.run("n", handler) == "done"
        finally:
            held.let_go.set()


async def test_the_awaitable_that_a_sync_function_returns_is_within_the_limit(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.step("slow", lambda: asyncio.sleep(60), timeout=0.05)

    with pytest.raises(TimeoutError):
        await store.run("n", handler)


# --- blobs ---


class HangingFiles(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system that `held` keeps from reading."""

    def __init__(self, held: Held, **options: Any) -> None:
        super().__init__(**options)
        self.held = held

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        self.held()
        return b""


async def test_a_blob_store_that_hangs_holds_up_no_step(sqlite_url: str) -> None:
    held = Held()
    register_implementation("hanging", HangingFiles, clobber=True)
    blobs = BlobStore("hanging://place", held=held)

    async def handler(run: Run) -> Any:
        return await run.step("quick", lambda: "done", timeout=30)

    hanging = [asyncio.create_task(blobs.get(f"name {n}", 1000)) for n in range(64)]
    try:
        await held.are_called(32)
        async with StateStore.open(sqlite_url) as store:
            assert await store.run("n", handler) == "done"
    finally:
        held.let_go.set()
        await asyncio.gather(*hanging)


# --- the threads themselves ---


async def test_the_callers_context_is_seen_in_the_thread_and_kept_from_it() -> None:
    var = contextvars.ContextVar("var", default="none")
    var.set("the caller's")

    def look() -> str:
        found = var.get()
        var.set("the thread's")
        return found

    assert await Threads("t", 1).call(look) == "the caller's"
    assert var.get() == "the caller's"


async def test_a_call_that_is_cancelled_while_it_waits_is_never_made() -> None:
    threads, held = Threads("t", 1), Held()
    first = asyncio.create_task(threads.call(held))
    await held.are_called(1)
    second = asyncio.create_task(threads.call(held))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    held.let_go.set()
    await first
    assert await threads.call(lambda: "next") == "next"
    assert held.calls == 1


async def test_never_more_calls_than_threads_are_made_at_once_and_all_are_made() -> None:
    threads, held = Threads("t", 3), Held()
    calls = [asyncio.create_task(threads.call(partial(held, n))) for n in range(20)]
    await held.are_called(3)
    await asyncio.sleep(0.05)
    assert held.calls == 3
    held.let_go.set()
    assert await asyncio.gather(*calls) == list(range(20))


async def test_hanging_calls_are_given_up_on_only_so_often() -> None:
    threads, held = Threads("t", 2), Held()
    hanging = []
    for number in range(1, 5):
        hanging.append(asyncio.create_task(threads.call(held)))
        await held.are_called(number)
        if number <= 2:
            hanging[-1].cancel()
            await asyncio.wait({hanging[-1]})
    waiting = asyncio.create_task(threads.call(lambda: "late"))
    hanging[-1].cancel()
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done(), "four threads for two places are enough"
    held.let_go.set()
    assert await waiting == "late"


async def test_a_thread_that_is_idle_keeps_no_argument_alive() -> None:
    class Large:
        pass

    threads, large = Threads("t", 1), Large()
    remembered = weakref.ref(large)
    await threads.call(partial(id, large))
    del large
    for _ in range(1000):
        gc.collect()
        if remembered() is None:
            break
        await asyncio.sleep(0.01)
    assert remembered() is None


async def test_closing_ends_the_idle_threads() -> None:
    threads = Threads("closing", 5)
    await asyncio.gather(*(threads.call(lambda: time.sleep(0.05)) for _ in range(5)))
    threads.close()
    while any(thread.name == "closing" for thread in threading.enumerate()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_the_same_threads_serve_one_event_loop_after_another() -> None:
    threads = Threads("t", 1)
    assert [asyncio.run(threads.call(partial(int, n))) for n in range(3)] == [0, 1, 2]


SCRIPT = """
import asyncio, os, sys, time
from orchestrator_state import StateStore

async def hang(run):
    await run.step("hangs", time.sleep, 3600, timeout=0.05)

async def main():
    async with StateStore.open(sys.argv[1]) as store:
        try:
            await store.run("n", hang)
        except TimeoutError:
            print("timed out", flush=True)

asyncio.run(main())
"""


@pytest.mark.process
def test_a_function_that_hangs_for_ever_does_not_keep_the_interpreter_from_ending(sqlite_url: str) -> None:
    command = [sys.executable, "-c", SCRIPT, sqlite_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "timed out\n"), done.stderr


FORK = """
import asyncio, os
from orchestrator_state.concurrency.threads import Threads

threads = Threads("t", 2)
assert asyncio.run(threads.call(lambda: os.getpid())) == os.getpid()
child = os.fork()
found = asyncio.run(threads.call(lambda: os.getpid()))
assert found == os.getpid()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.process
def test_a_forked_child_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
