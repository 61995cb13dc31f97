"""Every error of the package, as one tree.

    OrchestratorStateError
    ├── ConfigurationError    the call or the environment is wrong: fix it, then call again
    │   ├── SchemaOutOfDate   the database is at another schema revision than the code
    │   ├── ExecutorUnavailable   the executor of a step takes no calls: the run is left to whoever comes next
    │   └── MissingExtra      an optional dependency is not installed
    ├── NotFound
    │   ├── WorkflowNotFound
    │   ├── StepNotFound
    │   ├── CheckpointNotFound
    │   └── QuestionNotFound
    ├── Conflict              somebody else got there first, or the change is not allowed from here
    │   ├── AlreadyExists
    │   ├── InvalidTransition
    │   ├── StaleVersion      the row moved on since it was loaded: load it again
    │   ├── LeaseLost         another worker owns the run now: stop writing
    │   ├── LeaseHeld         another worker owns the run: leave it, or wait
    │   ├── RunPaused         somebody paused the run; `store.resume` lets it go on
    │   ├── PauseTakenBack    somebody paused the run and resumed it: whoever comes next continues it
    │   ├── RunCancelled      somebody cancelled the run
    │   ├── RunFailed         the run that was waited for failed: a child, or one that another worker has
    │   ├── RunUnfinished     the run has no result yet
    │   ├── RunSuspended      the run waits for a signal or a timer, and its worker let go of it
    │   ├── BudgetSpent       the run has spent its budget, and was told to stop
    │   ├── QuestionClosed    the question was answered before, its time is over, or its run is
    │   ├── OutcomeUnknown    a step was under way at a crash, and may or may not have taken effect
    │   └── UnusedSteps       a resumed handler did not ask for all recorded steps, and was told to be strict
    ├── PayloadError          a value cannot be stored, or what is stored cannot be read
    │   ├── InvalidPayload    (also a ValueError)
    │   ├── PayloadTooLarge
    │   ├── UnknownCodec
    │   ├── DecryptionFailed
    │   ├── CorruptPayload
    │   ├── UnprotectedPayload
    │   └── SchemaMismatch    a stored payload is of a version or a shape that this code does not read
    │       ├── UpcasterMissing
    │       ├── UpcasterFailed
    │       ├── NewerSchemaVersion
    │       └── StateMismatch
    ├── AbnormalExit          a step or a handler raised `SystemExit` or the like, or cancelled itself
    └── StoreUnavailable      the only branch that is safe to retry
        ├── AccessLost        (also a ConfigurationError)
        └── SchemaChanged     (also a SchemaOutOfDate)

Each error carries what it is about as attributes. No message holds a payload, a password or a URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self
from uuid import UUID

__all__ = [
    "AbnormalExit",
    "AccessLost",
    "AlreadyExists",
    "BudgetSpent",
    "CheckpointNotFound",
    "ConfigurationError",
    "Conflict",
    "CorruptPayload",
    "DecryptionFailed",
    "ExecutorUnavailable",
    "InvalidPayload",
    "InvalidTransition",
    "LeaseHeld",
    "LeaseLost",
    "MissingExtra",
    "NewerSchemaVersion",
    "NotFound",
    "OrchestratorStateError",
    "OutcomeUnknown",
    "PauseTakenBack",
    "PayloadError",
    "PayloadTooLarge",
    "QuestionClosed",
    "QuestionNotFound",
    "RunCancelled",
    "RunFailed",
    "RunPaused",
    "RunSuspended",
    "RunUnfinished",
    "SchemaChanged",
    "SchemaMismatch",
    "SchemaOutOfDate",
    "StaleVersion",
    "StateMismatch",
    "StepNotFound",
    "StoreUnavailable",
    "UnknownCodec",
    "UnprotectedPayload",
    "UnusedSteps",
    "UpcasterFailed",
    "UpcasterMissing",
    "WorkflowNotFound",
]


_context: Any = BaseException.__dict__["__context__"]


class OrchestratorStateError(Exception):
    """Base of everything this package raises on purpose.

    Keyword arguments become attributes (`error.workflow_state_id`), and survive pickling, so that an
    error raised in a worker process reads the same in its parent.
    """

    def __init__(self, message: str, **about: object) -> None:
        super().__init__(message)
        self.about = about
        for name, value in about.items():
            setattr(self, name, value)

    def concerning(self, **about: object) -> Self:
        """Add what the error is about, where the place that raised it could not know. Returns itself."""
        self.about = about | self.about
        for name, value in self.about.items():
            setattr(self, name, value)
        return self

    @property
    def __context__(self) -> BaseException | None:
        """None where it was raised `from None`: what lies behind it holds values, and Dask would pickle it along."""
        return None if self.__suppress_context__ else _context.__get__(self)

    @__context__.setter
    def __context__(self, context: BaseException | None) -> None:
        _context.__set__(self, context)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.about)


def _rebuild(cls: type[OrchestratorStateError], message: str, about: dict[str, object]) -> OrchestratorStateError:
    return cls(message, **about)


class ConfigurationError(OrchestratorStateError):
    """The URL, an option or the way of calling is wrong; repeating the call will not help."""


class SchemaOutOfDate(ConfigurationError):
    """The database's schema and the code's do not match; the message names the command that mends it."""

    expected: str
    found: str | None


class ExecutorUnavailable(ConfigurationError):
    """The `executor` of a step was shut down, or is broken, and takes no calls; or it dropped this one.

    The step's function was not called, so this is no failure of the run. It is left, as after a fault of the database,
    to whoever comes next, whose executor may work.
    """

    workflow_state_id: UUID
    step_id: str


class MissingExtra(ConfigurationError):
    """An optional dependency is missing; the message names the extra to install."""

    extra: str


class NotFound(OrchestratorStateError):
    """Nothing with that id exists in this namespace."""


class WorkflowNotFound(NotFound):
    """No such workflow. One of `workflow_state_id` and `workflow_id` says which was looked for."""

    workflow_state_id: UUID | None = None
    workflow_id: str | None = None


class StepNotFound(NotFound):
    """The workflow has no such step."""

    workflow_state_id: UUID
    step_id: str


class CheckpointNotFound(NotFound):
    """No such checkpoint."""

    checkpoint_id: UUID


class QuestionNotFound(NotFound):
    """No such question."""

    question_id: UUID


class Conflict(OrchestratorStateError):
    """The write would overwrite or contradict what is there. Nothing was changed."""


class AlreadyExists(Conflict):
    """The id is taken."""


class InvalidTransition(Conflict):
    """The status machine has no such arrow. The object is unchanged."""

    expected: tuple[str, ...]
    found: str


class StaleVersion(Conflict):
    """The workflow was saved by somebody else since this copy was loaded. Nothing was written.

    Load it again, repeat the change on the fresh copy, and save that.
    """

    workflow_state_id: UUID
    expected: int
    found: int


class LeaseLost(Conflict):
    """Another worker owns the run, or it was deleted. Nothing was written, and nothing this worker writes will be."""

    workflow_state_id: UUID


class LeaseHeld(Conflict):
    """Another worker owns the run. `owner` is its id, `process` where it runs, `expires_at` when its lease ends."""

    workflow_state_id: UUID
    owner: UUID
    process: str | None
    expires_at: datetime


class RunPaused(Conflict):
    """The run is paused. `store.resume` lets it go on."""

    workflow_state_id: UUID


class PauseTakenBack(Conflict):
    """A run stopped to be paused, but `store.resume` came first: whoever claims it continues it, `store.run` too."""

    workflow_state_id: UUID


class RunCancelled(Conflict):
    """The run was cancelled, for good."""

    workflow_state_id: UUID


class RunUnfinished(Conflict):
    """The run whose result was asked for is not over. `store.wait` waits until it is."""

    workflow_state_id: UUID
    status: str


class RunFailed(Conflict):
    """The run that was waited for has failed: a child of this run, say, that another worker drove.

    `error` is what is recorded of its exception, as text. A child that is driven here raises the exception itself.
    """

    workflow_state_id: UUID
    error: str | None


class RunSuspended(Conflict):
    """The run waits. `store.recover` or a `Worker` continues it, also at `wake_at`, if it is known when it is due."""

    workflow_state_id: UUID
    wake_at: datetime | None = None


class BudgetSpent(Conflict):
    """The run has spent its budget, and was told to stop. To resume it is to be asked again."""

    workflow_state_id: UUID


class QuestionClosed(Conflict):
    """This answer was not accepted. `found`: `answered` (by `answered_by`, if named), `expired` or `withdrawn`."""

    question_id: UUID
    workflow_state_id: UUID
    found: str
    answered_by: str | None


class OutcomeUnknown(Conflict):
    """A step declared `on_unknown="raise"` was under way when its worker vanished.

    Find out whether it took effect (`step_key` was its idempotency key), then rewind the run or fork it.
    """

    workflow_state_id: UUID
    step_id: str
    step_key: str


class UnusedSteps(Conflict):
    """The handler ended without asking for the recorded steps `step_ids`; it was probably changed in between."""

    workflow_state_id: UUID
    step_ids: tuple[str, ...]


class PayloadError(OrchestratorStateError):
    """A value cannot be stored, or a stored one cannot be read."""


@contextmanager
def concerning(**about: object) -> Iterator[None]:
    """A `PayloadError` of the block says what it is about, where the place that raised it could not know."""
    try:
        yield
    except PayloadError as error:
        error.concerning(**about)
        raise


class InvalidPayload(PayloadError, ValueError):
    """A value was refused before any SQL. `path` is the place inside it: `context.items[3]`.

    It is a `ValueError` too, so that validation frameworks which embed our models treat it as one.
    """

    path: str


class PayloadTooLarge(PayloadError):
    """A value is over a size limit. Never retried.

    `is_stored` says that it is no value of the caller's, but a stored one, which is longer than this store may read.
    """

    is_stored: bool = False
    path: str
    expected: int
    found: int


class UnknownCodec(PayloadError):
    """A payload was written with a codec that this store does not have. `tag` is what it was stored with."""

    path: str
    tag: str


class DecryptionFailed(PayloadError):
    """A payload does not open with the keys at hand: another key wrote it, or it was moved here or tampered with."""

    path: str
    key_id: str


class CorruptPayload(PayloadError):
    """A stored payload cannot be read back: it was damaged or written by something else."""

    path: str


class UnprotectedPayload(PayloadError):
    """A payload was stored without a digest or without an encryption, and strict reading refuses it."""

    path: str


class SchemaMismatch(PayloadError):
    """A stored payload is of a version or a shape that this code does not read; other code may. Nothing was written.

    `workflow_name` is whose schema it is, `path` the payload, `found` its version and `expected` the code's.
    """

    workflow_name: str
    path: str
    found: int
    expected: int
    workflow_state_id: UUID | None = None


class UpcasterMissing(SchemaMismatch):
    """The schema has no upcaster from the version `missing` to the next."""

    missing: int


class UpcasterFailed(SchemaMismatch):
    """The upcaster from the version `failed` to the next raised, or returned what cannot be stored."""

    failed: int


class NewerSchemaVersion(SchemaMismatch):
    """The payload was written by newer code."""


class StateMismatch(SchemaMismatch):
    """The application's type does not accept what is stored. `paths` are the places inside it."""

    paths: tuple[str, ...]


