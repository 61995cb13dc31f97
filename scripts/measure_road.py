"""How long is the road of one call: how many functions of ours, files and rooms it passes through.

    python scripts/measure_road.py [--postgres URL] [--json FILE] [--against FILE]

Counted by `sys.setprofile`, in the thread of the event loop and in the threads of SQLite's connections:

- ours: calls of functions defined in the package. Of these "resumed" are coroutines that went on after a wait: each
  `await` between the loop and the wait costs one; and "in threads" are those outside the loop's thread.
- files, rooms: how many modules those functions stand in, and how many rooms: a folder of the package, or a module
  that stands beside the folders. What is visited less than once in 200 times is left out here.
- all: the same calls and those of SQLAlchemy, asyncio, the drivers and the standard library.

Functions in C are not counted, nor what is called here: handlers, and the functions of steps. Statements are those that
the database executes, without BEGIN and COMMIT; commits those of transactions that wrote. CPU is that of the process,
measured without the counting, and means something only beside another figure of the same machine.

Everything is done before it is counted, so that nothing is made, compiled or prepared for the first time. The garbage
collector is off meanwhile and leases are renewed seldom, so that the same tree gives the same figures. Only the public
API is used: `PYTHONPATH=/another/tree` measures that one. With another Python the figures are others.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import json
import logging
import platform
import re
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Literal
from unittest.mock import patch
from uuid import uuid4

import orchestrator_state
from orchestrator_state import Run, StateStore, StepState, WorkflowState

_PACKAGE: Final = orchestrator_state.__name__
_SUSPENDS: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_WRITES: Final = re.compile(r"\b(INSERT\s+INTO|DELETE\s+FROM|UPDATE\s+\S+\s+SET)\b", re.IGNORECASE)
_DRIVER: Final = ("asyncpg.connection", "asyncpg.prepared_stmt")
_SENDING: Final = ("execute", "executemany", "fetch", "fetchrow", "fetchval")
_RARELY: Final = 200
_STEPS: Final = 20
_RECORDED: Final = 100


@dataclass(slots=True)
class Function:
    """One that was called."""

    code: CodeType
    """Kept, since it is found by its `id`: dataclasses of the same fields have equal code."""
    module: str
    name: str
    calls: int = 0
    resumed: int = 0
    in_threads: int = 0
    suspends: bool = False
    sends: bool = False

    @property
    def is_ours(self) -> bool:
        return self.module.split(".")[0] == _PACKAGE

    @property
    def room(self) -> str:
        return ".".join(self.module.split(".")[:2])


class Sent:
    """What one connection is sent."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._is_in_transaction = False
        self._has_written = False

    def note(self, sql: str) -> None:
        verb = sql.split(maxsplit=1)[0].rstrip(";")
        if verb == "BEGIN":
            self._is_in_transaction, self._has_written = True, False
        elif verb in ("COMMIT", "ROLLBACK"):
            self._meter.note(commits=verb == "COMMIT" and self._has_written)
            self._is_in_transaction = self._has_written = False
        else:
            writes = _WRITES.search(sql) is not None
            self._has_written = self._has_written or writes
            self._meter.note(statements=1, commits=writes and not self._is_in_transaction)


