"""Read whole runs as rows, and insert them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Insert, bindparam, func, select
from sqlalchemy.sql import Select

from orchestrator_state.database import conflict_aware_insert, is_addressable, stored_bytes
from orchestrator_state.models import workflow_states
from orchestrator_state.records import PAYLOAD_COLUMNS
from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.moving.tables import TABLES, MovedTable, Row, RunRows

_RUNS: Final = TABLES[workflow_states.name]


class RunSize(NamedTuple):
    """About how many bytes a run takes, as far as the database tells without reading it."""

    id: UUID
    bytes: int


@dataclass(frozen=True, slots=True)
class LeftRun:
    """A run that cannot be moved as it is."""

    id: UUID
    reason: str


def _size_of(moved: MovedTable) -> ColumnElement[int]:
    """The bytes of the payloads in its rows of a run."""
    own = moved.table.alias()
    sizes = [func.coalesce(stored_bytes(own.c[name]), 0) for name in PAYLOAD_COLUMNS[moved.name]]
    total = func.coalesce(func.sum(reduce(add, sizes)), 0)
    return select(total).where(own.c[moved.owner] == workflow_states.c.id).scalar_subquery()


@cache
def _next_runs() -> Select[Any]:
    """The next runs in the order of their ids, and their sizes."""
    size = reduce(add, [_size_of(moved) for moved in TABLES.values() if moved.name in PAYLOAD_COLUMNS])
    mine = workflow_states.c.namespace == bindparam("namespace")
    return (
        select(workflow_states.c.id, size.label("bytes"))
        .where(mine, is_addressable(workflow_states.c.id))
        .order_by(workflow_states.c.id)
        .limit(bindparam("most"))
    )


_COUNT: Final = select(func.count()).where(workflow_states.c.namespace == bindparam("namespace"))

_COUNT_UNADDRESSABLE: Final = _COUNT.where(~is_addressable(workflow_states.c.id))


class MovingRepository(Repository):
    """Runs of the namespace, with all that belongs to them."""

    async def count(self) -> int:
        """How many runs there are."""
        (counted,) = await self._row(_COUNT, {"namespace": self._namespace})
        return int(counted)

    async def count_unaddressable(self) -> int:
        """How many runs there are whose id is none, so that nothing can be said of them."""
        (counted,) = await self._row(_COUNT_UNADDRESSABLE, {"namespace": self._namespace})
        return int(counted)

    async def list_sizes(self, after: UUID | None, most: int) -> Sequence[RunSize]:
        """The next runs in the order of their ids."""
        query = _next_runs()
        if after is not None:
            query = query.where(workflow_states.c.id > after)
        rows = await self._rows(query, {"namespace": self._namespace, "most": most})
        return [RunSize(row.id, int(row.bytes)) for row in rows]

    async def get(self, ids: Sequence[UUID]) -> tuple[list[RunRows], list[LeftRun]]:
        """The runs of these ids that are there; those with cells that hold no value of their type are left."""
        found: dict[UUID, dict[str, list[Row]]] = {}
        left: dict[UUID, str] = {}
        for moved in TABLES.values():
            for row in await self._rows_of(moved, ids):
                owner = getattr(row, moved.owner)
                if damaged := moved.damage_in(row):
                    left.setdefault(owner, f"{moved.name}.{damaged[0]} holds no value of its type")
                if moved is _RUNS:
                    found[owner] = defaultdict(list)
                if owner in found:
                    found[owner][moved.name].append(moved.moved(row))
        runs = [RunRows.of(each, found[each]) for each in ids if each in found and each not in left]
        return runs, [LeftRun(each, why) for each, why in left.items()]

    async def insert(self, runs: Sequence[RunRows]) -> set[UUID]:
        """Insert those that are not there, with all that belongs to them. Returns their ids.

        Raises `AlreadyExists` if one is not there, but a part of it is, under another run.
        """
        inserted = await self._insert_new([run.workflow for run in runs])
        new = [run for run in runs if run.id in inserted]
        for moved in TABLES.values():
            if moved is not _RUNS:
                takers = runs if moved.outlives_run else new
                await self.insert_rows(moved, [row for run in takers for row in run.rows.get(moved.name, ())])
        if inserted:
            await self._announce()
        return inserted

    async def insert_rows(self, moved: MovedTable, rows: Sequence[Row]) -> None:
        """Insert rows that belong to runs; what outlives its run may be there."""
        if rows:
            await self._execute(_insert(self._dialect, moved), list(rows))

    async def list_outliving(self, moved: MovedTable, after: Any, most: int) -> Sequence[Row]:
        """The next rows, in the order of their keys, whose run is not there any more."""
        table = moved.table
        (key,) = table.primary_key
        has_run = select(workflow_states.c.id).where(workflow_states.c.id == table.c[moved.owner]).exists()
        query = select(*table.columns).where(table.c.namespace == self._namespace, ~has_run)
        if after is not None:
            query = query.where(key > after)
        rows = await self._rows(query.order_by(key).limit(most))
        return [moved.moved(row) for row in rows]

    async def _insert_new(self, rows: Sequence[Row]) -> set[UUID]:
        result = await self._execute(_insert_runs(self._dialect), list(rows))
        return set(result.scalars())

    async def _rows_of(self, moved: MovedTable, ids: Collection[UUID]) -> Iterable[Any]:
        owner = moved.table.c[moved.owner]
        query = select(*moved.table.columns).where(owner.in_(bindparam("ids", expanding=True)))
        if moved is _RUNS:
            query = query.where(workflow_states.c.namespace == self._namespace)
        return await self._rows(query, {"ids": list(ids)})


@cache
def _insert_runs(dialect: str) -> Insert:
    # Without a target: another run may have the idempotency key.
    return conflict_aware_insert(dialect, workflow_states).on_conflict_do_nothing().returning(workflow_states.c.id)


@cache
def _insert(dialect: str, moved: MovedTable) -> Insert:
    insert = conflict_aware_insert(dialect, moved.table)
    return insert.on_conflict_do_nothing() if moved.outlives_run else insert
