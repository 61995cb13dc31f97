"""A Postgres that listens on a port and asks for passwords, for what a socket without either cannot show."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.support.postgres_server import Postgres, PrivatePostgres

PASSWORD = "canary/päss:wörd@%#?&"  # every character of which a URL, or a log that quotes one, could stumble over


@dataclass(frozen=True)
class TcpPostgres:
    """A server on 127.0.0.1, where the user `app` needs `PASSWORD`; `admin` goes in by the socket, without one."""

    admin: Postgres
    sockets: Path
    port: int

    def url(self, database: str, password: str = PASSWORD, *, user: str = "app", port: int | None = None) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}"


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def postgres_on_tcp() -> Iterator[TcpPostgres]:
    port = free_port()
    with PrivatePostgres(listen_addresses="127.0.0.1", port=str(port)) as server:
        admin = Postgres(f"postgresql://postgres@/postgres?host={quote(str(server.sockets))}&port={port}")
        quoted = PASSWORD.replace("'", "''")
        admin.execute(f"CREATE USER app SUPERUSER PASSWORD '{quoted}'")
        (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        admin.execute("SELECT pg_reload_conf()")
        yield TcpPostgres(admin, server.sockets, port)
