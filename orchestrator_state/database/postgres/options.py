"""The options of a Postgres URL: those of libpq, as far as asyncpg has them, and settings of the server.

What libpq has and asyncpg lacks is left out where that changes nothing, and refused by name where the caller would
get less than was asked for. What is neither goes to the server as a setting, as with `search_path`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from configparser import ConfigParser, InterpolationError
from configparser import Error as ConfigParserError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator_state.errors import ConfigurationError

_ASYNCPGS: Final = frozenset(
    {
        *("host", "port", "dbname", "database", "user", "password", "passfile", "service", "target_session_attrs"),
        *("krbsrvname", "gsslib", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"),
        *("sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version"),
    }
)
_KEEPALIVES: Final = frozenset(
    ["keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"]
)
# Of libpq's, and not of asyncpg's: the values that ask for what asyncpg does anyway.
_ALREADY_SO: Final = {
    "channel_binding": {"disable", "prefer"},
    "client_encoding": {"auto", "utf8", "utf-8"},
    "gssdelegation": {"0"},
    "gssencmode": {"disable", "prefer"},
    "hostaddr": set[str](),
    "load_balance_hosts": {"disable"},
    "max_protocol_version": {"3.0", "3.2", "latest"},
    "min_protocol_version": {"3.0"},
    "replication": {"false", "off", "no", "0"},
    "require_auth": set[str](),
    "requirepeer": set[str](),
    "scram_client_key": set[str](),
    "scram_server_key": set[str](),
    "servicefile": set[str](),
    "sslcertmode": {"allow"},
    "sslcompression": {"0", "1"},  # no server compresses any more
    "sslsni": {"1"},
}
# Which of libpq's variables asyncpg does not read, or not in all their values.
_VARIABLES: Final = {
    "channel_binding": "PGCHANNELBINDING",
    "client_encoding": "PGCLIENTENCODING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "gssencmode": "PGGSSENCMODE",
    "hostaddr": "PGHOSTADDR",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "options": "PGOPTIONS",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "service": "PGSERVICE",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslmode": "PGSSLMODE",
    "sslsni": "PGSSLSNI",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
# For a variable that is set to nothing, which asyncpg would take for a value.
_DEFAULTS: Final = {"sslmode": "prefer", "target_session_attrs": "any"}
_INSTEAD: Final = {
    "channel_binding": "asyncpg has none; take it out, and add sslmode=verify-full, which shuts out the same attacker",
    "gssencmode": "asyncpg has no GSS encryption; use sslmode",
    "hostaddr": "give the address as the host",
    "load_balance_hosts": "hosts are tried in order; write them in another order",
    "servicefile": "set PGSERVICEFILE",
}
# Of other drivers and tools, whose URLs are often pasted.
_OTHERS: Final = {
    "connection_limit": "open the store with pool_max=",
    "currentSchema": "open the store with db_schema=",
    "pgbouncer": "open the store with pgbouncer=True",
    "pool_timeout": "open the store with pool_timeout=",
    "prepareThreshold": "open the store with pgbouncer=True",
    "prepared_statement_cache_size": "open the store with pgbouncer=True",
    "schema": "open the store with db_schema=",
    "statement_cache_size": "open the store with pgbouncer=True",
}
_SERVERS: Final = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SSL_SPELLINGS: Final = {"true": "require", "1": "require", "no-verify": "require", "false": "disable", "0": "disable"}
_FILES: Final = {"sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL"}


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """What the options of a URL ask for."""

    kept: dict[str, str] = field(repr=False)
    """For asyncpg, which reads them in the URL."""
    settings: dict[str, str] = field(repr=False)
    """For the server."""
    connect_timeout: float | None = None
    """Seconds; None if the URL does not say."""
    keepalives: dict[str, int] = field(default_factory=dict)
    system_roots: bool = False
    """Whether the server's certificate is checked against those that the system trusts."""

    @property
    def requires_tls(self) -> bool:
        return self.system_roots or self.kept.get("sslmode") in ("require", "verify-ca", "verify-full")


def read_options(given: Iterable[tuple[str, str]]) -> PostgresOptions:
    """Sort the options. Raises `ConfigurationError` naming one that cannot be had, and never its value."""
    options = {name: value for name, value in given if value}
    for name, variable in _VARIABLES.items():
        if variable in os.environ and not (name == "sslmode" and options.keys() & {"ssl", "requiressl"}):
            options.setdefault(name, os.environ[variable] or _DEFAULTS.get(name, ""))
    options = {name: value for name, value in options.items() if value}
    for name, remedy in _OTHERS.items():
        if name in options:
            raise ConfigurationError(f"the option {name} of the Postgres URL is another driver's; {remedy}")
    for name, harmless in _ALREADY_SO.items():
        if options.pop(name, None) not in (None, *harmless):
            instead = _INSTEAD.get(name, "asyncpg cannot do what it asks for; take it out")
            raise ConfigurationError(f"{_where(name)} is not supported so: {instead}")
    if options.get("target_session_attrs", "any") not in _SERVERS:
        raise ConfigurationError(f"{_where('target_session_attrs')} must be one of {', '.join(_SERVERS)}")
    if "service" in options:
        _require_service(options["service"])
    seconds = _number(options, "connect_timeout")
    keepalives = {name: value for name in sorted(_KEEPALIVES) if (value := _number(options, name)) is not None}
    system_roots = _read_ssl(options)
    kept = {name: options.pop(name) for name in _ASYNCPGS & options.keys()}
    fallback = options.pop("fallback_application_name", None) or os.environ.get("PGAPPNAME")
    if fallback:
        options.setdefault("application_name", fallback)
    return PostgresOptions(kept, options, float(seconds) if seconds and seconds > 0 else None, keepalives, system_roots)


def _number(options: dict[str, str], name: str) -> int | None:
    try:
        return int(options.pop(name)) if name in options else None
    except ValueError:
        raise ConfigurationError(f"{_where(name)} must be a whole number") from None


def _where(name: str) -> str:
    variable = _VARIABLES.get(name, "")
    also = f" (or the variable {variable})" if variable in os.environ else ""
    return f"the option {name} of the Postgres URL{also}"


def _require_service(name: str) -> None:
    """Of a service that it does not find asyncpg says nothing, and connects to whatever is the default."""
    file = os.environ.get("PGSERVICEFILE") or "~/.pg_service.conf"
    services = ConfigParser()
    try:
        services.read(Path(file).expanduser())
        found = dict(services[name]) if name in services.sections() else None
    except InterpolationError:
        raise ConfigurationError(
            "the service of the Postgres URL holds a single %, which asyncpg cannot read; write it twice"
        ) from None
    except (ConfigParserError, OSError, ValueError, RuntimeError):
        found = None
    if found is None:
        raise ConfigurationError(
            f"{_where('service')} is not in the service file, or that cannot be read; check PGSERVICEFILE"
        )


def _read_ssl(options: dict[str, str]) -> bool:
    """Bring what is said of TLS to asyncpg's spelling. Returns whether the system's certificates are to be trusted."""
    mode = options.pop("ssl", None)
    if options.pop("requiressl", "0") == "1":
        mode = "require"
    mode = options.get("sslmode", mode)
    if mode is not None:
        options["sslmode"] = mode = _SSL_SPELLINGS.get(mode, mode)
        if mode not in _SSL_MODES:
            raise ConfigurationError(f"{_where('sslmode')} must be one of {', '.join(_SSL_MODES)}")
    if mode != "disable" and (options.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")) == "system":
        if mode not in (None, "verify-full"):
            raise ConfigurationError("sslrootcert=system in the Postgres URL needs sslmode=verify-full")
        options.pop("sslrootcert", None)
        options.pop("sslmode", None)
        return True
    if mode != "disable":
        _require_files(options, mode)
    return False


def _require_files(options: dict[str, str], mode: str | None) -> None:
    for name, variable in _FILES.items():
        path = options.get(name) or os.environ.get(variable)
        if path and not (Path(path).is_file() and os.access(path, os.R_OK)):
            where = f"{name} in the Postgres URL" if name in options else variable
            raise ConfigurationError(f"{where} names a file that does not exist or cannot be read")
    has_root = options.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if mode in ("verify-ca", "verify-full") and not has_root:
        try:
            found = (Path.home() / ".postgresql" / "root.crt").is_file()
        except RuntimeError:
            found = False
        if not found:
            raise ConfigurationError(
                f"sslmode={mode} needs to know whom to trust; add sslrootcert=/path/to/root.crt (the vendor's), or "
                "sslrootcert=system with sslmode=verify-full for the certificates that this system trusts"
            )
