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
# estimates in place. Deleted rows take room: the planner takes a table that was never vacuumed for one of at least ten
# pages, and for one that has more it would make other plans than for a new one. Before version 15 the server may be
# late in counting. One query, because each one costs a new session what it has to learn of the catalogues.
_WRITTEN: Final = """
SELECT
    sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid) + pg_stat_get_tuples_deleted(oid))
    FILTER (WHERE relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared OR relname = $1),
    sum(relpages), sum(reltuples),
    count(pg_sequence_last_value(oid)) FILTER (WHERE relkind = 'S'),
    current_setting('track_counts')::bool AND current_setting('server_version_num')::int >= 150000
    AND max(pg_relation_size(oid)) FILTER (WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
        <= 10 * current_setting('block_size')::int
FROM pg_class WHERE relkind IN ('r', 'S')
"""
# What the server knows of the database is asked in the session that is there already.
_KNOWN_OUTSIDE: Final = """
SELECT
    concat(datallowconn, datconnlimit, datacl),
    (SELECT count(*) FROM pg_prepared_xacts WHERE database = datname),
    (SELECT string_agg(concat(setrole, setconfig), ' ' ORDER BY setrole) FROM pg_db_role_setting
     WHERE setdatabase = pg_database.oid)
FROM pg_database WHERE datname = $1
"""
_EMPTY: Final = "; ".join(
    f"DELETE FROM public.{table.name}" for table in reversed(metadata.sorted_tables) if table.name != VERSION_TABLE
)


class ReusedDatabase:
    """A copy of `template` on `server`, or one copy after the other."""

    def __init__(self, server: Postgres, template: str) -> None:
        self._server = server
        self._template = template
        self._name = ""
        self._when_new: list[Any] = []
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

    async def _look(self) -> list[Any]:
        admin = await self._administration()
        connection = await asyncpg.connect(self._server.url(self._name))
        try:
            return await self._seen(admin, connection)
        finally:
            await connection.close()

    async def _seen(self, admin: Any, connection: Any) -> list[Any]:
        """All that tells it from a new one; the last of it is whether it may be used again if nothing does."""
        outside = await admin.fetchrow(_KNOWN_OUTSIDE, self._name)
        return [*outside, *await connection.fetchrow(_WRITTEN, VERSION_TABLE)]

    async def _is_like_new_again(self) -> bool:
        try:
            admin = await self._administration()
            await self._rename(admin)
            connection = await asyncpg.connect(self._server.url(self._name))
            try:
                seen = await self._seen(admin, connection)
                if seen != self._when_new or not seen[-1]:
                    return False
                await connection.execute(_EMPTY)
                return True
            finally:
                await connection.close()
        except (asyncpg.PostgresError, OSError):  # a test has shut the door behind it
            return False

    async def _rename(self, admin: Any) -> None:
        """End all sessions; a client that connects anew by itself gets nowhere."""
        await admin.execute(
            "SELECT pg_terminate_backend(pid, $2) FROM pg_stat_activity WHERE datname = $1", self._name, _PATIENCE
        )
        name = Postgres.a_name()
        await admin.execute(f'ALTER DATABASE "{self._name}" RENAME TO "{name}"')
        self._name = name

    async def _administration(self) -> Any:
        """The session that stays from one test to the next."""
        if self._admin is None or self._admin.is_closed():
            self._admin = await asyncpg.connect(self._server.url())
        return self._admin

    async def _leave(self) -> None:
        if self._admin is not None:
            await self._admin.close()
