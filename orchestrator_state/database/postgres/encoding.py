"""Which texts a Postgres database can hold: its encoding is chosen once, when it is created."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, func, select

from orchestrator_state.errors import ConfigurationError

# SQL_ASCII takes any bytes as they are, so ours come back as the UTF-8 that they were.
_HOLDS_EVERY_TEXT: Final = frozenset({"UTF8", "SQL_ASCII"})


def require_unicode(connection: Connection) -> None:
    """Raise `ConfigurationError` for a database that could not store what a step returns, or what it failed of.

    A step would be paid for and then refused, and a run whose error cannot be written would never end.
    """
    if connection.dialect.name != "postgresql":
        return
    encoding = connection.scalar(select(func.current_setting("server_encoding")))
    if encoding not in _HOLDS_EVERY_TEXT:
        raise ConfigurationError(
            f"the Postgres database's encoding is {encoding}, which cannot hold every text; create one with "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
