"""Tasks cancelled at random awaits, once or twice: nothing is left behind, and the run can be recovered."""

import asyncio
import random
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from sqlalchemy import text

from orchestrator_state import OrchestratorStateError, Run, StateStore, StepStatus
from orchestrator_state.database.sqlite.database import SqliteDatabase
from tests.chaos.report import Report
from tests.chaos.witness import book, create_ledger, entries

_RESULT: Final = {"sum": 3, "signal": "go", "child": "child"}
_OTHERS_IN_A_TRANSACTION: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend'
    AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
"""
_PATIENCE: Final = 30.0  # seconds until a cancelled task that is not done counts as stuck


async def cancel_at_random(url: str, *, rounds: int, seed: int, is_flawed: bool = False) -> Report:
    """Cancel a call of `run` or `recover`, look at what is left, and recover."""
    flaw = ", a handler that leaves a unit of work open" if is_flawed else ""
    report, chance = Report(name=f"cancelled at random awaits{flaw}", seed=seed), random.Random(seed)
    # What a flawed handler holds is waited for only this long.
    limits = ("pool_timeout", "lock_timeout", "retry_timeout") if is_flawed else ()
    options: dict[str, Any] = dict.fromkeys(limits, timedelta(seconds=1))
    async with StateStore.open(url, migrate=False, pool_min=1, pool_max=5, **options) as store:
        await create_ledger(store)
        start = monotonic()
        await store.run("cancelled", _Round(store, "measured").handler, workflow_id="measured")
        longest = monotonic() - start
        while _is_too_early(report, rounds) and not (is_flawed and report.faults):
            story = _Round(store, f"w-{report.rounds}", is_flawed=is_flawed)
            report.rounds += 1
            found = await story.play(chance, longest, report)
            report.acknowledged += story.acknowledged
            report.find("other", *(f"{story.workflow_id}: {fault}" for fault in found))
            await story.clean_up()
    return report


def _is_too_early(report: Report, rounds: int) -> bool:
    """To end: a few rounds may all be ones that come to their end before they are cancelled once more."""
    return report.figures["cancelled"] < rounds or not report.figures["cancelled twice"]


class _Round:
    """One run, which is cancelled and recovered."""

    def __init__(self, store: StateStore, workflow_id: str, *, is_flawed: bool = False) -> None:
        self.workflow_id = workflow_id
        self._store = store
        self._is_flawed = is_flawed
        self._patience = 0.5 if is_flawed else 8.0
        """Seconds until what is still there counts as left behind: fewer than anything of ours waits for a lock."""
        self.acknowledged = 0
        self._calls: Counter[str] = Counter()
        self._leaks: list[asyncio.Task[None]] = []

    async def play(self, chance: random.Random, longest: float, report: Report) -> list[str]:
        before = asyncio.all_tasks()
        is_run = chance.random() < 0.5
        if not is_run:
            await self._store.start("cancelled", workflow_id=self.workflow_id)
        task = asyncio.create_task(self._run() if is_run else self._recover())
        await _wait_at_random(chance, task, longest)
        cancelled = task.cancel()
        if chance.random() < 0.5:
            for _ in range(chance.randrange(30)):
                await asyncio.sleep(0)
            report.figures["cancelled twice"] += task.cancel()
        report.figures["cancelled"] += cancelled
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE)
        if not done:
            return ["the cancelled task does not end"]
        found = [] if task.cancelled() or not task.exception() else [f"it ended with {task.exception()!r}"]
        found += await self._left(before)
        return found or await self._recovered()

    async def clean_up(self) -> None:
        for leak in self._leaks:
            leak.cancel()
        await asyncio.gather(*self._leaks, return_exceptions=True)

    async def handler(self, run: Run) -> Any:
        async def effect(step_id: str, outputs: Any) -> Any:
            self._calls[step_id] += 1
            await asyncio.sleep(0.001)
            if self._is_flawed:
                self._leaks.append(asyncio.create_task(self._leak()))
            return outputs

        def in_a_thread() -> int:
            self._calls["thread"] += 1
            return 1

        await self._signal_once(run)
        run.context["seen"] = await run.step("first", effect, "first", 1)
        one = await run.step("thread", in_a_thread)
        both = await asyncio.gather(*(run.step(side, effect, side, 1) for side in ("left", "right")))
        await run.transact("book", book, run.workflow_id, "book")
        await run.sleep(timedelta(milliseconds=1))
        signal = await run.wait_for("signal")

        async def child(run: Run) -> str:
            return await run.step("child's", effect, "child's", "child")

        return {"sum": one + sum(both), "signal": signal, "child": await run.child("child", child)}

    async def _signal_once(self, run: Run) -> None:
        async def signal() -> None:
            await self._store.signal(run.id, "signal", "go")

        await run.step("signal", signal)

    async def _leak(self) -> None:
        async with self._store.begin() as uow:
            await book(uow.session, self.workflow_id, "leak")
            await asyncio.Event().wait()

    async def _run(self) -> Any:
        return await self._store.run("cancelled", self.handler, workflow_id=self.workflow_id)

    async def _recover(self) -> None:
        await self._store.recover({"cancelled": self.handler})

    async def _left(self, before: set[asyncio.Task[Any]]) -> list[str]:
        """What the cancelled call left behind, the short time aside that a heartbeat or a note takes to end."""
        database = self._store._transactions.database
        pool: Any = database._pool.sync_engine.pool
        end = monotonic() + self._patience
        # Whoever notes which steps are running may begin to at any moment.
        while ((tasks := asyncio.all_tasks() - before) or pool.checkedout()) and monotonic() < end:
            await asyncio.wait(tasks or {asyncio.create_task(asyncio.sleep(0.01))}, timeout=0.01)
        found = [f"a task is left: {task.get_name()} {task.get_coro()}" for task in tasks]
        if pool.checkedout():
            found.append(f"{pool.checkedout()} connections are checked out")
        if isinstance(database, SqliteDatabase) and database._turn.is_taken:
            found.append("this process still has its turn to write")
        end = monotonic() + self._patience
        while await self._is_locked():
            if monotonic() > end:
                found.append("the database is locked")
                break
            await asyncio.sleep(0.02)  # a server takes a moment to notice that a client is gone
        return found

    async def _is_locked(self) -> bool:
        async with self._store._transactions.database.reading() as session:
            if not isinstance(self._store._transactions.database, SqliteDatabase):
                return bool((await session.execute(text(_OTHERS_IN_A_TRANSACTION))).scalar_one())
            path = (await session.execute(text("SELECT file FROM pragma_database_list WHERE seq = 0"))).scalar_one()
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    async def _recovered(self) -> list[str]:
        calls = self._calls.copy()
        finished = await self._finished_steps()
        try:
            result = await self._run()
        except OrchestratorStateError as error:
            return [f"it cannot be recovered: {error!r}"]
        self.acknowledged = len(await self._finished_steps())
        again = (step_id for step_id in finished if self._calls[step_id] > calls[step_id])
        found = [f"{step_id} had finished and ran again" for step_id in again]
        if result != _RESULT:
            found.append(f"its result is {result}")
        if (booked := await entries(self._store, self.workflow_id)) != ["book"]:
            found.append(f"the ledger has {booked}")
        return found

    async def _finished_steps(self) -> list[str]:
        async with self._store.begin() as uow:
            state = await uow.workflows.find_by_workflow_id(self.workflow_id)
        steps = {} if state is None else state.steps
        return [step_id for step_id, step in steps.items() if step.status is StepStatus.COMPLETED]


async def _wait_at_random(chance: random.Random, task: asyncio.Task[Any], longest: float) -> None:
    """Some number of turns of the loop, since a short time would hit few of the awaits at the start; or some time."""
    if chance.random() < 0.5:
        for _ in range(chance.randrange(300)):
            await asyncio.sleep(0)
    else:
        await asyncio.wait({task}, timeout=chance.uniform(0, longest))
