"""What a caller may give as a database -> where it is.

Of a Postgres URL only the options are looked at (`postgres_options`): asyncpg reads the rest as libpq does (several
hosts, a socket directory as host, `PGPASSFILE`, …), and the password never enters an SQLAlchemy URL, a repr or a log.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from sqlalchemy import Engine

from orchestrator_state.database.postgres.options import PostgresOptions, read_options
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.payloads import flaw_of

MEMORY = ":memory:"
_PORTS = range(1, 65536)
_SQLITE_SCHEMES = frozenset({"sqlite", "sqlite+aiosqlite"})
_POSTGRES_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
# Taken for a file name, it would stand in the directory with the password in it.
_ALMOST_A_URL = re.compile(
    r"\s*((postgres|postgresql|sqlite)(\+\w+)?:|(host|hostaddr|port|dbname|user|password|service)\s*=|[^/]*:[^/]*@)",
    re.IGNORECASE,
)
_FORMS = "a path, :memory:, sqlite:///path, or postgresql://user@host/database"


@dataclass(frozen=True, slots=True)
class SqliteLocation:
    """A file, or a database that lives as long as the store (`path` is None)."""

    path: Path | None

    @property
    def is_lasting(self) -> bool:
        """Whether it is there for other processes, and after this one."""
        return self.path is not None

    def require_file(self) -> None:
        """Raise `ConfigurationError` for a file that is not there: to open it would make it."""
        if self.path is None or not self.path.exists():
            raise ConfigurationError(f"there is no SQLite file {self.path or 'in memory'}")


@dataclass(frozen=True, slots=True)
class PostgresLocation:
    """A connection URL for asyncpg, and what else it asked for. It may hold a password, so it has no repr."""

    dsn: str = field(repr=False)
    options: PostgresOptions = field(repr=False)
    is_lasting = True

    def require_file(self) -> None:
        """There is none; whether there is a database, only the server can tell."""


def locate(database: str | os.PathLike[str]) -> SqliteLocation | PostgresLocation:
    """Say where `database` is. Raises `ConfigurationError` (without quoting the URL) if it is neither."""
    text = os.fspath(database)
    if not text.strip() or "\0" in text:
        raise ConfigurationError(f"the database is empty or contains a NUL character; give {_FORMS}")
    # A secret that was read from a file ends with a line feed.
    scheme, separator, rest = (text.strip() if "://" in text else text).partition("://")
    if not separator:
        if text.lower().startswith("file:"):
            raise ConfigurationError(f"file: URIs are not supported; give {_FORMS}")
        if _ALMOST_A_URL.match(text):
            raise ConfigurationError(f"the database is neither a URL nor a plain file name; give {_FORMS}")
        return SqliteLocation(None if text == MEMORY else Path(text))
    scheme = scheme.lower()
    if scheme in _SQLITE_SCHEMES:
        return _sqlite_location(rest)
    if scheme in _POSTGRES_SCHEMES:
        return _postgres_location(rest)
    # The scheme is quoted only if it looks like one: "user:secret@host://" must not be.
    shown = f"{scheme!r} " if scheme.replace("+", "").isalnum() else ""
    raise ConfigurationError(f"the URL scheme {shown}is not supported; give {_FORMS}")


def _sqlite_location(rest: str) -> SqliteLocation:
    """`sqlite:///rel.db`, `sqlite:////abs.db`, `sqlite:///:memory:` and `sqlite://`, as SQLAlchemy reads them."""
    path, _, query = rest.partition("?")
    if query:
        raise ConfigurationError("options in a SQLite URL are not supported; pass them to StateStore.open")
    if path in ("", "/", f"/{MEMORY}"):
        return SqliteLocation(None)
    if not path.startswith("/"):
        raise ConfigurationError("a SQLite URL has three slashes before a relative path, four before an absolute one")
    return SqliteLocation(Path(unquote(path[1:])))


def _postgres_location(rest: str) -> PostgresLocation:
    if not can_be_sent(unquote(rest)):
        raise ConfigurationError("the Postgres URL holds a NUL or half of a surrogate pair")
    try:
        parts = urlsplit(f"postgresql://{rest}")
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=False)
        ports = _ports(parts.netloc.rpartition("@")[2], dict(query).get("port", ""))
    except ValueError:
        raise ConfigurationError("the Postgres URL cannot be read; check brackets and the port") from None
    if any(not name for name, _ in query):
        raise ConfigurationError("the Postgres URL has an option without a name")
    # The sockets would take a greater number modulo 65536, and the password would go to whoever listens there.
    if any(port not in _PORTS for port in ports):
        raise ConfigurationError("a port in the Postgres URL is not between 1 and 65535")
    if not ports and not _are_ports(os.environ.get("PGPORT") or "5432"):
        raise ConfigurationError("the variable PGPORT is not a port between 1 and 65535")
    options = read_options(query)
    passed_on = urlencode({**options.kept, **options.settings}, quote_via=quote)
    return PostgresLocation(f"postgresql://{rest.partition('?')[0]}{'?' if passed_on else ''}{passed_on}", options)


def _ports(hosts: str, option: str) -> list[int]:
    return [int(port) for port in re.findall(r":(-?[0-9]+)(?=,|$)", hosts) + re.findall("-?[0-9]+", option)]


def _are_ports(listed: str) -> bool:
    return all(re.fullmatch("[0-9]{1,5}", port) and int(port) in _PORTS for port in listed.split(","))


def can_be_sent(text: str) -> bool:
    """Whether the protocol has a way to write it: UTF-8 that ends with a NUL."""
    return flaw_of(text) is None


def path_of(engine: Engine) -> str | None:
    """Of the file of a SQLite engine, whoever made that and by what name; None where it does not tell."""
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or path.startswith("file:"):
        return None
    return str(Path(path).resolve())
