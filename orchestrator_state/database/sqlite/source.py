"""A SQLite file of somebody else's, to be read and never written to."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from orchestrator_state.database.engine import LOGGING_NAME
from orchestrator_state.database.internals import ThreadedConnection
from orchestrator_state.database.sqlite.file import refuse_what_is_no_database
from orchestrator_state.settings import Settings


def open_source(path: Path, settings: Settings) -> AsyncEngine:
    """An engine whose connections cannot write. What is in a WAL beside the file counts."""
    refuse_what_is_no_database(path)
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro"
    timeout = settings.lock_timeout.total_seconds()

    def connect() -> sqlite3.Connection:
        raw = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)
        raw.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        return raw

    from sqlalchemy.ext.asyncio import create_async_engine  # the one that tracing may have put in its place by now

    def creator(*_: Any, **__: Any) -> ThreadedConnection:
        return ThreadedConnection(connect)

    engine = create_async_engine(
        "sqlite+aiosqlite://",
        connect_args={"async_creator_fn": creator},
        poolclass=NullPool,
        hide_parameters=True,
        logging_name=LOGGING_NAME,
    )
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine
