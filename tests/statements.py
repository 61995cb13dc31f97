"""What a store sends to its database, counted behind the public door."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import event

from orchestrator_state import StateStore

_WRITES: Final = {"INSERT": "INTO", "UPDATE": "UPDATE", "DELETE": "FROM"}


@dataclass
class Traffic:
    """What went over the connections of a store, in order, without the BEGINs."""

    statements: list[str] = field(default_factory=list)
    rows_written: Counter[str] = field(default_factory=Counter)
    """By `"update step_states"` and the like."""
    commits: int = 0

    def _note(self, _: Any, cursor: Any, statement: str, parameters: Any, __: Any, executemany: bool) -> None:
        words = statement.split()
        verb = words[0].upper()
        if verb == "BEGIN":
            return
        self.statements.append(statement)
        if verb in _WRITES:
            table = words[words.index(_WRITES[verb]) + 1].strip('"')
            # Drivers do not agree on the row count of an executemany; each set of parameters here is one row.
            self.rows_written[f"{verb.lower()} {table}"] += len(parameters) if executemany else cursor.rowcount

    def _note_commit(self, _: Any) -> None:
        self.commits += 1


@contextmanager
def traffic_of(store: StateStore) -> Iterator[Traffic]:
    """Record everything that the store sends inside the block."""
    traffic, engine = Traffic(), store._transactions.database._pool.sync_engine
    event.listen(engine, "after_cursor_execute", traffic._note)
    event.listen(engine, "commit", traffic._note_commit)
    try:
        yield traffic
    finally:
        event.remove(engine, "after_cursor_execute", traffic._note)
        event.remove(engine, "commit", traffic._note_commit)
