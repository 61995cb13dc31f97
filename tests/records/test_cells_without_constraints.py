"""NULL, and numbers below nothing, where somebody has dropped the constraints that keep them out."""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Table

from orchestrator_state import Checkpoint, Run, StateStore, UnprotectedPayload
from orchestrator_state.errors import OrchestratorStateError
from orchestrator_state.models import checkpoints, requests, signals, step_states, workflow_states
from tests.support.cases import case
from tests.support.payload_samples import encrypted
from tests.support.raw_sql import execute, fetch
from tests.support.running import change_row

TABLES = (workflow_states, step_states, checkpoints, signals, requests)
Change = tuple[str, str]
"""A column, and what it is set to."""


async def waits(run: Run) -> Any:
    await run.step("a", lambda: "a")
    return await run.wait_for("go")


async def done(run: Run) -> Any:
    return await run.step("a", lambda: "a")


def loosen(url: str, table: Table) -> None:
    """Let every column of the table take everything, and keep the indexes."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                f"UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = '{table.name}'"
            )
        return
    key = ", ".join(column.name for column in table.primary_key)
    execute(
        url,
        f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey CASCADE",
        f"CREATE UNIQUE INDEX ON {table.name} ({key})",
        *(f"ALTER TABLE {table.name} ALTER {column.name} DROP NOT NULL" for column in table.c),
    )


def damage(url: str, table: Table, changes: Sequence[tuple[Change, UUID]]) -> None:
    """Each in a row of its own: the run's, or one of those that hang on it."""
    key = f"CAST({[*table.primary_key][-1].name} AS TEXT)"
    owner = "id" if table is workflow_states else "workflow_state_id"
    # A request says nothing of whose it is; each run has been started by one.
    starts = iter(fetch(url, "SELECT CAST(id AS TEXT) FROM requests WHERE kind = 'start' ORDER BY made_at"))
    statements = []
    for (column, value), run_id in changes:
        if table is requests:
            (request,) = next(starts)
            of_run = f"{key} = '{request}'"
        else:
            of_run = f"{owner} = '{run_id}'"
        one = f"SELECT min({key}) FROM {table.name} WHERE {of_run}"
        statements.append(f"UPDATE {table.name} SET {column} = {value} WHERE {of_run} AND {key} = ({one})")
    if url.startswith("sqlite"):  # whose own connections enforce no foreign keys
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            for statement in statements:
                assert connection.execute(statement).rowcount == 1
    else:
        execute(url, *statements)


async def runs_of(store: StateStore, names: Sequence[str]) -> list[UUID]:
    """Each with a step, a checkpoint, and a signal that nobody has asked for."""
    ids = [(await store.start("n", workflow_id=name, context={"of": name})).id for name in names]
    await store.recover({"n": waits})
    for run_id in ids:
        await store.signal(run_id, "other")
    return ids


def asked_of(store: StateStore, name: str, run_id: UUID, checkpoint_id: UUID) -> Iterator[Any]:
    """All that one can ask of a run and its checkpoint."""
    yield partial(store.load_workflow_state, run_id)
    yield partial(store.load_workflow_state_by_workflow_id, name)
    yield partial(store.get_latest_checkpoint, run_id)
    yield partial(store.restore_from_checkpoint, checkpoint_id)
    yield partial(store.create_checkpoint, Checkpoint(workflow_state_id=run_id, step_id="c", snapshot={}))
    yield partial(store.cleanup_old_checkpoints, run_id, keep=2)
    yield partial(store.fork, checkpoint_id)
    yield partial(store.signal, run_id, "once more")
    yield partial(store.pause, run_id)
    yield partial(store.resume, run_id)
    yield partial(store.start, "n", workflow_id=name)
    yield partial(store.run, "n", done, workflow_id=name)
    yield partial(store.rewind, checkpoint_id)
    yield partial(store.cancel, run_id)


async def assert_neighbours_are_served(store: StateStore, neighbours: Sequence[UUID]) -> None:
    await store.verify(load=True)
    await store.rekey()
    listed = await store.list_active_workflows(on_damaged=lambda _: None)
    assert {"before", "after"} <= {state.workflow_id for state in listed}
    for run_id in neighbours:
        await store.signal(run_id, "go")
    recovered = await store.recover({"n": waits})
    assert {"before", "after"} <= {run.workflow_id for run in recovered.completed}
    for run in (*recovered.runs, *recovered.unknown):
        assert run.error is None or isinstance(run.error, OrchestratorStateError)


async def assert_harm_their_runs_alone(
    store: StateStore, database_url: str, changes: Sequence[tuple[Table, Change]]
) -> None:
    """Each change in a run of its own, all of them between two runs that are sound."""
    names = [f"{table}.{column} = {value}" for table, (column, value) in changes]
    ids = await runs_of(store, ["before", *names, "after"])
    damaged = ids[1:-1]
    latest = [await store.get_latest_checkpoint(run_id) for run_id in damaged]
    for table in {table: None for table, _ in changes}:
        of_table = [(each[1], run_id) for each, run_id in zip(changes, damaged, strict=True) if each[0] is table]
        damage(database_url, table, of_table)
    await assert_neighbours_are_served(store, [ids[0], ids[-1]])
    for name, run_id, checkpoint in zip(names, damaged, latest, strict=True):
        assert checkpoint is not None
        with case(name):
            for ask in asked_of(store, name, run_id, checkpoint.id):
                with contextlib.suppress(OrchestratorStateError):
                    await ask()
    await store.prune_checkpoints(keep=1)
    await store.delete_old_states(datetime.now(UTC) + timedelta(days=1))
    assert not {"before", "after"} & {
        state.workflow_id for state in await store.list_active_workflows(on_damaged=lambda _: None)
    }


def integers_of(table: Table) -> list[str]:
    return [column.name for column in table.c if column.type.python_type is int]


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=str)
async def test_null_in_a_column_that_may_have_none_harms_its_run_alone(database_url: str, table: Table) -> None:
    """The other tables keep their constraints."""
    loosen(database_url, table)
    async with StateStore.open(database_url) as store:
        changes = [(table, (column.name, "NULL")) for column in table.c if not column.nullable]
        await assert_harm_their_runs_alone(store, database_url, changes)


@pytest.mark.slow
async def test_a_number_out_of_all_bounds_harms_its_run_alone(
    store: StateStore, database_url: str, backend: str
) -> None:
    """One below nothing is the same to both databases. What comes after the largest is an error of Postgres's alone."""
    numbers = ("-5", "2147483647") if backend == "sqlite" else ("2147483647",)
    columns = [(table, column) for table in TABLES for column in integers_of(table)]
    changes = [(table, (column, number)) for (table, column), number in itertools.product(columns, numbers)]
    await assert_harm_their_runs_alone(store, database_url, changes)


async def test_a_context_that_was_replaced_by_null_is_unprotected(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as store:
        run_id = (await store.start("n", workflow_id="w", context={})).id
        loosen(database_url, workflow_states)
        async with StateStore.open(database_url, payloads=encrypted("k", strict=True)) as reopened:
            await change_row(reopened, run_id, context=None, context_digest=None)
            with pytest.raises(UnprotectedPayload) as refused:
                await reopened.load_workflow_state(run_id)
            assert refused.value.about["workflow_state_id"] == run_id
