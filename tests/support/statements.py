"""What a store sends to its database, heard by SQLAlchemy's events; and how often it switches threads for SQLite."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import event

from orchestrator_state import StateStore

_WRITES: Final = {"INSERT": "INTO", "UPDATE": "UPDATE", "DELETE": "FROM"}
_PROLONGS: Final = re.compile(r"UPDATE workflow_states SET lease_expires_at=\(strftime\([^,]*, workflow_states\.lease")


@dataclass
class Traffic:
    """What went over the connections of a store, in order, without the BEGINs."""

    statements: list[str] = field(default_factory=list)
    parameters: list[Any] = field(default_factory=list)
    rows_written: Counter[str] = field(default_factory=Counter)
    """By `"update step_states"` and the like."""
    commits: int = 0

    def _note(self, _: Any, cursor: Any, statement: str, parameters: Any, __: Any, executemany: bool) -> None:
        words = statement.split()
        verb = words[0].upper()
        # A unit that was held up prolongs the leases of the others: what a call costs is not to depend on whether the
        # machine stood still in it.
        if verb == "BEGIN" or _PROLONGS.match(statement):
            return
        self.statements.append(statement)
        self.parameters.append(parameters)
        if verb in _WRITES:
            table = words[words.index(_WRITES[verb]) + 1].strip('"')
            # Drivers do not agree on the row count of an executemany; each set of parameters here is one row.
            self.rows_written[f"{verb.lower()} {table}"] += len(parameters) if executemany else cursor.rowcount

    def _note_commit(self, _: Any) -> None:
        self.commits += 1


@contextmanager
def listening(engine: Any, listeners: Mapping[str, Callable[..., Any]], **options: Any) -> Iterator[None]:
    """Let `listeners` hear the events that they are named after, inside the block."""
    for name, listener in listeners.items():
        event.listen(engine, name, listener, **options)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


@contextmanager
def traffic_of(store: StateStore) -> Iterator[Traffic]:
    """Record everything that the store sends inside the block."""
    engine = store._transactions.database._pool.sync_engine
    traffic = Traffic()
    with listening(engine, {"after_cursor_execute": traffic._note, "commit": traffic._note_commit}):
        yield traffic


class _Hops(logging.Handler):
    """aiosqlite says at DEBUG what it calls in a connection's thread."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.msg.startswith("executing")


@contextmanager
def hops() -> Iterator[_Hops]:
    """Count the calls in the threads of SQLite connections, while nobody listens to what the store sends."""
    logger, counting = logging.getLogger("aiosqlite"), _Hops()
    level = logger.level
    logger.addHandler(counting)
    logger.setLevel(logging.DEBUG)
    try:
        yield counting
    finally:
        logger.setLevel(level)
        logger.removeHandler(counting)


@contextmanager
def rewritten(store: StateStore, pattern: str, by: str, *, times: int = 1) -> Iterator[None]:
    """Let the store send the first statements that `pattern` is found in, so many `times`, with `by` in its place."""
    engine, seen = store._transactions.database._pool.sync_engine, 0

    def rewrite(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        nonlocal seen
        if seen < times and re.search(pattern, statement):
            seen += 1
            statement = re.sub(pattern, by, statement)
        return statement, parameters

    with listening(engine, {"before_cursor_execute": rewrite}, retval=True):
        yield
    assert seen == times, f"{pattern!r} was found in {seen} statements"


def without_the_fence(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
    """A listener to `before_cursor_execute`, with `retval=True`, for negative controls.

    It lets any owner's token match, at any place. The parameters keep theirs.
    """
    fence = r"(workflow_states\.(?:lease_owner|lease_token|version) = (?:\?|\$\d+(?:::\w+)?|given\.\w+))(?! \+)"
    return re.sub(fence, r"(\1 OR 1 = 1)", statement), parameters
