"""Work of every kind that goes on while the world is hostile, in worker processes that note what they do.

A worker notes in its journal, which no fault of the database reaches, each call of a step's function before it does
anything, and each value that was acknowledged to its handler.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import Run, StateStore, StoreUnavailable, Worker
from tests.chaos.flaws import Flaw, plant
from tests.chaos.witness import book

_T = TypeVar("_T")
_ROOT: Final = Path(__file__).parents[2]

LAPS: Final = 3
LAST: Final = 2
"""The serial number of the signal after which a run goes on."""
NAME: Final = "order"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A worker: where it works, what it notes where, and what is wrong with it."""

    url: str
    journal: str
    term: float
    concurrency: int = 20
    nap: float = 0.05
    """Seconds that each order sleeps."""
    flaw: Flaw | None = None
    pgbouncer: bool = False


class Note(NamedTuple):
    """A line of a worker's journal."""

    what: str
    """`call` before a step's function does anything; `ack` once its value has come back to the handler; `sleep` and
    `awake` around a timer.
    """
    run: str
    step: str
    value: Any
    at: float
    """By the machine's monotonic clock, which all processes share."""
    worker: str = ""
    """The name of its journal."""


class Diary:
    """Appends to the journal of one worker."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, run: Run, step: str, value: object) -> None:
        os.write(self._file, f"{json.dumps([what, str(run.id), step, value, time.monotonic()])}\n".encode())


def read_diaries(directory: Path) -> Iterator[Note]:
    """What all workers noted, each worker's in order. A kill may have cut off a last line."""
    for path in sorted(directory.glob("*.diary")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                what, run, step, value, at = json.loads(line)
                yield Note(what, run, step, value, at, worker=path.stem)


class Handlers:
    """The handlers of one worker."""

    def __init__(self, diary: Diary, nap: float) -> None:
        self._diary = diary
        self._nap = nap

    async def order(self, run: Run) -> Any:
        """Steps with a context that grows, a transaction, a timer, signals, and a child run."""
        for lap in range(LAPS):
            run.context["laps"] = run.context.get("laps", 0) + 1
            run.append("log", lap)
            await self._step(run, f"step {lap}")
        await asyncio.gather(*(self._step(run, side) for side in ("left", "right")))
        await self._acknowledged(run, "pay", run.transact("pay", self._pay, run, "pay"))
        self._diary.note("sleep", run, "nap", self._nap)
        await run.sleep(self._nap)
        self._diary.note("awake", run, "nap", self._nap)
        await self._wait_for_the_last_signal(run)
        await self._acknowledged(run, "child:part", run.child("part", self.part))
        await self._acknowledged(run, "bye", run.transact("bye", self._pay, run, "bye"))
        return dict(run.context)

    async def part(self, run: Run) -> str:
        await self._step(run, "part")
        return await self._acknowledged(run, "part pay", run.transact("part pay", self._pay, run, "part pay"))

    async def _wait_for_the_last_signal(self, run: Run) -> None:
        serial = 0
        while serial < LAST:
            sent = await run.wait_for("go")
            serial = sent["serial"]

    async def _step(self, run: Run, step_id: str) -> str:
        return await self._acknowledged(run, step_id, run.step(step_id, self._effect, run, step_id))

    async def _effect(self, run: Run, step_id: str) -> str:
        value = uuid.uuid4().hex
        self._diary.note("call", run, step_id, value)
        await asyncio.sleep(random.uniform(0, 0.02))
        return value

    async def _pay(self, session: AsyncSession, run: Run, entry: str) -> str:
        value = uuid.uuid4().hex
        await book(session, f"{run.id} {entry}", value)
        return value

    async def _acknowledged(self, run: Run, step_id: str, call: Awaitable[_T]) -> _T:
        value = await call
        self._diary.note("ack", run, step_id, value)
        return value


async def work(job: Job) -> None:
    """Work until SIGTERM. A worker whose database is away when it starts tries again, as a supervisor would."""
    logging.getLogger("orchestrator_state").setLevel(logging.CRITICAL)
    if job.flaw is not None:
        plant(job.flaw)
    handlers = Handlers(Diary(job.journal), job.nap)
    async with await _open(job) as store:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        by_name = {NAME: handlers.order, "part": handlers.part}
        await Worker(store, by_name, concurrency=job.concurrency, poll=0.2, grace=2).run()


async def _open(job: Job) -> StateStore:
    options: dict[str, Any] = {"lease_term": job.term, "pgbouncer": job.pgbouncer}
    while True:
        try:
            return await StateStore.open(job.url, migrate=False, pool_min=1, pool_max=8, **options)
        except StoreUnavailable:
            await asyncio.sleep(0.2)


def work_as(job: Job, wrapper: list[str], environment: dict[str, str], pipe: Connection) -> None:
    """Work in this process, at the head of a group of its own, with the pipe for standard output.

    What only a new Python can take up, a command before it or an environment, makes this process one.
    """
    os.setsid()
    os.dup2(pipe.fileno(), sys.stdout.fileno())
    if wrapper or environment:
        command = [*wrapper, sys.executable, "-m", "tests.chaos.workload", json.dumps(asdict(job))]
        os.chdir(_ROOT)
        os.execvpe(command[0], command, {**os.environ, **environment})
    asyncio.run(work(job))


if __name__ == "__main__":
    asyncio.run(work(Job(**json.loads(sys.argv[1]))))
