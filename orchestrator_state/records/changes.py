"""What runs and their repositories hand each other: leases, and what one commit writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator_state.domain import LARGEST_COUNT
from orchestrator_state.payloads import Payloads
from orchestrator_state.records.sealing import or_null, seal_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who claims: one store in one process."""

    id: UUID
    process: str
    term: timedelta


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """The right to write one run, good while the row's token is this one; and how far its writing has come.

    `version` is the row's as of the last write that is known to have landed. Nobody else moves it while the lease is
    held, so the next commit is for this version and no other: a commit that arrives late, after its own repetition and
    what followed, finds that the row has moved on.
    """

    workflow_state_id: UUID
    owner: UUID
    token: int
    version: int

    @classmethod
    def of(cls, row: Any) -> Lease:
        """Of a row that was just claimed."""
        return cls(workflow_state_id=row.id, owner=row.lease_owner, token=row.lease_token, version=row.version)

    def advance(self) -> None:
        """A commit for this version has landed."""
        self.version += 1


class Renewal(NamedTuple):
    """What the owner of a run learns when its lease is renewed."""

    token: int
    """Another than the owner's: the lease is."""
    request: str | None
    now: datetime
    """The database's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNames:
    """How a run may be found: by key first, then by id, else the newest with that `workflow_id`. None finds nothing."""

    ids: Sequence[UUID]
    """The id that it is given, and those that it is given if another namespace has taken the ones before."""
    idempotency_key: str | None = None
    workflow_id: str | None = None


class StepRecord(NamedTuple):
    """A step as a run commits it; payloads encoded, and with their digests once they are sealed.

    Each step makes a few of them, and a tuple is made five times as fast as a frozen dataclass.
    """

    step_id: str
    position: int
    status: str
    started_at: datetime | None
    completed_at: datetime | None
    outputs: str
    error: str | None
    retry_count: int
    context_patch: str | None = None
    outputs_digest: str | None = None
    error_digest: str | None = None
    context_patch_digest: str | None = None
    schema_version: int | None = None

    def __repr__(self) -> str:
        return f"StepRecord(step_id={self.step_id!r}, status={self.status!r})"  # without the payloads

    def retried(self, calls: int) -> int:
        """The `retry_count` after so many calls more that failed. It only tells: a damaged one fails no run."""
        return min(self.retry_count + calls, LARGEST_COUNT)


@dataclass(slots=True, kw_only=True, repr=False)  # one or more for each step: `frozen` would take four times as long
class CheckpointRecord:
    id: UUID
    step_id: str
    timestamp: datetime
    snapshot: str
    keep: int
    snapshot_digest: str | None = None
    schema_version: int | None = None
    position: int | None = None
    """Of a delta: the position of its step."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FoldedContext:
    """The whole context, with the patches of the steps up to `position` in it."""

    context: str
    position: int
    context_digest: str | None = None


@dataclass(slots=True, kw_only=True, repr=False)  # one or more for each step: `frozen` would take four times as long
class RunChange:
    """What one commit of a run writes, payloads sealed; `context` only if the step did more to it than append."""

    lease: Lease
    step: StepRecord
    context: FoldedContext | None = None
    checkpoint: CheckpointRecord | None = None
    consumed_signal: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Signal:
    """A message that waits for its run; `payload` is JSON."""

    id: UUID
    payload: str


@dataclass(slots=True, kw_only=True, repr=False)  # one or more for each step: `frozen` would take four times as long
class Ack:
    """What a commit found out: the request that somebody left for the owner, if any."""

    request: str | None
    already_recorded: bool = False


def step_record(row: Any, texts: Mapping[str, str | None]) -> StepRecord:
    """A row of `step_states` as a record, with its payloads opened; what older software left NULL is filled in."""
    return StepRecord(
        step_id=row.step_id,
        position=row.position,
        status=row.status,
        started_at=row.started_at,
        completed_at=row.completed_at,
        outputs=or_null(texts["outputs"]),
        error=texts["error"],
        retry_count=row.retry_count or 0,
        context_patch=texts["context_patch"],
        schema_version=row.schema_version,
    )


def sealed_step(payloads: Payloads, workflow_state_id: UUID | str, step: StepRecord) -> StepRecord:
    """`step` as it is stored."""
    columns = {"outputs": step.outputs, "error": step.error, "context_patch": step.context_patch}
    return step._replace(**seal_step(payloads, workflow_state_id, step.step_id, columns))