class AbnormalExit(OrchestratorStateError):
    """A step's function, or a handler, raised what is not an ordinary exception, and failed by it.

    Such as `SystemExit`, or a `CancelledError` although nobody cancelled it. That exception is the `__cause__`, and
    `raised` its class.
    """

    raised: str


class StoreUnavailable(OrchestratorStateError):
    """The database cannot be reached, is too busy, refuses what it allowed, or gave up on the work. Safe to retry.

    `transient` says that trying again soon may well succeed; the store's own calls have done so for `retry_timeout`.
    `outcome_unknown` says that the connection was lost while a commit was under way, so that the work may or
    may not be there, or that a call of several transactions has done a part of it: load before repeating it. The
    store's own calls settle a lost answer by themselves. `locked` that another transaction held a row for longer than
    `lock_timeout`. `crowded` that no connection of the pool, or no turn to write to SQLite, was to be had within
    `pool_timeout`: a call of the store's is not repeated then, and what a run has to get done is. `failed_before` that
    a statement of the same transaction had failed, and whoever sent it let that pass: Postgres takes no more of them.
    `one_blob` that a blob cannot be read, and that its store can.
    """

    transient: bool = False
    outcome_unknown: bool = False
    locked: bool = False
    crowded: bool = False
    failed_before: bool = False
    one_blob: bool = False


class AccessLost(ConfigurationError, StoreUnavailable):
    """The database refuses an open store what it allowed before: login, privilege or file. No run fails by it."""


class SchemaChanged(SchemaOutOfDate, StoreUnavailable):
    """The tables of an open store are gone, or others than when it was opened. No run fails by it."""
