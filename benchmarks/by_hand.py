"""A durable step by hand: the fewest statements that are still right, on the product's own tables.

Each commit checks the fence, moves the workflow's row on, upserts the step, inserts a checkpoint that holds what
changed, and prunes to the newest ten; for one step or for hundreds that share the transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

import asyncpg
import msgspec

from benchmarks.raw import POSTGRES_SETTINGS, SQLITE_PRAGMAS, sqlite_file
from orchestrator_state import StateStore, WorkflowState

_KEEP: Final = 10


@dataclass(frozen=True, slots=True)
class Step:
    workflow_state_id: UUID
    position: int
    outputs: Any

    @property
    def step_id(self) -> str:
        return f"step-{self.position}"


class StepsByHand(Protocol):
    async def commit(self, steps: Sequence[Step]) -> None:
        """Write steps of different workflows in one transaction."""


def _payloads(step: Step) -> tuple[str, UUID, str]:
    """The encoded outputs; a checkpoint's id and delta: the step to look up, and a context that did not change."""
    encode = msgspec.json.encode
    return encode(step.outputs).decode(), uuid4(), encode({"step": step.step_id, "context": {}}).decode()


_MANY: Final = """
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::text[], $5::uuid[], $6::text[])
        AS given (id, step_id, position, outputs, checkpoint_id, delta)
"""
_ONE: Final = """
    SELECT $1::uuid AS id, $2::text AS step_id, $3::int AS position, $4::text AS outputs, $5::uuid AS checkpoint_id,
           $6::text AS delta
"""
_COMMIT: Final = """
    WITH given AS ({given}), run AS (
        UPDATE workflow_states AS w
        SET updated_at = $7::timestamptz, version = version + 1, checkpoint_seq = checkpoint_seq + 1
        FROM given WHERE w.id = given.id AND w.lease_token = 0
        RETURNING w.id, w.checkpoint_seq
    ), step AS (
        INSERT INTO step_states (workflow_state_id, step_id, status, started_at, completed_at, outputs, retry_count,
                                 position)
        SELECT id, step_id, 'completed', $7::timestamptz, $7, outputs, 0, position FROM given JOIN run USING (id)
        ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET
            status = excluded.status, completed_at = excluded.completed_at, outputs = excluded.outputs
        WHERE step_states.status <> 'completed'
    ), checkpoint AS (
        INSERT INTO checkpoints (id, workflow_state_id, step_id, timestamp, snapshot, seq)
        SELECT checkpoint_id, id, step_id, $7, delta, checkpoint_seq FROM given JOIN run USING (id)
    ), pruned AS (
        DELETE FROM checkpoints AS c USING run
        WHERE c.workflow_state_id = run.id AND c.seq <= run.checkpoint_seq - {keep}
    )
    SELECT count(*) FROM run
"""
_COMMIT_MANY: Final = _COMMIT.format(given=_MANY, keep=_KEEP)
_COMMIT_ONE: Final = _COMMIT.format(given=_ONE, keep=_KEEP)  # a tenth faster than arrays of one


class PostgresSteps:
    """One statement is one round trip and one commit."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def commit(self, steps: Sequence[Step]) -> None:
        rows = [(step.workflow_state_id, step.step_id, step.position, *_payloads(step)) for step in steps]
        now = datetime.now(UTC)
        if len(rows) == 1:
            written = await self._connection.fetchval(_COMMIT_ONE, *rows[0], now)
        else:
            written = await self._connection.fetchval(_COMMIT_MANY, *map(list, zip(*rows, strict=True)), now)
        _require_all(steps, written)


_SQLITE: Final = (
    """
    UPDATE workflow_states SET updated_at = :now, version = version + 1, checkpoint_seq = checkpoint_seq + 1
    WHERE id = :id AND lease_token = 0
    """,
    """
    INSERT INTO step_states (workflow_state_id, step_id, status, started_at, completed_at, outputs, retry_count,
                             position)
    VALUES (:id, :step_id, 'completed', :now, :now, :outputs, 0, :position)
    ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET
        status = excluded.status, completed_at = excluded.completed_at, outputs = excluded.outputs
    WHERE step_states.status <> 'completed'
    """,
    """
    INSERT INTO checkpoints (id, workflow_state_id, step_id, timestamp, snapshot, seq)
    VALUES (:checkpoint_id, :id, :step_id, :now, :delta, :position + 1)
    """,
    f"DELETE FROM checkpoints WHERE workflow_state_id = :id AND seq <= :position + 1 - {_KEEP}",
)


class SqliteSteps:
    """The standard library's driver, called where we stand: a thread would only cost."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def commit(self, steps: Sequence[Step]) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        rows = [_sqlite_row(step, now) for step in steps]
        self._connection.execute("BEGIN IMMEDIATE")
        written = [self._connection.executemany(statement, rows).rowcount for statement in _SQLITE]
        self._connection.execute("COMMIT")
        _require_all(steps, written[0])


def _sqlite_row(step: Step, now: str) -> dict[str, Any]:
    outputs, checkpoint_id, delta = _payloads(step)
    return {
        "now": now,
        "id": str(step.workflow_state_id),
        "step_id": step.step_id,
        "position": step.position,
        "outputs": outputs,
        "checkpoint_id": str(checkpoint_id),
        "delta": delta,
    }


def _require_all(steps: Sequence[Step], written: int) -> None:
    if written != len(steps):
        raise RuntimeError(f"{len(steps) - written} of {len(steps)} steps were refused")


@asynccontextmanager
async def steps_by_hand(url: str) -> AsyncIterator[StepsByHand]:
    """A connection of its own to a database that has the product's schema."""
    if url.startswith("postgresql:"):
        connection = await asyncpg.connect(url, server_settings=POSTGRES_SETTINGS)
        try:
            yield PostgresSteps(connection)
        finally:
            await connection.close()
    else:
        with closing(sqlite3.connect(sqlite_file(url), isolation_level=None)) as file:
            for pragma in SQLITE_PRAGMAS:
                file.execute(f"PRAGMA {pragma}")
            yield SqliteSteps(file)


async def new_workflows(store: StateStore, count: int) -> list[UUID]:
    """Workflows without steps, for steps that are written by hand."""
    states = [WorkflowState(workflow_id=f"by-hand-{number}", workflow_name="by-hand") for number in range(count)]
    async with store.begin() as uow:
        for state in states:
            state.mark_running()
            await uow.workflows.save(state)
    return [state.id for state in states]
