"""Postgres for the tests: a private server from a wheel, or the one that TEST_DATABASE_URL names.

A private server listens on a Unix socket in a directory only its user may enter, so it needs neither a port
nor a password. It is stopped and deleted by `close`, and also when this process dies without calling it.
"""

import asyncio
import contextlib
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

import asyncpg
import psutil

from tests.support.places import roomy_memory
from tests.support.postgres_files import ServerFiles, binaries_in, model, site_packages

T = TypeVar("T")

START_TIMEOUT = 60.0

# Not in UTC, so that a timestamp which lost its zone on the way is seen.
# fsync is off: it guards against a power cut of the machine that runs the tests, and no test makes one. What
# is killed, server or store, loses nothing that the kernel was given; and with checkpoints that wait for no disk
# a fresh database costs a test some 20 ms.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "timezone": "Asia/Kathmandu",
    "fsync": "off",
}

STOP_SIGNALS: Mapping[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


def run_in_own_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` to its end in a thread and loop of its own, so that a caller in a running loop may too."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(main())).result()


class LoopApart:
    """An event loop in a thread of its own, for what outlives the loop of a test."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._runner = asyncio.Runner()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end; blocks, inside a loop too."""
        return self._thread.submit(self._runner.run, main).result()

    def close(self) -> None:
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()


class Postgres:
    """A server on which the tests make, and drop, databases of their own."""

    # How a new database is copied from its template. The default suits a server that others use, too.
    _copying = ""

    def __init__(self, admin_url: str) -> None:
        parts = urlsplit(admin_url)
        self._admin = parts._replace(scheme="postgresql")

    @property
    def binaries(self) -> Path:
        """psql, pg_dump, pg_basebackup and the rest."""
        return binaries_in(site_packages())

    def url(self, database: str | None = None) -> str:
        """The URL of a database; by default of the one that administrative statements run in."""
        path = self._admin.path if database is None else f"/{quote(database)}"
        # geturl() would drop the two slashes before an empty host.
        query = f"?{self._admin.query}" if self._admin.query else ""
        return f"postgresql://{self._admin.netloc}{path}{query}"

    def execute(self, sql: str, *args: object, database: str | None = None) -> list[asyncpg.Record]:
        """Run one statement in a connection and transaction of its own; blocks, inside a loop too."""

        async def main() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.url(database))
            try:
                return list(await connection.fetch(sql, *args))
            finally:
                await connection.close()

        return run_in_own_loop(main)

    @staticmethod
    def a_name() -> str:
        """One that no database has."""
        return f"orchestrator_state_test_{uuid.uuid4().hex}"

    def create(self, template: str = "template0", *, encoding: str | None = None) -> str:
        """Make a database, a copy of `template`, and return its name."""
        name = self.a_name()
        encoded = f" ENCODING '{encoding}' LOCALE 'C'" if encoding else ""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{encoded}{self._copying}')
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @contextlib.contextmanager
    def database(self, template: str = "template0", *, encoding: str | None = None) -> Iterator[str]:
        """The name of a new database, dropped at the end."""
        name = self.create(template, encoding=encoding)
        try:
            yield name
        finally:
            self.drop(name)


class PrivatePostgres(Postgres):
    """A server of our own, started by the constructor. Its clients are this user's processes only."""

    # Copies files, and not page after page through the log: a tenth of the time, as long as a checkpoint is cheap.
    _copying = " STRATEGY file_copy"

    def __init__(self, **settings: str) -> None:
        settings = {**SETTINGS, **settings}
        # Who asks for fsync asks for a disk.
        self._files = ServerFiles(roomy_memory() if settings["fsync"] == "off" else None)
        self.directory = self._files.directory
        self.data = self._files.data
        self.sockets = self.directory / "sockets"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        super().__init__(f"postgresql://postgres@/postgres?host={quote(str(self.sockets))}")
        try:
            self._files.make(self.sockets)
            self._install(settings)
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def binaries(self) -> Path:
        """Those that this server runs from, which its user can read."""
        return model().binaries

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the binaries to its end as the server's user, and return what it printed."""
        return self._files.run(self.binaries / program, *arguments)

    def start(self) -> None:
        """Start the stopped or killed server and wait until it takes connections."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data)],
                **self._files.as_server(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready(self.process.pid):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Postgres did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop as `pg_ctl stop -m` does; a server that does not run stays so."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(STOP_SIGNALS[mode])
        self.process.wait(timeout=START_TIMEOUT)
        self.process = None

    def kill(self) -> None:
        """SIGKILL to the server and all its backends, with nothing written and no client told."""
        if self.process is None:
            return
        backends = psutil.Process(self.process.pid).children()
        self.process.kill()
        for backend in backends:
            with contextlib.suppress(psutil.NoSuchProcess):
                backend.kill()
        self.process.wait()
        while any(_lives(backend) for backend in backends):
            time.sleep(0.01)
        self.process = None

    def stop_sending(self) -> None:
        """From now on its standbys get nothing more."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            if any("walsender" in part for part in child.cmdline()):
                child.suspend()

    def promote(self) -> None:
        """Make a standby the primary."""
        self.run("pg_ctl", "promote", "-w", "-D", str(self.data))

    def close(self) -> None:
        """Stop, at once, and delete everything. May be called again."""
        if self._files.are_deleted:
            return
        try:
            self.stop("immediate")
        finally:
            self._files.delete()

    def _install(self, settings: Mapping[str, str]) -> None:
        model().copy_to(self._files)
        self._configure(settings)

    def _configure(self, settings: Mapping[str, str]) -> None:
        with (self.data / "postgresql.conf").open("a") as file:
            for name, value in {**settings, "unix_socket_directories": str(self.sockets)}.items():
                quoted = value.replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def _is_ready(self, pid: int) -> bool:
        """Whether the server with this pid says so; a killed one leaves its file, and its word, behind."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() in {"ready", "standby"}


class Standby(PrivatePostgres):
    """A copy of a running primary that follows it, until it is promoted.

    The primary waits for it with each commit once `synchronous_standby_names` says so there.
    """

    def __init__(self, primary: PrivatePostgres, **settings: str) -> None:
        self._primary = primary
        super().__init__(**settings)

    def _install(self, settings: Mapping[str, str]) -> None:
        self.run(
            "pg_basebackup",
            *("--pgdata", str(self.data), "--host", str(self._primary.sockets), "--username", "postgres"),
            *("--wal-method", "stream", "--checkpoint", "fast", "--write-recovery-conf", "--no-sync"),
        )
        self._configure(settings)


def _lives(process: psutil.Process) -> bool:
    """Whether it still holds the server's shared memory, which a new server must not find in use."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
