"""The payloads of a row, opened."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

from orchestrator_state.errors import CorruptPayload, DecryptionFailed, PayloadError, UnknownCodec, UnprotectedPayload
from orchestrator_state.payloads import Payloads
from orchestrator_state.records.identities import step_identity, workflow_identity

# No damage: what is stored may be sound, but this store has not the key or the codec that opens it. A run that meets
# such a payload is left as it is, for a worker that has them.
UNOPENED_HERE: Final = (DecryptionFailed, UnknownCodec, UnprotectedPayload)


class DigestedRow(Protocol):
    """What tells of a workflow whether the digests beside its payloads are of today."""

    @property
    def id(self) -> UUID: ...
    @property
    def updated_at(self) -> datetime | None: ...
    @property
    def digested_at(self) -> datetime | None: ...


def or_null(text: str | None) -> str:
    """The JSON of a payload, and of None where there is none. An empty text is something else: damage left it."""
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
        """Where reading is strict, NULL is refused: a payload of None is written as JSON, and sealed."""
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
