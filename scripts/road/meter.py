"""Count the functions that are called, and the statements that are sent, by `sys.setprofile` and in the drivers."""

from __future__ import annotations

import gc
import inspect
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Final
from unittest.mock import patch

import orchestrator_state

_PACKAGE: Final = orchestrator_state.__name__
_SUSPENDS: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_WRITES: Final = re.compile(r"\b(INSERT\s+INTO|DELETE\s+FROM|UPDATE\s+\S+\s+SET)\b", re.IGNORECASE)
_DRIVER: Final = ("asyncpg.connection", "asyncpg.prepared_stmt")
_SENDING: Final = ("execute", "executemany", "fetch", "fetchrow", "fetchval")


@dataclass(slots=True)
class Function:
    """One that was called."""

    code: CodeType
    """Kept, since it is found by its `id`: dataclasses of the same fields have equal code."""
    module: str
    name: str
    calls: int = 0
    resumed: int = 0
    in_threads: int = 0
    suspends: bool = False
    sends: bool = False

    @property
    def is_ours(self) -> bool:
        return self.module.split(".")[0] == _PACKAGE

    @property
    def room(self) -> str:
        return ".".join(self.module.split(".")[:2])


class Sent:
    """What one connection is sent."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._is_in_transaction = False
        self._has_written = False

    def note(self, sql: str) -> None:
        verb = sql.split(maxsplit=1)[0].rstrip(";")
        if verb == "BEGIN":
            self._is_in_transaction, self._has_written = True, False
        elif verb in ("COMMIT", "ROLLBACK"):
            self._meter.note(commits=verb == "COMMIT" and self._has_written)
            self._is_in_transaction = self._has_written = False
        else:
            writes = _WRITES.search(sql) is not None
            self._has_written = self._has_written or writes
            self._meter.note(statements=1, commits=writes and not self._is_in_transaction)


class Meter:
    """Counts what happens between `begin` and `end`, as often as there are things to count."""

    def __init__(self, cpu_rounds: int) -> None:
        self.cpu_rounds: Final = cpu_rounds
        self._is_counting = False
        self._begun_at = 0.0
        self._sent: dict[int, Sent] = {}
        self.start_anew()

    def start_anew(self, *, counts_calls: bool = False) -> None:
        """Count, or only take the time: counting costs."""
        gc.collect()
        self.counts_calls = counts_calls
        self.functions: dict[int, Function] = {}
        self.statements = self.commits = self.operations = 0
        self.seconds = 0.0

    def begin(self) -> None:
        gc.disable()
        self._is_counting = self.counts_calls
        self._begun_at = time.process_time()
        if self.counts_calls:
            sys.setprofile(self._called)

    def end(self, operations: int = 1) -> None:
        sys.setprofile(None)
        self.seconds += time.process_time() - self._begun_at
        self._is_counting = False
        gc.enable()
        self.operations += operations

    def note(self, *, statements: int = 0, commits: int = 0) -> None:
        if self._is_counting:
            self.statements += statements
            self.commits += commits

    def each(self, count: int) -> float:
        """How many for one operation."""
        return round(count / self.operations, 2)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._count(frame).sends and not _is_resumed(frame):
            self._sends(frame.f_locals)

    def _called_in_thread(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._is_counting:
            self._count(frame).in_threads += 1

    def _count(self, frame: FrameType) -> Function:
        function = self.functions.get(id(frame.f_code))
        if function is None:
            function = self.functions[id(frame.f_code)] = _function(frame)
        function.calls += 1
        function.resumed += function.suspends and _is_resumed(frame)
        return function

    def _sends(self, given: Mapping[str, Any]) -> None:
        """Note what asyncpg is given: a text, or a statement that was prepared, which does not tell its connection."""
        if "query" in given:
            connection, sql = given["self"], given["query"]
        else:
            connection, sql = given["self"]._connection, given["self"].get_query()  # noqa: SLF001
        self._sent.setdefault(id(connection), Sent(self)).note(sql)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the threads, and SQLite's connections, that are made in the block."""
        connect = sqlite3.connect

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(Sent(self).note)
            return connection

        threading.setprofile(self._called_in_thread)
        try:
            with patch.object(sqlite3, "connect", connected):
                yield
        finally:
            threading.setprofile(None)


def _function(frame: FrameType) -> Function:
    code, module, name = frame.f_code, str(frame.f_globals.get("__name__")), frame.f_code.co_qualname
    if code.co_filename == "<string>" and code.co_argcount:  # a dataclass's: say of which
        name = f"{type(frame.f_locals[code.co_varnames[0]]).__name__}.{code.co_name}"
    suspends = bool(code.co_flags & _SUSPENDS)
    sends = suspends and module in _DRIVER and code.co_name in _SENDING
    return Function(code, module, name, suspends=suspends, sends=sends)


def _is_resumed(frame: FrameType) -> bool:
    """The argument of the opcode RESUME says after what; 0 is the beginning of the function."""
    return frame.f_code.co_code[frame.f_lasti + 1] & 3 != 0
