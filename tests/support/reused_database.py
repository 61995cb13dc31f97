"""One Postgres database for one test after the other, each of which finds it as if it were new.

To copy a template takes two checkpoints and three hundred files; to delete what a test has written takes next to
nothing. No test has to say what else it does to its database: one that is not afterwards what it was before is dropped,
and the next test gets a new copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

from orchestrator_state.models import VERSION_TABLE, metadata
from tests.support.postgres_server import LoopApart, Postgres

_PATIENCE: Final = 10_000  # milliseconds until a session that was ended is gone

# All that DDL does, and ANALYZE, is written into catalogues, and the server counts what is; VACUUM alone writes its
# estimates in place. Options of a database stand outside of it.
_WRITTEN: Final = """
SELECT
    sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid) + pg_stat_get_tuples_deleted(oid))
    FILTER (WHERE relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared OR relname = $1),
    sum(relpages), sum(reltuples),
    (SELECT count(last_value) FROM pg_sequences),
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()),
    (SELECT concat(datallowconn, datconnlimit, datacl) FROM pg_database WHERE datname = current_database()),
    (
        SELECT string_agg(concat(setrole, setconfig), ' ' ORDER BY setrole) FROM pg_db_role_setting
        JOIN pg_database AS this ON this.oid = setdatabase WHERE datname = current_database()
    )
FROM pg_class WHERE relkind = 'r'
"""
_EMPTY: Final = "; ".join(
    f"DELETE FROM public.{table.name}" for table in reversed(metadata.sorted_tables) if table.name != VERSION_TABLE
)
# Deleted rows take room. The planner takes a table that was never vacuumed for one of at least ten pages; one that
# has more would have other plans than a new one. Before version 15 the server may be late in counting.
_IS_TO_BE_REPLACED: Final = """
SELECT NOT current_setting('track_counts')::bool OR current_setting('server_version_num')::int < 150000
    OR coalesce(max(pg_relation_size(oid)) > 10 * current_setting('block_size')::int, true)
FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""


class ReusedDatabase:
    """A copy of `template` on `server`, or one copy after the other."""

    def __init__(self, server: Postgres, template: str) -> None:
        self._server = server
        self._template = template
        self._name = ""
        self._when_new: Any = None
        self._loop = LoopApart()
        self._admin: asyncpg.Connection[Any] | None = None

    @contextmanager
    def lent(self) -> Iterator[str]:
        """The name of a database without rows. Afterwards it has another one: who comes late does not find it."""
        if not self._name:
            self._name = self._server.create(self._template)
            self._when_new = self._loop.run(self._look())
        try:
            yield self._name
        finally:
            if not self._loop.run(self._is_like_new_again()):
                self.drop()

    def close(self) -> None:
        """Drop it, and leave the server."""
        self.drop()
        self._loop.run(self._leave())
        self._loop.close()

    def drop(self) -> None:
        """The next test gets a new one."""
        if self._name:
            self._server.drop(self._name)
        self._name = ""

    async def _look(self) -> Any:
        connection = await asyncpg.connect(self._server.url(self._name))
        try:
            return await connection.fetchrow(_WRITTEN, VERSION_TABLE)
        finally:
            await connection.close()

    async def _is_like_new_again(self) -> bool:
        try:
            await self._rename()
            connection = await asyncpg.connect(self._server.url(self._name))
            try:
                if await connection.fetchrow(_WRITTEN, VERSION_TABLE) != self._when_new:
                    return False
                await connection.execute(_EMPTY)
                return not await connection.fetchval(_IS_TO_BE_REPLACED)
            finally:
                await connection.close()
        except (asyncpg.PostgresError, OSError):  # a test has shut the door behind it
            return False

    async def _rename(self) -> None:
        """End all sessions; a client that connects anew by itself gets nowhere."""
        if self._admin is None or self._admin.is_closed():
            self._admin = await asyncpg.connect(self._server.url())
        await self._admin.execute(
            "SELECT pg_terminate_backend(pid, $2) FROM pg_stat_activity WHERE datname = $1", self._name, _PATIENCE
        )
        name = Postgres.a_name()
        await self._admin.execute(f'ALTER DATABASE "{self._name}" RENAME TO "{name}"')
        self._name = name

    async def _leave(self) -> None:
        if self._admin is not None:
            await self._admin.close()
