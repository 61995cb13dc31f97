"""Many workers, many runs: each run is owned once per token, and its handler is called once."""

import asyncio
import os
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import func, select, text, update

from orchestrator_state import Run, StateStore, Worker
from orchestrator_state.models import workflow_states
from orchestrator_state.records import ClaimedRun, Owner
from orchestrator_state.repositories.claimable import LEASE_IS_FREE
from orchestrator_state.repositories.runs.claims import CLAIMED, TAKEN, ClaimRepository, lease_parameters
from tests.chaos.children import Child, Pipe
from tests.chaos.report import Report
from tests.chaos.witness import Journal, read_journal

Flaw = Literal["looks and claims in two transactions", "picks rows in a plain subquery"]

_PATIENCE: Final = 300.0  # seconds for all runs


@dataclass(frozen=True, kw_only=True)
class Job:
    url: str
    journal: str
    flaw: Flaw | None = None


async def race_for_runs(url: str, directory: Path, *, runs: int, workers: int = 8, flaw: Flaw | None = None) -> Report:
    """Let `workers` processes at once loose on `runs` pending runs."""
    report = Report(name=f"{workers} workers race for runs{f', a worker that {flaw}' if flaw else ''}", seed=0)
    job = Job(url=url, journal=str(directory / f"{report.name}.journal"), flaw=flaw)
    async with StateStore.open(url, migrate=False, pool_min=1) as store:
        await asyncio.gather(*(store.start("race", workflow_id=f"w-{number}") for number in range(runs)))
        with ExitStack() as stack:
            crowd = [stack.enter_context(Child(work, job)) for _ in range(workers)]
            for child in crowd:
                await child.message()
            for child in crowd:
                child.tell("go")
            await asyncio.wait_for(_all_are_finished(store), _PATIENCE)
            for child in crowd:
                child.terminate()
            for child in crowd:
                await child.end()
                if child.exit_code != 0:
                    report.find("other", f"a worker ended with {child.exit_code}")
        report.rounds = report.acknowledged = runs
        report.find("doubled", *await _faults(store, read_journal(job.journal)))
    return report


async def force_nested_loops(url: str) -> None:
    """Leave Postgres no other plan for a join in this database."""
    settings = ("enable_hashjoin", "enable_mergejoin", "enable_hashagg", "enable_material", "enable_sort")
    async with StateStore.open(url, pool_min=1) as store, store.begin() as uow:
        for setting in settings:
            await uow.session.execute(
                text(f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting} = off', current_database()); END $$")
            )


async def _all_are_finished(store: StateStore) -> None:
    unfinished = select(func.count()).where(workflow_states.c.status != "completed")
    while True:
        async with store.begin() as uow:
            if not (await uow.session.execute(unfinished)).scalar_one():
                return
        await asyncio.sleep(0.1)


async def _faults(store: StateStore, lines: Sequence[str]) -> list[str]:
    claims = Counter(line for line in lines if line.startswith("claim "))
    calls = Counter(line.split()[1] for line in lines if line.startswith("claim "))
    found = [f"{claim} had {owners} owners" for claim, owners in claims.items() if owners > 1]
    found += [f"{workflow_id} was executed {times} times" for workflow_id, times in calls.items() if times > 1]
    found += [line for line in lines if line.startswith("over")]
    async with store.begin() as uow:
        for row in await uow.session.execute(select(workflow_states)):
            if (row.status, row.lease_token, row.attempts) != ("completed", 1, 0):
                found.append(f"{row.workflow_id} is {row.status}, token {row.lease_token}, attempts {row.attempts}")
    return found


# --- the workers -------------------------------------------------------------------------------------------------


def work(job: Job, pipe: Pipe) -> None:
    if job.flaw is not None:
        ClaimRepository.claim_abandoned = _FLAWED[job.flaw]  # type: ignore[method-assign]
    asyncio.run(_work(job, pipe))


async def _work(job: Job, pipe: Pipe) -> None:
    journal = Journal(job.journal)

    async def handler(run: Run) -> None:
        lease = run._steps.journal.lease
        journal.note(f"claim {run.workflow_id} {lease.token}")
        await run.step("step", asyncio.sleep, 0.001)

    _note_claims_over_the_limit(journal)
    async with StateStore.open(job.url, migrate=False, pool_min=1, pool_max=5) as store:
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        await Worker(store, {"race": handler}, concurrency=5, poll=0.05).run()


def _note_claims_over_the_limit(journal: Journal) -> None:
    claim_abandoned = ClaimRepository.claim_abandoned

    async def noted(self: ClaimRepository, names: Collection[str], owner: Owner, limit: int) -> list[ClaimedRun]:
        rows = await claim_abandoned(self, names, owner, limit)
        if len(rows) > limit:
            journal.note(f"over the limit: {len(rows)} claimed by {os.getpid()}, {limit} wanted")
        return rows

    ClaimRepository.claim_abandoned = noted  # type: ignore[method-assign]


# --- flaws -------------------------------------------------------------------------------------------------------


def _free(limit: int) -> Any:
    w = workflow_states.c
    return select(w.id).where(w.status.in_(("pending", "running")), LEASE_IS_FREE).order_by(w.updated_at).limit(limit)


async def _take(repository: ClaimRepository, owner: Owner, chosen: Any) -> list[ClaimedRun]:
    taking = update(workflow_states).where(workflow_states.c.id.in_(chosen)).values(TAKEN).returning(*CLAIMED)
    taken = await repository._execute(taking, lease_parameters(owner))
    return [ClaimedRun.of(row) for row in taken]


_seen: list[Any] = []


async def _looks_then_claims(
    self: ClaimRepository, names: Collection[str], owner: Owner, limit: int
) -> list[ClaimedRun]:
    """Claims, in a later transaction, what was free in an earlier one."""
    if not _seen:
        _seen.extend((await self._execute(_free(limit))).scalars())
        return []
    rows = await _take(self, owner, list(_seen))
    _seen.clear()
    return rows


async def _claims_by_subquery(
    self: ClaimRepository, names: Collection[str], owner: Owner, limit: int
) -> list[ClaimedRun]:
    """Like the real one, but for the materialized CTE."""
    return await _take(self, owner, _free(limit).with_for_update(skip_locked=True))


_FLAWED: Final = {
    "looks and claims in two transactions": _looks_then_claims,
    "picks rows in a plain subquery": _claims_by_subquery,
}