class Meter:
    """Counts what happens between `begin` and `end`, as often as there are things to count."""

    def __init__(self, cpu_rounds: int) -> None:
        self.cpu_rounds: Final = cpu_rounds
        self._is_counting = False
        self._begun_at = 0.0
        self._sent: dict[int, Sent] = {}
        self.start_anew()

    def start_anew(self, *, counts_calls: bool = False) -> None:
        """Count, or only take the time: counting costs."""
        gc.collect()
        self.counts_calls = counts_calls
        self.functions: dict[int, Function] = {}
        self.statements = self.commits = self.operations = 0
        self.seconds = 0.0

    def begin(self) -> None:
        gc.disable()
        self._is_counting = self.counts_calls
        self._begun_at = time.process_time()
        if self.counts_calls:
            sys.setprofile(self._called)

    def end(self, operations: int = 1) -> None:
        sys.setprofile(None)
        self.seconds += time.process_time() - self._begun_at
        self._is_counting = False
        gc.enable()
        self.operations += operations

    def note(self, *, statements: int = 0, commits: int = 0) -> None:
        if self._is_counting:
            self.statements += statements
            self.commits += commits

    def each(self, count: int) -> float:
        """How many for one operation."""
        return round(count / self.operations, 2)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._count(frame).sends and not _is_resumed(frame):
            self._sends(frame.f_locals)

    def _called_in_thread(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._is_counting:
            self._count(frame).in_threads += 1

    def _count(self, frame: FrameType) -> Function:
        function = self.functions.get(id(frame.f_code))
        if function is None:
            function = self.functions[id(frame.f_code)] = _function(frame)
        function.calls += 1
        function.resumed += function.suspends and _is_resumed(frame)
        return function

    def _sends(self, given: Mapping[str, Any]) -> None:
        """Note what asyncpg is given: a text, or a statement that was prepared, which does not tell its connection."""
        if "query" in given:
            connection, sql = given["self"], given["query"]
        else:
            connection, sql = given["self"]._connection, given["self"].get_query()  # noqa: SLF001
        self._sent.setdefault(id(connection), Sent(self)).note(sql)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the threads, and SQLite's connections, that are made in the block."""
        connect = sqlite3.connect

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(Sent(self).note)
            return connection

        threading.setprofile(self._called_in_thread)
        try:
            with patch.object(sqlite3, "connect", connected):
                yield
        finally:
            threading.setprofile(None)


def _function(frame: FrameType) -> Function:
    code, module, name = frame.f_code, str(frame.f_globals.get("__name__")), frame.f_code.co_qualname
    if code.co_filename == "<string>" and code.co_argcount:  # a dataclass's: say of which
        name = f"{type(frame.f_locals[code.co_varnames[0]]).__name__}.{code.co_name}"
    suspends = bool(code.co_flags & _SUSPENDS)
    sends = suspends and module in _DRIVER and code.co_name in _SENDING
    return Function(code, module, name, suspends=suspends, sends=sends)


def _is_resumed(frame: FrameType) -> bool:
    """The argument of the opcode RESUME says after what; 0 is the beginning of the function."""
    return frame.f_code.co_code[frame.f_lasti + 1] & 3 != 0


# --- what is measured ---------------------------------------------------------------------------------------------


async def _answer(number: int) -> dict[str, Any]:
    return {"answer": f"the {number}th", "tokens": number, "scores": [0.25, 0.5]}


async def _step(store: StateStore, meter: Meter, size: int) -> None:
    """One after another, of one run."""

    async def handler(run: Run) -> None:
        await _take_steps(run, size)
        meter.begin()
        await _take_steps(run, 2 * size)
        meter.end(2 * size)

    await store.run("road", handler)


async def _step_of_many(store: StateStore, meter: Meter, size: int) -> None:
    """Of `size` runs at once, of 20 steps each."""
    there, begun, done = asyncio.Semaphore(0), asyncio.Event(), asyncio.Semaphore(0)

    async def handler(run: Run) -> None:
        there.release()
        await begun.wait()
        await _take_steps(run, _STEPS)
        done.release()

    async with asyncio.TaskGroup() as group:
        for _ in range(size):
            group.create_task(store.run("road", handler))
        for _ in range(size):
            await there.acquire()
        meter.begin()
        begun.set()
        for _ in range(size):
            await done.acquire()
        meter.end(size * _STEPS)


async def _load(store: StateStore, meter: Meter, size: int) -> None:
    """`store.run` of a run that was left with 100 steps on record, until its handler is called."""

    async def handler(_: Run) -> None:
        meter.end()

    workflow_id = await _left_run(store)
    for _ in range(max(1, size // 5)):
        meter.begin()
        await _leave(store, workflow_id, handler)


async def _reused_step(store: StateStore, meter: Meter, size: int) -> None:
    """A step that is on record, passed through by a handler that is resumed."""

    async def handler(run: Run) -> None:
        meter.begin()
        await _take_steps(run)
        meter.end(_RECORDED)

    workflow_id = await _left_run(store)
    for _ in range(max(1, size // 10)):
        await _leave(store, workflow_id, handler)


async def _left_run(store: StateStore) -> str:
    """The id of a run that a worker has left after 100 steps."""
    workflow_id = str(uuid4())
    await _leave(store, workflow_id, _take_steps)
    return workflow_id


async def _take_steps(run: Run, steps: int = _RECORDED) -> None:
    for number in range(steps):
        await run.step("step", _answer, number)


async def _leave(store: StateStore, workflow_id: str, begin: Callable[[Run], Awaitable[None]]) -> None:
    """Run it, or resume it, and leave it as it is after `begin`."""
    has_begun = asyncio.Event()

    async def handler(run: Run) -> None:
        await begin(run)
        has_begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.run("left", handler, workflow_id=workflow_id))
    await has_begun.wait()
    task.cancel()
    await asyncio.wait([task])


async def _recovery(store: StateStore, meter: Meter, size: int) -> None:
    """`store.recover` of one abandoned run: claimed, loaded, driven through its 20 steps on record, and ended."""
    for _ in range(max(1, size // 5)):
        await _recover(store, meter, 1)


async def _recover(store: StateStore, meter: Meter, runs: int) -> None:
    """The same of many, in one `store.recover`."""

    async def handler(run: Run) -> None:
        for number in range(_STEPS):
            await run.step(f"step {number}", _answer, number)

    async with store.begin() as uow:
        for _ in range(runs):
            await uow.workflows.save(await _workflow())
    meter.begin()
    report = await store.recover({"abandoned": handler}, concurrency=runs)
    meter.end(runs)
    assert len(report.completed) == runs


async def _save(store: StateStore, meter: Meter, size: int) -> None:
    """`store.save_workflow_state` of a workflow of 20 steps, one of them changed."""
    state = await _workflow()
    await store.save_workflow_state(state)
    for number in range(size):
        state.steps["step 7"].outputs = await _answer(number)
        meter.begin()
        await store.save_workflow_state(state)
        meter.end()


async def _workflow() -> WorkflowState:
    state = WorkflowState(workflow_id=str(uuid4()), workflow_name="abandoned", context={"inputs": {"page": 1}})
    state.mark_running()
    for number in range(_STEPS):
        step = state.steps[f"step {number}"] = StepState(step_id=f"step {number}")
        step.mark_running()
        step.mark_completed(await _answer(number))
    return state


Operation = Callable[[StateStore, Meter, int], Awaitable[None]]
OPERATIONS: Final[Mapping[str, Operation]] = {
    "step": _step,
    "step of many": _step_of_many,
    "recovery": _recovery,
    "recovery of many": _recover,
    "reused step": _reused_step,  # leaves runs that a recovery would look at
    "load": _load,
    "save": _save,
}


# --- measuring ----------------------------------------------------------------------------------------------------

Road = dict[str, Any]
"""The figures of one operation, and under `functions` those that were called for it, ours first."""
Roads = Mapping[str, Mapping[str, Road]]
"""By database and operation."""
FIGURES: Final = ("ours", "resumed", "in threads", "files", "rooms", "all", "statements", "commits", "cpu us")


async def measure(url: str, size: int, *, cpu_rounds: int = 5) -> dict[str, Road]:
    """Each operation, on an empty database or one that has these tables."""
    meter = Meter(cpu_rounds)
    # A unit of work on SQLite that is held up, as by a slow disk, does more than one that is not.
    quick_disk: Literal["NORMAL"] | None = "NORMAL" if url.startswith("sqlite") else None
    opening = StateStore.open(url, migrate=True, lease_term=timedelta(hours=1), synchronous=quick_disk)
    with meter.watching():
        async with opening as store:
            return {name: await _measured(store, meter, operation, size) for name, operation in OPERATIONS.items()}


async def _measured(store: StateStore, meter: Meter, operation: Operation, size: int) -> Road:
    meter.start_anew()
    await operation(store, meter, size)
    rounds = []
    for _ in range(meter.cpu_rounds):
        meter.start_anew()
        await operation(store, meter, size)
        rounds.append(meter.seconds / meter.operations)
    meter.start_anew(counts_calls=True)
    await operation(store, meter, size)
    return _road(meter) | {"cpu us": round(min(rounds) * 1e6, 1)}


def _road(meter: Meter) -> Road:
    called = [function for function in meter.functions.values() if function.module != __name__]
    called.sort(key=lambda function: (not function.is_ours, -function.calls, function.module, function.name))
    ours = [function for function in called if function.is_ours]
    visited = [function for function in ours if function.calls * _RARELY >= meter.operations]
    return {
        "ours": meter.each(sum(function.calls for function in ours)),
        "resumed": meter.each(sum(function.resumed for function in ours)),
        "in threads": meter.each(sum(function.in_threads for function in ours)),
        "files": len({function.module for function in visited}),
        "rooms": len({function.room for function in visited}),
        "all": meter.each(sum(function.calls for function in called)),
        "statements": meter.each(meter.statements),
        "commits": meter.each(meter.commits),
        "functions": [
            {
                "function": f"{function.module}:{function.code.co_firstlineno} {function.name}",
                "calls": meter.each(function.calls),
                "resumed": meter.each(function.resumed),
                "in threads": meter.each(function.in_threads),
            }
            for function in called
        ],
    }


# --- telling ------------------------------------------------------------------------------------------------------


def print_table(roads: Roads, before: Roads | None = None) -> None:
    """A line for each operation; and, with what was measured `before`, each figure as `before -> now (ratio)`."""
    for database, measured in roads.items():
        rows = [[database, *FIGURES]]
        for operation, road in measured.items():
            old = {} if before is None else before.get(database, {}).get(operation, {})
            rows.append([operation, *(_cell(road[figure], old.get(figure)) for figure in FIGURES)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
        print()


def _cell(now: float, before: float | None) -> str:
    was = "" if before is None else f"{before:g} -> "
    return f"{was}{now:g}" + (f" ({now / before:.2f})" if before else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--postgres", metavar="URL", help="measure in this database too, which is migrated")
    parser.add_argument("--size", type=int, default=100, help="how many runs at once, or saves, are averaged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the functions, to it")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with what --json wrote")
    given = parser.parse_args()
    logging.disable()  # of runs that were left without asking for their steps
    with tempfile.TemporaryDirectory(prefix="road-") as directory:
        urls = {"sqlite": f"sqlite:///{Path(directory) / 'road.db'}"}
        if given.postgres:
            urls["postgres"] = given.postgres
        roads = {database: asyncio.run(measure(url, given.size)) for database, url in urls.items()}
    print(f"Python {platform.python_version()}, {Path(orchestrator_state.__file__).parent}\n")
    print_table(roads, json.loads(given.against.read_text()) if given.against else None)
    if given.json:
        given.json.write_text(json.dumps(roads, indent=1))


if __name__ == "__main__":
    main()
