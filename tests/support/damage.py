"""Damage to what is stored, done past the package."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Table, and_, select, update

from orchestrator_state import StateStore
from orchestrator_state.models import checkpoints, metadata, signals, step_states, workflow_states
from tests.support.raw_sql import SQLITE, execute
from tests.support.running import fetch

Stored = tuple[str, str | None]
"""A payload's text and its digest."""
Damage = Callable[[Stored, Stored], Stored]
"""Makes of what is stored, and of what is stored elsewhere, what is stored then."""

DAMAGES: dict[str, Damage] = {
    "a flipped bit": lambda mine, _: (_flipped(mine[0]), mine[1]),
    "the end cut off": lambda mine, _: (mine[0][:-1], mine[1]),
    "cut in half": lambda mine, _: (mine[0][: len(mine[0]) // 2], mine[1]),
    "nothing left": lambda mine, _: ("", mine[1]),
    "another valid JSON": lambda mine, _: ('{"set":{},"append":{},"drop":[]}', mine[1]),
    "another row's": lambda _, other: other,
    "a flipped bit in the digest": lambda mine, _: (mine[0], _flipped(mine[1] or "")),
    "garbage for a digest": lambda mine, _: (mine[0], "no digest"),
    "an empty digest": lambda mine, _: (mine[0], ""),
}


def _flipped(text: str) -> str:
    middle = len(text) // 2
    return text[:middle] + chr(ord(text[middle]) ^ 1) + text[middle + 1 :]


@dataclass(frozen=True)
class Place:
    """Where a payload is stored: a column, and the step of a workflow that it belongs to, if it is a step's."""

    table: Table
    column: str
    step_id: str | None = None

    def __str__(self) -> str:
        return f"{self.table.name}.{self.column}"

    def _of(self, workflow_state_id: UUID) -> Any:
        owner = self.table.c.id if self.table is workflow_states else self.table.c.workflow_state_id
        if self.step_id is None or self.table is not step_states:
            return owner == workflow_state_id
        return and_(owner == workflow_state_id, self.table.c.step_id == self.step_id)

    async def read(self, store: StateStore, workflow_state_id: UUID) -> Stored:
        """The newest of them, where there are several rows."""
        newest = self.table.c.seq.desc() if "seq" in self.table.c else self.table.primary_key.columns[0]
        columns = select(self.table.c[self.column], self.table.c[f"{self.column}_digest"])
        rows = await fetch(store, columns.where(self._of(workflow_state_id)).order_by(newest))
        return rows[0][0], rows[0][1]

    async def write(self, store: StateStore, workflow_state_id: UUID, stored: Stored) -> None:
        values = {self.column: stored[0], f"{self.column}_digest": stored[1]}
        async with store.begin() as uow:
            await uow.session.execute(update(self.table).where(self._of(workflow_state_id)).values(values))


CONTEXT = Place(workflow_states, "context")
INITIAL_CONTEXT = Place(workflow_states, "initial_context")
RESULT = Place(workflow_states, "result")
ERROR = Place(workflow_states, "error")
OUTPUTS = Place(step_states, "outputs", "a")
STEP_ERROR = Place(step_states, "error", "a")
CONTEXT_PATCH = Place(step_states, "context_patch", "a")
SNAPSHOT = Place(checkpoints, "snapshot")
SIGNAL = Place(signals, "payload")
PLACES: Sequence[Place] = (
    CONTEXT,
    INITIAL_CONTEXT,
    RESULT,
    ERROR,
    OUTPUTS,
    STEP_ERROR,
    CONTEXT_PATCH,
    SNAPSHOT,
    SIGNAL,
)


def all_payload_columns() -> set[str]:
    """`table.column` of each column that has a digest beside it."""
    return {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if f"{column.name}_digest" in table.columns
    }


def write_bytes(url: str, place: Place, workflow_state_id: UUID, data: bytes) -> None:
    """Store `data`, which need not be UTF-8, as a bad disk would."""
    owner = "id" if place.table is workflow_states else "workflow_state_id"
    value = f"CAST(x'{data.hex()}' AS TEXT)"
    allow: list[str] = []
    if not url.startswith(SQLITE):
        # A cast without a function takes the bytes as they are, where Postgres would check them.
        value = f"CAST('\\x{data.hex()}'::bytea AS text)"
        allow = ["DROP CAST IF EXISTS (bytea AS text)", "CREATE CAST (bytea AS text) WITHOUT FUNCTION"]
    step = f" AND step_id = '{place.step_id}'" if place.table is step_states else ""
    change = f"UPDATE {place.table.name} SET {place.column} = {value} WHERE {owner} = '{workflow_state_id}'{step}"
    execute(url, *allow, change)
