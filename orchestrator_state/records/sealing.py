"""Which columns hold payloads, and what each of them is bound to.

A payload's identity names its row and column. It is part of the digest and of what encryption authenticates, so that
a value that was moved to another place does not open there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

from orchestrator_state.concurrency import LONG
from orchestrator_state.errors import CorruptPayload, DecryptionFailed, PayloadError, UnknownCodec, UnprotectedPayload
from orchestrator_state.payloads import Payloads, Sealed
from orchestrator_state.records.rows import DigestedRow

Columns = dict[str, Any]

# No damage: what is stored may be sound, and this store lacks what opens it. A run that meets it is left as it is, for
# one that has the key or the codec.
UNOPENED_HERE: Final = (DecryptionFailed, UnknownCodec, UnprotectedPayload)

# The first context is kept by copying `context` inside the database, so both columns have one identity.
_WORKFLOW_PAYLOADS: Final = {"context": "context", "initial_context": "context", "result": "result", "error": "error"}
_STEP_PAYLOADS: Final = ("outputs", "error", "context_patch")
PAYLOAD_COLUMNS: Final = {
    "workflow_states": tuple(_WORKFLOW_PAYLOADS),
    "step_states": _STEP_PAYLOADS,
    "checkpoints": ("snapshot",),
    "signals": ("payload",),
}
# Error messages. The other columns hold JSON.
FREE_TEXTS: Final = frozenset({"error"})


def workflow_identity(workflow_state_id: UUID | str, column: str) -> str:
    return f"workflow_states/{workflow_state_id}/{_WORKFLOW_PAYLOADS[column]}"


def step_identity(workflow_state_id: UUID | str, step_id: str, column: str) -> str:
    return f"step_states/{workflow_state_id}/{step_id}/{column}"


def checkpoint_identity(workflow_state_id: UUID | str, checkpoint_id: UUID | str) -> str:
    return f"checkpoints/{workflow_state_id}/{checkpoint_id}/snapshot"


class SignalPlace(NamedTuple):
    """Where a signal is. An encryption binds it to all of it, the digest to the ids alone.

    So software that binds to the ids only, and runs beside this in a deploy, takes such a signal for one under a key
    that it lacks, and leaves the run alone; a digest that it cannot explain would be damage.
    """

    workflow_state_id: UUID | str
    id: UUID | str
    namespace: str
    name: str

    @property
    def identity(self) -> str:
        return f"signals/{self.workflow_state_id}/{self.id}/payload"

    @property
    def bound_to(self) -> str:
        return f"\0{self.namespace}\0{self.name}"  # neither holds a NUL


async def prepared_signal(payloads: Payloads, place: SignalPlace, text: str) -> Sealed:
    """What is long about `seal_signal`, done before the transaction and beside the loop."""
    return await payloads.aside.call(lambda: payloads.prepared(text, place.identity, place.bound_to), len(text))


def seal_signal(payloads: Payloads, place: SignalPlace, text: str | Sealed) -> Sealed:
    if isinstance(text, Sealed):
        return payloads.placed(text, place.identity)
    return payloads.seal(text, place.identity, place.bound_to)


def open_signal(payloads: Payloads, place: SignalPlace, text: object, digest: str | None, path: str) -> str:
    """Like `Payloads.open`. One that older software has encrypted opens as well, but not when reading is strict."""
    try:
        return payloads.open(text, digest, place.identity, path, bound_to=place.bound_to)
    except DecryptionFailed:
        if payloads.is_strict:
            raise
        return open_older_signal(payloads, place, text, digest, path)


def open_older_signal(payloads: Payloads, place: SignalPlace, text: object, digest: str | None, path: str) -> str:
    """One that is bound to its ids alone."""
    return payloads.open(text, digest, place.identity, path)


async def prepared_workflow(payloads: Payloads, workflow_state_id: UUID | str, columns: Columns) -> Columns:
    """`columns` for `seal_workflow`, with what is long about it done, before the transaction and beside the loop."""

    def prepare() -> Columns:
        return columns | {
            column: payloads.prepared(text, workflow_identity(workflow_state_id, column))
            for column in _WORKFLOW_PAYLOADS.keys() & columns.keys()
            if isinstance(text := columns[column], str)
        }

    size = payloads.length(columns[column] for column in _WORKFLOW_PAYLOADS.keys() & columns.keys())
    return columns if size < LONG else await payloads.aside.call(prepare, size)


def seal_workflow(payloads: Payloads, workflow_state_id: UUID | str, columns: Mapping[str, Any]) -> Columns:
    """`columns` as they are stored: payloads sealed, their digests beside them."""
    sealed = dict(columns)
    for column in _WORKFLOW_PAYLOADS.keys() & columns.keys():
        _seal(payloads, sealed, column, workflow_identity(workflow_state_id, column))
    return sealed


def seal_step(payloads: Payloads, workflow_state_id: UUID | str, step_id: str, columns: Mapping[str, Any]) -> Columns:
    sealed = dict(columns)
    for column in _STEP_PAYLOADS:
        if columns.get(column) is not None:
            _seal(payloads, sealed, column, step_identity(workflow_state_id, step_id, column))
        elif column in columns:
            sealed[f"{column}_digest"] = None
    return sealed


def _seal(payloads: Payloads, columns: Columns, column: str, identity: str) -> None:
    digest, value = None, columns[column]
    if isinstance(value, Sealed):
        columns[column], digest = payloads.placed(value, identity)
    elif value is not None:
        columns[column], digest = payloads.seal(value, identity)
    columns[f"{column}_digest"] = digest


def or_null(text: str | None) -> str:
    """A payload's JSON, where no payload reads as None. An empty text is not that: it is what damage left."""
    return "null" if text is None else text


