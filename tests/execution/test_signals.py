"""Whose SIGTERM and SIGINT are: in a block of a worker's the program's own, and in its `run` the worker's."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from orchestrator_state import ConfigurationError, Run, StateStore, Worker, WorkflowStatus
from tests.support.running import Gate, becomes, row_of

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def nothing(run: Run) -> None: ...


async def passing(gate: Gate, run: Run) -> None:
    await run.step("s", gate)


@pytest.fixture
def told() -> Iterator[list[int]]:
    """What the program was told, by handlers of its own."""
    told: list[int] = []
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in SIGNALS}
    yield told
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


# --- in one process ----------------------------------------------------------------------------------------------


async def test_a_block_of_a_worker_leaves_signals_to_the_program(store: StateStore, told: list[int]) -> None:
    mine = handlers()
    async with Worker(store, {"w": nothing}, poll=0.05) as worker:
        await store.start("w", workflow_id="first")
        await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, store, "first")
        assert handlers() == mine
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        assert (told, worker.health().state) == ([*SIGNALS], "working")
        await store.start("w", workflow_id="second")
        await becomes(lambda row: row.status == WorkflowStatus.COMPLETED, store, "second")


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_worker_that_is_run_takes_signals_and_gives_them_back(
    store: StateStore, told: list[int], number: int
) -> None:
    mine, gate = handlers(), Gate()
    await store.start("w", workflow_id="w")
    worker = Worker(store, {"w": lambda run: run.step("s", gate)}, poll=0.05)
    running = asyncio.create_task(worker.run())
    await gate.reached.wait()
    os.kill(os.getpid(), number)
    await asyncio.sleep(0)
    gate.opened.set()
    await running
    assert (await row_of(store, "w")).status == WorkflowStatus.COMPLETED
    assert (told, handlers()) == ([], mine)
    os.kill(os.getpid(), number)
    assert told == [number]


async def test_a_signal_stops_all_the_workers_that_are_run(store: StateStore, told: list[int]) -> None:
    mine, gates = handlers(), [Gate(), Gate()]
    running = []
    for number, gate in enumerate(gates):
        await store.start(f"w-{number}", workflow_id=f"w-{number}")
        worker = Worker(store, {f"w-{number}": partial(passing, gate)}, poll=0.05)
        running.append(asyncio.create_task(worker.run()))
        await gate.reached.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0)
    for gate, task in zip(gates, running, strict=True):  # the one that began first ends first
        assert handlers() != mine
        gate.opened.set()
        await task
    assert (told, handlers()) == ([], mine)


async def test_a_worker_that_is_run_with_the_programs_own_signals_takes_none(
    store: StateStore, told: list[int]
) -> None:
    mine, gate = handlers(), Gate()
    await store.start("w", workflow_id="w")
    worker = Worker(store, {"w": lambda run: run.step("s", gate)}, poll=0.05, handle_signals=False)
    running = asyncio.create_task(worker.run())
    await gate.reached.wait()
    assert handlers() == mine
    gate.opened.set()
    worker.stop()
    await running


async def test_signals_that_the_program_has_taken_meanwhile_stay_its_own(store: StateStore, told: list[int]) -> None:
    gate = Gate()
    await store.start("w", workflow_id="w")
    worker = Worker(store, {"w": lambda run: run.step("s", gate)}, poll=0.05)
    running = asyncio.create_task(worker.run())
    await gate.reached.wait()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gate.opened.set()
    worker.stop()
    await running
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_a_worker_that_cannot_run_gives_the_signals_back(store: StateStore, told: list[int]) -> None:
    mine = handlers()
    worker = Worker(store, {"w": nothing})
    await store.close()
    with pytest.raises(ConfigurationError):
        await worker.run()
    assert handlers() == mine


def test_a_worker_in_another_thread_leaves_signals_alone(sqlite_url: str, told: list[int]) -> None:
    mine, seen = handlers(), []

    async def main() -> None:
        async def handler(run: Run) -> None:
            seen.append(handlers())
            worker.stop()

        async with StateStore.open(sqlite_url) as store:
            await store.start("w", workflow_id="w")
            worker = Worker(store, {"w": handler}, poll=0.05)
            await worker.run()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join(60)
    assert (seen, handlers()) == ([mine], mine)


# --- in a web server ---------------------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
import uvicorn
from orchestrator_state import StateStore, Worker

stopping = asyncio.Event()

async def slow():
    print("step begun", flush=True)
    await stopping.wait()
    return "done"

async def handler(run):
    return await run.step("slow", slow)

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    async with StateStore.open(sys.argv[1]) as store, Worker(store, {"w": handler}, poll=0.05):
        await store.start("w", workflow_id="w")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shutting down", flush=True)
        asyncio.get_running_loop().call_later(0.2, stopping.set)
    print("worker ended", flush=True)
    await send({"type": "lifespan.shutdown.complete"})

uvicorn.run(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on")
"""


@pytest.mark.process
@pytest.mark.parametrize("number", SIGNALS)
async def test_a_web_server_shuts_down_at_a_signal_and_its_worker_lets_its_run_finish(
    database_url: str, number: int
) -> None:
    async with StateStore.open(database_url) as store:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVER, database_url, stdout=subprocess.PIPE
        )
        assert server.stdout is not None
        assert await server.stdout.readline() == b"step begun\n"
        server.send_signal(number)
        rest = await server.stdout.read()
        await server.wait()
        assert rest.splitlines() == [b"shutting down", b"worker ended"]
        row = await row_of(store, "w")
    assert (row.status, row.result, row.lease_token) == (WorkflowStatus.COMPLETED, '"done"', 1)
