"""The two shapes of a run's step: open, with its payloads as JSON, and sealed, as it stands in its row."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from orchestrator_state.domain import LARGEST_COUNT, StepStatus
from orchestrator_state.payloads import Payloads
from orchestrator_state.records.cells import is_text, is_time
from orchestrator_state.records.identities import step_identity
from orchestrator_state.records.opening import Opener

FINAL: Final = frozenset({StepStatus.COMPLETED.value, StepStatus.SKIPPED.value})
"""A step in one of these is over, and never written again."""
SIGNAL: Final = "signal"
SLEEP: Final = "sleep"
CHILD: Final = "child"
QUESTION: Final = "question"
WAITS: Final = frozenset({SIGNAL, SLEEP, CHILD, QUESTION})
"""The `kind` of a step that waits, and of one that has waited."""
TRANSACT: Final = "transact"
CHECKPOINT: Final = "checkpoint"
LOOKS_NUMBERED: Final = re.compile(r".*#(?:[2-9]|[1-9][0-9]+)(?:#1)*", re.DOTALL)
"""An id that ends as that of a repeated call does: `load#2`, `load#2#1`. One of the caller's gets a number."""
_NUMBER: Final = re.compile(r"#(?:[2-9]|[1-9][0-9]+)")


def is_call_of(step_id: str, recorded: str) -> bool:
    """Whether a step that is `recorded` under that id was a call of `step_id`: the first, or a repeated one."""
    first = f"{step_id}#1" if LOOKS_NUMBERED.fullmatch(step_id) else step_id
    if recorded == first:
        return True
    return recorded.startswith(step_id) and _NUMBER.fullmatch(recorded, len(step_id)) is not None


class SealedStep(NamedTuple):
    """A row of `step_states`: its fields are the table's columns, and the one list of them.

    Each step makes a few tuples, and a tuple is made five times as fast as a frozen dataclass.
    """

    workflow_state_id: UUID
    step_id: str
    status: str
    started_at: datetime | None
    completed_at: datetime | None
    outputs: str | None
    error: str | None
    retry_count: int | None
    position: int
    context_patch: str | None
    outputs_digest: str | None
    error_digest: str | None
    context_patch_digest: str | None
    schema_version: int | None
    kind: str | None = None
    waits_until: datetime | None = None

    @classmethod
    def of(cls, row: Any) -> SealedStep:
        """Of a row that has all of these columns, and perhaps more."""
        return cls(**{name: getattr(row, name) for name in cls._fields})

    def __repr__(self) -> str:
        return f"SealedStep(step_id={self.step_id!r}, status={self.status!r})"  # without the payloads


class OpenStep(NamedTuple):
    """A step of a run, its payloads as JSON."""

    step_id: str
    position: int
    status: str
    started_at: datetime | None
    completed_at: datetime | None
    outputs: str
    error: str | None
    retry_count: int
    context_patch: str | None = None
    schema_version: int | None = None
    kind: str | None = None
    """What was called, if not the function of a step. This and the next are for who looks on: no run goes by them."""
    waits_until: datetime | None = None

    def __repr__(self) -> str:
        return f"OpenStep(step_id={self.step_id!r}, status={self.status!r})"  # without the payloads

    @property
    def length(self) -> int:
        """Characters of JSON that it adds to its run."""
        return len(self.outputs) + len(self.context_patch or "")

    def retried(self, calls: int) -> int:
        """The `retry_count` after so many calls more that failed. It only tells: a damaged one fails no run."""
        return min(self.retry_count + calls, LARGEST_COUNT)

    def sealed(self, payloads: Payloads, workflow_state_id: UUID, id_text: str) -> SealedStep:
        """The row to be written; `id_text` is the id, which is slow to spell and wanted for each payload.

        Raises `InvalidPayload` when a codec does not encode it.
        """
        step_id, error, patch = self.step_id, self.error, self.context_patch
        outputs, outputs_digest = payloads.seal(self.outputs, step_identity(id_text, step_id, "outputs"))
        error_digest = patch_digest = None
        if error is not None:
            error, error_digest = payloads.seal(error, step_identity(id_text, step_id, "error"))
        if patch is not None:
            patch, patch_digest = payloads.seal(patch, step_identity(id_text, step_id, "context_patch"))
        return SealedStep(
            workflow_state_id=workflow_state_id,
            step_id=step_id,
            status=self.status,
            started_at=self.started_at,
            completed_at=self.completed_at,
            outputs=outputs,
            error=error,
            retry_count=self.retry_count,
            position=self.position,
            context_patch=patch,
            outputs_digest=outputs_digest,
            error_digest=error_digest,
            context_patch_digest=patch_digest,
            schema_version=self.schema_version,
            kind=self.kind,
            waits_until=self.waits_until,
        )

    @classmethod
    def of(cls, row: SealedStep, opener: Opener) -> OpenStep:
        """A row, opened. Raises `PayloadError`."""
        step_id = row.step_id
        return cls.with_texts(
            row,
            outputs=opener.step(step_id, "outputs", row.outputs, row.outputs_digest),
            error=opener.step(step_id, "error", row.error, row.error_digest),
            context_patch=opener.step(step_id, "context_patch", row.context_patch, row.context_patch_digest),
        )

    @classmethod
    def with_texts(
        cls, row: SealedStep, *, outputs: str | None, error: str | None, context_patch: str | None
    ) -> OpenStep:
        """A row and its payloads; what older software left NULL is filled in."""
        return cls(
            step_id=row.step_id,
            position=row.position,
            status=row.status,
            started_at=row.started_at,
            completed_at=row.completed_at,
            outputs="null" if outputs is None else outputs,
            error=error,
            retry_count=row.retry_count or 0,
            context_patch=context_patch,
            schema_version=row.schema_version,
            kind=row.kind if row.kind and is_text(row.kind) else None,
            waits_until=row.waits_until if row.waits_until and is_time(row.waits_until) else None,
        )

    # --- in a snapshot -------------------------------------------------------------------------------------------

    def fields(self) -> dict[str, Any]:
        """It as a snapshot has it, but for its outputs."""
        return {
            "step_id": self.step_id,
            "status": self.status,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "completed_at": self.completed_at.isoformat() if self.completed_at else None,
            "error": self.error,
            "retry_count": self.retry_count,
        }

    def unfinished_fields(self) -> dict[str, Any]:
        """The same for a step that is not over, with its outputs as JSON text: one that waits has there until when."""
        fields = self.fields()
        return fields if self.outputs == "null" else fields | {"outputs": self.outputs}

    def to_json(self) -> str:
        """All of it, as a snapshot has it."""
        return step_json(self.fields(), self.outputs)


def step_json(fields: dict[str, Any], outputs: str) -> str:
    """The JSON of a step in a snapshot. Of `fields` all is ours, or was stored before: nothing to check."""
    text: bytes = msgspec.json.encode({**fields, "outputs": msgspec.Raw(outputs.encode())})
    return text.decode()
