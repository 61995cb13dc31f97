"""What one commit of a run writes, and what it finds out. Payloads are sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from orchestrator_state.records.leases import Lease
from orchestrator_state.records.steps import SealedStep


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


class UsageRecord(NamedTuple):
    """A row of `run_usage`, but for what it has of its run. Its fields are the table's columns."""

    id: UUID
    step_id: str
    model: str
    provider: str | None
    input_tokens: int
    output_tokens: int
    cost: int | None
    """In billionths of a US dollar; None if nobody knows the price."""
    failed: bool


def dollars_of(nano: int | None) -> Decimal | None:
    """Billionths of a US dollar, as dollars."""
    return None if nano is None else Decimal(nano).scaleb(-9)


@dataclass(slots=True, kw_only=True, repr=False)  # one or more for each step: `frozen` would take four times as long
class RunChange:
    """What one commit of a run writes, payloads sealed; `context` only if the step did more to it than append."""

    lease: Lease
    step: SealedStep
    context: FoldedContext | None = None
    checkpoint: CheckpointRecord | None = None
    consumed_signal: UUID | None = None
    usage: Sequence[UsageRecord] = ()


@dataclass(slots=True, kw_only=True, repr=False)  # one or more for each step: `frozen` would take four times as long
class Ack:
    """What a commit found out: the request that somebody left for the owner, if any."""

    request: str | None
    already_recorded: bool = False
