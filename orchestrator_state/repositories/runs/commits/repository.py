"""Write the commits of runs: in a caller's transaction, or many at once in one of their own.

Whichever way, they are the same statements: those of `postgres`, or of `sqlite`. A change that was passed over (None
instead of an `Ack`) changed nothing, and nothing is known yet but that: its lease may be another's, its row locked, its
checkpoints unnumbered; or it is the repetition of an attempt that took effect. It is for `CommitRepository.commit`, on
its own, to wait and to find out.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Executable, bindparam, or_, select, update

from orchestrator_state.database import (
    Database,
    Execute,
    ExecuteEach,
    is_marked,
    takes_marks,
    transaction_ended,
    write_in,
)
from orchestrator_state.domain import StepStatus
from orchestrator_state.models import CheckpointRow, WorkflowRow, step_states, workflow_states
from orchestrator_state.records import Ack, RunChange, UsageRecord
from orchestrator_state.repositories.checkpointed import CheckpointedRepository
from orchestrator_state.repositories.counts import next_count
from orchestrator_state.repositories.runs.commits import postgres, sqlite
from orchestrator_state.repositories.runs.commits.usage import inserting, values_of_usage
from orchestrator_state.repositories.runs.fence import FENCE, fence, lease_lost

_NEXT_SEQ: Final = next_count(WorkflowRow.checkpoint_seq, CheckpointRow)
_LOCK: Final = (
    select(_NEXT_SEQ.label("next_seq"), workflow_states.c.version, workflow_states.c.request)
    .where(*FENCE)
    .with_for_update()
)
_COUNT_ANEW: Final = update(workflow_states).where(*FENCE).values(checkpoint_seq=_NEXT_SEQ - 1)


_s = step_states.c
_LANDED: Final = select(_s.step_id).where(
    _s.workflow_state_id == bindparam("of_workflow"),
    _s.step_id == bindparam("of_step"),
    or_(_s.position == bindparam("at"), _s.status == StepStatus.COMPLETED.value),
)


class CommitRepository(CheckpointedRepository):
    """Step commits in the transaction of a session."""

    async def commit(self, change: RunChange, *, with_callers_rows: bool = False) -> Ack:
        """Write `change` under its lease. Raises `LeaseLost`, having written nothing, if the lease is another's.

        A step that is recorded as completed is never written again, nor a change of which an earlier attempt took
        effect; the answer says so. Waits for the row's lock. `with_callers_rows`: raises `ConfigurationError` if this
        is not the transaction any more in which the caller's code began to write.
        """
        only_marked = with_callers_rows and takes_marks(self._session)
        [ack] = await self.commit_unblocked([change], only_marked=only_marked)
        if ack is None:
            if only_marked and not (await self._row(select(is_marked())))[0]:
                raise transaction_ended()
            ack = await self._find_out(change)
        if ack is None:
            [ack] = await self.commit_unblocked([change])
        if ack is None:
            raise lease_lost(change.lease)
        return ack

    async def commit_counting_anew(self, change: RunChange) -> Ack:
        """Like `commit`, after it was refused: the count of the checkpoints may be damaged."""
        await self._execute(_COUNT_ANEW, fence(change.lease))
        return await self.commit(change)

    async def _find_out(self, change: RunChange) -> Ack | None:
        """Wait for the row, and see what has become of an earlier attempt. None: it may be written now.

        The commits of a run follow each other, so that nothing of ours but that attempt can have moved the row on by
        one. Somebody else's SQL can; so the step has to be there as well.
        """
        lease = change.lease
        row = await self._row(_LOCK, fence(lease))
        if row is None or row.version not in (lease.version, lease.version + 1):
            raise lease_lost(lease)
        if row.version > lease.version:
            if not await self._has_landed(change):
                raise lease_lost(lease)
            return Ack(request=row.request, already_recorded=True)
        await self._number_older_checkpoints(lease.workflow_state_id, row.next_seq)
        return None

    async def _has_landed(self, change: RunChange) -> bool:
        """Whether the step is on record: from this commit, or completed, so that this one has left it alone."""
        step = change.step
        found = {"of_workflow": change.lease.workflow_state_id, "of_step": step.step_id, "at": step.position}
        return await self._row(_LANDED, found) is not None

    async def _number_older_checkpoints(self, run_id: UUID, next_seq: int) -> None:
        """Number checkpoints that older software has inserted."""
        free = await self._number_checkpoints(run_id, next_seq)
        # The commit that follows counts on by itself.
        await self._execute(
            update(workflow_states).where(workflow_states.c.id == run_id).values(checkpoint_seq=free - 1)
        )

    async def add_usage(self, run_id: UUID, usage: Sequence[UsageRecord]) -> None:
        """Write what a run has used that no commit of its own will. It takes no lease: it was paid for by anybody."""
        await self._execute(inserting(self._dialect), values_of_usage(run_id, usage))

    async def commit_unblocked(
        self, changes: Sequence[RunChange], *, only_marked: bool = False, idle_limit: timedelta | None = None
    ) -> list[Ack | None]:
        """Write those of `changes`, each of another run, that nothing stands in the way of.

        `only_marked`, for one change on Postgres: only in a transaction that is marked. An `idle_limit` is set for the
        transaction, in the same round trip.
        """
        batch = _Commits(changes, only_marked=only_marked, idle_limit=idle_limit)
        return await write_in(self._session, batch, self._execute)


def commit_at_once(database: Database, changes: Sequence[RunChange]) -> Coroutine[Any, Any, list[Ack | None]]:
    """`commit_unblocked` in a transaction of its own, without a session: one round trip, or one switch of threads."""
    return database.write_at_once(_Commits(changes))


class _Commits:
    """Commits of runs, to be written together."""

    def __init__(
        self, changes: Sequence[RunChange], *, only_marked: bool = False, idle_limit: timedelta | None = None
    ) -> None:
        self._changes = changes
        self._only_marked = only_marked
        self._idle_limit = idle_limit

    def as_one_statement(self) -> tuple[Executable, Mapping[str, Any]]:
        return postgres.commit(self._changes, only_marked=self._only_marked, idle_limit=self._idle_limit)

    def answer(self, rows: Iterable[Any]) -> list[Ack | None]:
        return postgres.acks(self._changes, rows)

    def write(self, execute: Execute, execute_each: ExecuteEach) -> list[Ack | None]:
        return sqlite.write(execute, execute_each, self._changes)
