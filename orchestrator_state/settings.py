"""What can be set, with its type, its bounds and its default.

A setting has three sources: the keyword argument of `StateStore.open` wins over the environment
(`ORCHESTRATOR_STATE_POOL_MAX=40`; the database itself is the usual `DATABASE_URL`), and that over the default here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator_state.domain import Name
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.payloads import MOST, Limits

__all__ = [
    "Options",
    "Settings",
]

DEFAULT_DATABASE = "./workflows.db"
DEFAULT_NAMESPACE = "default"
_LIMITS = Limits()
_SHORTEST_IDLE_LIMIT = timedelta(seconds=2)  # a busy machine, too, may leave a process alone for a second


def _seconds(value: object) -> object:
    """An environment variable may say `30` as well as `PT30S`."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


# The bound stands next to the type: pydantic 2.9 cannot tell of one that follows a validator.
Seconds = Annotated[timedelta, Field(gt=timedelta(0)), BeforeValidator(_seconds)]
# Both databases count milliseconds up to 2**31, also of `idle_limit_with_room`, which is twice a command's. Of more
# Postgres says so, and SQLite waits not at all.
LONGEST_WAIT = timedelta(days=10)
Wait = Annotated[timedelta, Field(gt=timedelta(0), le=LONGEST_WAIT), BeforeValidator(_seconds)]
LONGEST_LEASE = timedelta(days=1)
"""A lease that ends much later than this was damaged."""
LeaseTerm = Annotated[timedelta, Field(gt=timedelta(0), le=LONGEST_LEASE), BeforeValidator(_seconds)]
# Postgres cuts an identifier at 63 bytes without a word, which would send two long names to one schema.
SchemaName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_$]*$")]


Password = SecretStr | Callable[[], str | Awaitable[str]]


class Options(TypedDict, total=False):
    """The keyword arguments of `StateStore.open` that are settings; `Settings` says what they mean.

    None means "not given". A function of yours that opens a store can take them as `**options: Unpack[Options]`.
    """

    namespace: str | None
    db_schema: str | None
    password: str | Password | None
    pool_min: int | None
    pool_max: int | None
    pool_timeout: timedelta | None
    connect_timeout: timedelta | None
    command_timeout: timedelta | None
    lock_timeout: timedelta | None
    retry_timeout: timedelta | None
    pgbouncer: bool | None
    synchronous: Literal["FULL", "NORMAL"] | None
    keep_checkpoints: int | None
    checkpoint_every: int | None
    lease_term: timedelta | None
    step_threads: int | None
    max_attempts: int | None
    max_payload_bytes: int | None
    max_workflow_bytes: int | None
    max_depth: int | None
    max_values: int | None
    max_steps: int | None
    log_error_text: bool | None