class Opener:
    """Opens the payloads of one workflow's rows. Raises `PayloadError`.

    `outdated`: software that knows no digests has written to the workflow since they were made.
    """

    def __init__(self, payloads: Payloads, workflow_state_id: UUID | str, *, outdated: bool) -> None:
        self.outdated: Final = outdated
        self._payloads = payloads
        self._workflow_state_id = workflow_state_id
        # Each step has the same, and the text of an id takes longer than the digest of a short payload.
        self._id = str(workflow_state_id)

    @classmethod
    def of(cls, payloads: Payloads, row: DigestedRow) -> Opener:
        """For a row of `workflow_states`, and the steps of that workflow."""
        return cls(payloads, row.id, outdated=row.digested_at != row.updated_at)

    def workflow(self, column: str, text: str | None, digest: str | None) -> str | None:
        return self._open(text, digest, workflow_identity(self._id, column), column)

    def result(self, text: str | None, digest: str | None) -> str:
        """Of a completed run."""
        return self._never_absent("result", text, digest)

    def context(self, text: str | None, digest: str | None) -> str:
        return self._never_absent("context", text, digest)

    def _never_absent(self, column: str, text: str | None, digest: str | None) -> str:
        """Strict reading takes no NULL for it: None is written as JSON, and sealed."""
        opened = self.workflow(column, text, digest)
        if opened is None:
            self._check_absent(column)
        return or_null(opened)

    def step(self, step_id: str, column: str, text: str | None, digest: str | None) -> str | None:
        if text is None and digest is None:
            if column == "outputs":
                self._check_absent(f"steps[{step_id!r}].outputs", step_id=step_id)
            return None
        identity = step_identity(self._id, step_id, column)
        if text is not None and digest is not None and self._payloads.opens_as_it_is(text, digest, identity):
            return text
        try:
            return self._open(text, digest, identity, f"steps[{step_id!r}].{column}")
        except PayloadError as error:
            raise error.concerning(step_id=step_id) from None

    def _check_absent(self, path: str, **about: Any) -> None:
        try:
            self._payloads.check_absent(path)
        except PayloadError as error:
            raise error.concerning(workflow_state_id=self._workflow_state_id, **about) from None

    def _open(self, text: str | None, digest: str | None, identity: str, path: str) -> str | None:
        try:
            if text is not None:
                return self._payloads.open(text, digest, identity, path, outdated=self.outdated)
            if digest is not None and (self._payloads.is_strict or not self.outdated):
                raise CorruptPayload(f"the stored {path} is gone, but not its digest", path=path)
        except PayloadError as error:
            raise error.concerning(workflow_state_id=self._workflow_state_id) from None
        return None
