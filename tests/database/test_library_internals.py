"""What we use of other libraries that they do not promise: an upgrade that moves it fails here, and says what moved."""

import inspect
import re
import sqlite3
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import aiosqlite
import asyncpg
import pytest
import sqlalchemy
from sqlalchemy import Engine, QueuePool
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import base
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool
from sqlalchemy.sql.compiler import SQLCompiler

import orchestrator_state
from orchestrator_state.database import internals
from orchestrator_state.database.internals import ThreadedConnection

_PACKAGE: Final = Path(orchestrator_state.__file__).parent


def _no_connection() -> Any:
    raise AssertionError


_CONSTRUCTED: Final = aiosqlite.Connection(lambda: sqlite3.connect(":memory:"), iter_chunk_size=1)
# Of whom, and what: the first is a class, a module or, for what a constructor makes, an object of it.
NAMES: Final[list[tuple[str, Any, tuple[str, ...]]]] = [
    ("sqlalchemy", sqlalchemy.util, ("await_only", "greenlet_spawn")),
    ("sqlalchemy", base, ("OptionEngine",)),
    ("sqlalchemy", Engine, ("_has_events", "dispatch")),
    ("sqlalchemy", Engine.dispatch, ("before_cursor_execute", "after_cursor_execute", "begin", "commit")),
    ("sqlalchemy", sqlalchemy.create_engine("sqlite://"), ("logger",)),
    ("sqlalchemy", sqlalchemy.create_engine("sqlite://").raw_connection(), ("_pool",)),
    ("sqlalchemy", Pool, ("_invalidate", "_do_return_conn")),
    ("sqlalchemy", QueuePool, ("_dec_overflow",)),
    ("sqlalchemy", QueuePool(_no_connection), ("_max_overflow", "_pool")),
    ("sqlalchemy", Session().begin(), ("_connections", "_state")),
    ("sqlalchemy", AsyncAdapt_asyncpg_connection, ("_transaction", "ping")),
    ("sqlalchemy", AsyncAdapt_aiosqlite_connection, ("driver_connection",)),
    ("sqlalchemy", SQLCompiler, ("positiontup", "binds", "string", "params")),
    ("asyncpg", asyncpg.exceptions._base, ("DataError",)),
    ("asyncpg", asyncpg.Connection, ("_top_xact", "_transport", "get_reset_query", "is_in_transaction")),
    ("aiosqlite", _CONSTRUCTED, ("_execute", "_tx", "_thread", "stop")),
    ("aiosqlite", aiosqlite.Connection, ("_conn",)),
]
SIGNATURES: Final[dict[Any, tuple[str, ...]]] = {
    aiosqlite.Connection.__init__: ("self", "connector", "iter_chunk_size"),
    aiosqlite.Connection._execute: ("self", "fn", "args", "kwargs"),
    aiosqlite.Connection.stop: ("self",),
    AsyncAdaptedQueuePool._do_return_conn: ("self", "record"),
    Pool._invalidate: ("self", "connection", "exception"),
    base.OptionEngine.__init__: ("self", "proxied", "execution_options"),
}


def moved(names: Iterable[tuple[str, Any, tuple[str, ...]]]) -> list[str]:
    """What is no longer there."""
    return [
        f"{library} {version(library)}: {getattr(owner, '__name__', type(owner).__name__)} has no {name}; "
        "see orchestrator_state/database/internals.py"
        for library, owner, wanted in names
        for name in wanted
        if not (hasattr(owner, name) or name in getattr(owner, "__slots__", ()) or name in _annotated(owner))
    ]


def _annotated(owner: Any) -> set[str]:
    classes = owner.__mro__ if isinstance(owner, type) else ()
    return {name for each in classes for name in getattr(each, "__annotations__", {})}


def test_every_name_that_we_use_is_where_it_was() -> None:
    assert moved(NAMES) == []


def test_a_name_that_has_moved_is_named() -> None:
    [message] = moved([("aiosqlite", aiosqlite.Connection, ("_execute", "_gone"))])
    assert re.match(r"aiosqlite \d\S+: Connection has no _gone; ", message)


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_what_we_override_or_call_takes_what_it_took(function: Any) -> None:
    found = tuple(inspect.signature(function).parameters)
    assert found[: len(SIGNATURES[function])] == SIGNATURES[function], f"{function.__qualname__} takes {found}"


async def test_the_thread_of_a_connection_takes_functions_as_we_hand_them_over() -> None:
    done = []
    connection = ThreadedConnection(lambda: sqlite3.connect(":memory:", isolation_level=None))
    async with connection:
        connection.hop_unasked(lambda: done.append("unasked"))
        await connection.hop(lambda: done.append(connection.raw.execute("SELECT 'asked'").fetchone()[0]))
    assert done == ["unasked", "asked"]


async def test_an_engine_tells_whether_it_is_heard() -> None:
    def listener(*_: Any) -> None:
        pass

    def ours(_: Any) -> None:
        pass

    engine = create_async_engine("sqlite+aiosqlite://").sync_engine
    internals.hear_errors(engine, ours)
    for name in ("before_cursor_execute", "after_cursor_execute", "begin", "commit", "handle_error"):
        assert not internals.is_heard(engine)
        sqlalchemy.event.listen(engine, name, listener)
        assert internals.is_heard(engine)
        sqlalchemy.event.remove(engine, name, listener)
    sqlalchemy.event.listen(Engine, "commit", listener)
    try:
        assert internals.is_heard(engine)
    finally:
        sqlalchemy.event.remove(Engine, "commit", listener)


def test_no_other_file_reaches_into_a_library() -> None:
    private = re.compile(
        r"sqlalchemy\.util|sqlalchemy\.engine\.base|exceptions\._|\._(conn|tx|thread|connections|pool)\b"
    )
    reaching = {
        str(file.relative_to(_PACKAGE))
        for file in _PACKAGE.rglob("*.py")
        if private.search(re.sub(r"self\._\w+", "", file.read_text()))
        or (file.is_relative_to(_PACKAGE / "database") and "noqa: SLF001" in file.read_text())
    }
    assert reaching == {"database/internals.py"}