class Settings(BaseSettings):
    """What a store needs to know besides the calls made on it. Durations are `timedelta`."""

    model_config = SettingsConfigDict(
        env_prefix="ORCHESTRATOR_STATE_",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    database_url: str = Field(default=DEFAULT_DATABASE, validation_alias="DATABASE_URL", repr=False)
    namespace: Name = DEFAULT_NAMESPACE
    db_schema: SchemaName | None = None
    """Postgres schema that holds the tables; None is the connection's search path. Of no use to SQLite."""

    password: Password | None = Field(default=None, repr=False)
    """Postgres only: instead of one in the URL. A function, asynchronous or not, is called for each new connection."""

    _given: frozenset[str] = PrivateAttr(default=frozenset())

    pool_min: int = Field(default=5, ge=0, le=1000)
    """Connections opened when the store opens (Postgres)."""
    pool_max: int = Field(default=20, ge=1, le=1000)
    """Most connections of the pool. On Postgres leases, and the LISTEN of a worker, have one each beside it."""
    pool_timeout: Seconds = timedelta(seconds=30)
    """Longest wait for a free connection, or for this process's turn to write to SQLite."""
    connect_timeout: Seconds = timedelta(seconds=5)
    command_timeout: Wait = timedelta(seconds=30)
    """Longest wait for one statement, on the client and (Postgres) on the server. Ten days at most."""
    lock_timeout: Wait = timedelta(seconds=10)
    """Longest wait for another transaction's lock. Ten days at most."""
    retry_timeout: Seconds = timedelta(seconds=30)
    """How long a call whose transaction the database gave up on is repeated."""
    pgbouncer: bool = False
    """The URL leads to PgBouncer in transaction mode: no prepared statement survives a transaction."""
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """SQLite only. NORMAL is faster and loses acknowledged commits when the power fails."""

    keep_checkpoints: int = Field(default=10, ge=1, le=2**63 - 1)
    """Newest checkpoints kept for each workflow."""
    checkpoint_every: int = Field(default=1, ge=0)
    """A run makes a checkpoint with every n-th step; 0 for none."""
    lease_term: LeaseTerm = timedelta(seconds=30)
    """How long a worker that cannot be asked is believed to be alive. A day at most."""
    step_threads: int = Field(default=128, ge=1, le=10_000)
    """Most sync step functions that are called at the same time; the others wait for a thread."""
    max_attempts: int = Field(default=10, ge=1)
    """How often a run is taken over from vanished workers before it is marked failed."""

    max_payload_bytes: int = Field(default=_LIMITS.payload_bytes, ge=1024, le=MOST.payload_bytes)
    """Longest JSON of a context, an output, a result, a signal."""
    max_workflow_bytes: int = Field(default=_LIMITS.workflow_bytes, ge=1024, le=MOST.workflow_bytes)
    """Longest of all payloads of a workflow together, and of a snapshot."""
    max_depth: int = Field(default=_LIMITS.depth, ge=1, le=MOST.depth)
    """Most levels of lists and dicts in a payload."""
    max_values: int = Field(default=_LIMITS.values, ge=1, le=MOST.values)
    """Most values in a payload, each item of a list or dict counted: what is checked is checked in one go."""
    max_steps: int = Field(default=_LIMITS.steps, ge=1)
    """Most steps of a workflow."""

    log_error_text: bool = False
    """Log what the exceptions of failed runs say too, which may be payloads; else their classes and places alone."""

    @property
    def idle_limit(self) -> timedelta:
        """How long Postgres bears one of our transactions in which nothing happens: its process is frozen, or gone.

        It has let go of its locks then before the lease of that process ends.
        """
        return min(self.idle_limit_with_room, max(self.lease_term / 2, _SHORTEST_IDLE_LIMIT))

    @property
    def idle_limit_with_room(self) -> timedelta:
        """The same, where code of the caller's runs in it."""
        return self.command_timeout * 2

    @model_validator(mode="after")
    def _pool_bounds(self) -> Self:
        if self.pool_min > self.pool_max:
            raise ValueError("pool_min must not exceed pool_max")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Two sources: to look into files, of which there are none, would take half of the time."""
        return init_settings, env_settings

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Merge `given` (None means "not given") over the environment over the defaults.

        Raises `ConfigurationError` naming the setting, never its value.
        """
        given = {name: value for name, value in given.items() if value is not None}
        try:
            settings = cls(**given)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            setting = str(first["loc"][0]) if first["loc"] else "settings"
            raise ConfigurationError(f"{setting}: {first['msg']}", setting=setting) from None
        except Exception as error:  # noqa: BLE001 - a type of the caller's may raise anything when it is compared
            raise ConfigurationError(f"an option is of a type that fails ({type(error).__qualname__})") from None
        settings._given = frozenset(given)
        return settings

    def refuse(self, setting: str, reason: str) -> None:
        """Raise `ConfigurationError` for a setting that is of no use here, if the caller gave it.

        The environment is that of a whole fleet: what is in there for other stores is left alone.
        """
        if setting in self._given:
            raise ConfigurationError(reason)
