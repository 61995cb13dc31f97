"""A worker that is frozen past its lease, as by a paused machine, and wakes when another one has the run."""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from orchestrator_state import LeaseLost, OrchestratorStateError, Run, StateStore, StoreUnavailable, WorkflowStatus
from tests.chaos.children import Child, Pipe
from tests.chaos.flaws import plant
from tests.chaos.report import Report
from tests.support.postgres_proxy import opened_impatient

_STEPS: Final = 6
_TERM: Final = timedelta(seconds=1.2)
_PATIENCE: Final = timedelta(seconds=0.6)
"""Of the second worker with a lock that the frozen one holds: on SQLite nobody can write until it wakes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    url: str
    workflow_id: str
    seed: int
    is_fenced: bool = True


async def freeze_past_the_lease(url: str, *, rounds: int, seed: int, is_fenced: bool = True) -> Report:
    """Freeze a worker at a random moment, let another take over, wake the first in the middle of the other's step."""
    flaw = "" if is_fenced else ", the token taken out of the WHERE clause"
    report, chance = Report(name=f"a worker frozen past its lease{flaw}", seed=seed), random.Random(seed)
    options: dict[str, Any] = {"lease_term": _TERM, "lock_timeout": _PATIENCE, "retry_timeout": _PATIENCE}
    async with StateStore.open(url, migrate=False, pool_min=1, **options) as second:
        number = 0
        while report.rounds < rounds and (is_fenced or not report.faults):
            number += 1
            job = Job(url=url, workflow_id=f"w-{number}", seed=chance.randrange(2**32), is_fenced=is_fenced)
            with Child(work, job) as first:
                if not await _is_frozen(first, chance):
                    report.figures["ended before it was frozen"] += 1
                    continue
                taken_over = await _TakeOver(second, first, job.workflow_id).play(report)
                report.rounds += taken_over
                report.figures["frozen within a write, so that nobody could take over"] += not taken_over
    return report


async def _is_frozen(first: Child, chance: random.Random) -> bool:
    """Freeze it at a random moment. Not, if a busy machine has kept it from renewing its short lease until then."""
    with suppress(EOFError):
        for _ in range(chance.randrange(1, _STEPS)):
            await first.message()
        await asyncio.sleep(chance.uniform(0, 0.03))
        return first.freeze()
    return False


class _TakeOver:
    """The second worker's side of a round."""

    def __init__(self, store: StateStore, first: Child, workflow_id: str) -> None:
        self._store = store
        self._first = first
        self._workflow_id = workflow_id
        self._inherited: dict[str, Any] | None = None
        self._has_woken_it = False

    async def play(self, report: Report) -> bool:
        """Returns whether the run was taken over from the frozen worker."""
        if not await self._recover(report):
            return False
        ended = (await self._first.end())[-1]
        report.figures[f"ended with {ended}"] += 1
        # In the middle of a statement it may first find that its connection is gone.
        if ended not in (LeaseLost.__name__, StoreUnavailable.__name__):
            report.find("other", f"{self._workflow_id}: the first worker ended with {ended}")
        report.find("stale", *(f"{self._workflow_id}: {fault}" for fault in await self._faults()))
        return True

    async def _recover(self, report: Report) -> bool:
        """Look for the run until it is completed; False if the frozen worker stands in the way."""
        give_up_at = monotonic() + 3 * _TERM.total_seconds()
        while True:
            try:
                found = await self._store.recover({self._workflow_id: self._handler})
            except StoreUnavailable:
                return False
            if found.completed:
                report.acknowledged += _STEPS + 1
                return True
            if self._inherited is None and monotonic() > give_up_at:
                return False
            await asyncio.sleep(0.05)

    async def _handler(self, run: Run) -> str:
        if self._inherited is None:
            state = await self._store.load_workflow_state(run.id)
            self._inherited = {step_id: step.outputs for step_id, step in state.steps.items()}

        async def second() -> str:
            if not self._has_woken_it:
                self._has_woken_it = True
                self._first.wake()
                await asyncio.sleep(0.1)
            return "second"

        for step in range(_STEPS):
            await run.step(f"step {step}", second)
        await run.step("last", second)
        return "second"

    async def _faults(self) -> list[str]:
        state = await self._store.load_workflow_state_by_workflow_id(self._workflow_id)
        inherited = self._inherited or {}
        found = [
            f"{step_id} was written by the {step.outputs} worker, late"
            for step_id, step in state.steps.items()
            if step.outputs != inherited.get(step_id, "second")
        ]
        # On a busy machine the first worker may have gone further than the second one's handler goes.
        wanted = {*inherited, *(f"step {step}" for step in range(_STEPS)), "last"}
        if state.status is not WorkflowStatus.COMPLETED or state.steps.keys() != wanted:
            found.append(f"the run is {state.status} with the steps {sorted(state.steps)}")
        return found


# --- the first worker --------------------------------------------------------------------------------------------


def work(job: Job, pipe: Pipe) -> None:
    if not job.is_fenced:
        plant("writes without a fence")
    asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Pipe) -> None:
    chance = random.Random(job.seed)

    async def first(step: int) -> str:
        pipe.send(step)
        await asyncio.sleep(chance.uniform(0.01, 0.04))
        return "first"

    async def handler(run: Run) -> None:
        for step in range(1000):
            await run.step(f"step {step}", first, step)

    # Postgres ends a frozen session that is in a transaction after twice as long as it waits for an answer.
    async with opened_impatient(job.url, migrate=False, pool_min=1, lease_term=_TERM) as store:
        try:
            await store.run(job.workflow_id, handler, workflow_id=job.workflow_id)
        except OrchestratorStateError as error:
            pipe.send(type(error).__name__)
