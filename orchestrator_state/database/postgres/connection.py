"""How one connection to Postgres is made, and what may go wrong with it at the first one.

Nothing that asyncpg says about the URL is passed on: it quotes the offending part, which may be the password.
"""

from __future__ import annotations

import inspect
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import asyncpg

from orchestrator_state import hooks
from orchestrator_state.concurrency import call_apart
from orchestrator_state.database.internals import socket_of
from orchestrator_state.database.postgres.options import PostgresOptions
from orchestrator_state.database.urls import PostgresLocation, can_be_sent
from orchestrator_state.errors import AbnormalExit, AccessLost, ConfigurationError, StoreUnavailable
from orchestrator_state.failures import name_of
from orchestrator_state.settings import Settings

_SOCKET_OPTIONS: Final = {
    "keepalives": (socket.SOL_SOCKET, "SO_KEEPALIVE"),
    "keepalives_idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "keepalives_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "keepalives_count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "tcp_user_timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}
# Unknown, of no such value, not for this user, not now, no setting at all.
_SETTING_REFUSED: Final = ("42704", "22023", "42501", "55P02", "42601")
_LOGIN_REFUSED: Final = "28"
# What asyncpg stumbles over in a URL, a variable or a file: a list of hosts with a gap, say.
_UNREADABLE: Final = (ValueError, LookupError, asyncpg.ClientConfigurationError)


class Connector:
    """Makes connections to one place, with the password that holds at the time."""

    def __init__(self, location: PostgresLocation, settings: Settings, hook: hooks.Hook | None = None) -> None:
        self._location = location
        self._options = location.options
        self._password = settings.password
        self._hook = hook
        self._has_connected = False
        self._is_refused = False
        """Whether the last login was, and that was said."""

    async def __call__(self, **arguments: Any) -> asyncpg.Connection[asyncpg.Record]:
        """Connect. Once that has worked, whatever goes wrong is a fault of the database's."""
        if self._password is not None:
            arguments["password"] = self._ask
        try:
            if self._options.system_roots:
                arguments["ssl"] = _trusting_the_systems(self._options)
            connection = await asyncpg.connect(self._location.dsn, **arguments)
        except (*_UNREADABLE, ssl.SSLError, asyncpg.InterfaceError) as error:
            raise self._refusal(_reason(error)) from None
        except asyncpg.TargetServerAttributeNotMatched:
            wanted = self._options.kept.get("target_session_attrs")
            message = f"no host of the Postgres URL is what target_session_attrs={wanted} asks for; is one starting up?"
            raise StoreUnavailable(message, transient=True) from None
        except ConnectionError as error:
            if type(error) is not ConnectionError or self._has_connected or not self._options.requires_tls:
                raise
            # asyncpg says so in words alone; it may also have lost the connection meanwhile.
            raise AccessLost(
                "the server did not take up TLS, which the Postgres URL's sslmode asks for; switch it on there, or "
                "leave sslmode out",
                transient=True,
            ) from None
        except asyncpg.PostgresError as error:
            if error.sqlstate.startswith(_LOGIN_REFUSED):
                self._tell_of_refusal(error.sqlstate)
            if error.sqlstate not in _SETTING_REFUSED or not self._options.settings or self._has_connected:
                raise
            names = ", ".join(sorted(self._options.settings))
            raise ConfigurationError(
                f"the server refused the Postgres URL's {names}: neither an option of libpq's, nor a setting of the "
                f"server's that takes this value (SQLSTATE {error.sqlstate})"
            ) from None
        self._has_connected, self._is_refused = True, False
        self._keep_alive(connection)
        return connection

    def _tell_of_refusal(self, sqlstate: str) -> None:
        """The log says it once, until a login succeeds: whoever needs a connection tries again and again."""
        hooks.tell_of_store(self._hook, hooks.LoginRefused, sqlstate=sqlstate)
        if not self._is_refused:
            hooks.logger.error("the server refused the user or the password (SQLSTATE %s)", sqlstate)
        self._is_refused = True

    async def _ask(self) -> str:
        """Ask for the password each time: it may have been changed since."""
        password = self._password
        try:
            if callable(password):
                found = (await call_apart(partial(_asked, password))).unless_cancelled()
            else:
                found = password.get_secret_value() if password is not None else ""
        except Exception as error:  # noqa: BLE001 - the caller's; its message may hold the secret
            raised = error.raised if type(error) is AbnormalExit else name_of(error)
            message = f"the password could not be asked for: {raised}"
            raise StoreUnavailable(message, transient=True) from None
        if not isinstance(found, str):
            raise self._refusal(f"password() returned a {type(found).__name__}; it must return a str")
        if not can_be_sent(found):
            raise self._refusal("the password holds a NUL or half of a surrogate pair, which Postgres cannot be sent")
        return found

    def _refusal(self, reason: str) -> ConfigurationError | StoreUnavailable:
        if self._has_connected:
            return StoreUnavailable(f"the database cannot be reached: {reason}", transient=True)
        return ConfigurationError(reason)

    def _keep_alive(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Set what the URL says of dead peers; asyncpg has no option for it. Of no use on a Unix socket."""
        opened = socket_of(connection) if self._options.keepalives else None
        if opened is None or opened.family not in (socket.AF_INET, socket.AF_INET6):
            return
        for name, value in self._options.keepalives.items():
            level, option = _SOCKET_OPTIONS[name]
            with suppress(AttributeError, OSError):  # not every system has every one
                opened.setsockopt(level, getattr(socket, option), value)


def _trusting_the_systems(options: PostgresOptions) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if "sslcert" in options.kept:
        kept = options.kept
        context.load_cert_chain(kept["sslcert"], kept.get("sslkey"), kept.get("sslpassword"))
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not to be trusted ({error.verify_message}); check sslrootcert and, with "
            "sslmode=verify-full, that the host is named as in the certificate"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS with the server failed ({error.reason}); check the certificates and keys of the Postgres URL"
    return (
        "the Postgres URL, or a variable or file of libpq's, cannot be read; write "
        "postgresql://user:password@host:port/database?option=value and percent-encode special characters"
    )


async def _asked(password: Callable[[], str | Awaitable[str]]) -> object:
    answer = password()
    return await answer if inspect.isawaitable(answer) else answer
