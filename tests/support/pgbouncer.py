"""PgBouncer in transaction mode before a private Postgres."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from tests.chaos.tools import find
from tests.support.postgres_server import PrivatePostgres

_CONFIGURATION = """
[databases]
* = host={sockets} port=5432 user=postgres

[pgbouncer]
listen_addr =
listen_port = 5432
unix_socket_dir = {directory}
auth_type = any
pool_mode = transaction
default_pool_size = 5
max_client_conn = 500
logfile = {directory}/log
ignore_startup_parameters = {ignored}
"""
_OURS = "application_name,jit,statement_timeout,lock_timeout,idle_in_transaction_session_timeout"


@contextmanager
def pgbouncer(server: PrivatePostgres, *, is_lenient: bool = False) -> Iterator[Path]:
    """The directory of the socket at which all databases of `server` are reached, while the block lasts.

    A lenient one takes the settings with which a store connects that is not told of it, and ignores them. Else it
    refuses such a store, before anything can go wrong.
    """
    program = find("pgbouncer")
    directory = Path(tempfile.mkdtemp(prefix="pgb-", dir="/tmp"))
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(sockets=server.sockets, directory=directory, ignored=_OURS if is_lenient else "")
    )
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if account is not None:  # like Postgres it does not run as root
        for path in (directory, configuration):
            os.chown(path, account.pw_uid, account.pw_gid)
    process = subprocess.Popen(
        [program, "-q", str(configuration)],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        user=None if account is None else account.pw_uid,
        group=None if account is None else account.pw_gid,
        extra_groups=None if account is None else [],
    )
    try:
        while not (directory / ".s.PGSQL.5432").exists():
            if process.poll() is not None:
                raise RuntimeError(f"PgBouncer did not start: {(directory / 'log').read_text()}")
            time.sleep(0.02)
        yield directory
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def through(directory: Path, url: str) -> str:
    """Where the database of `url` is reached through the PgBouncer in `directory`."""
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc}{parts.path}?host={quote(str(directory))}"
