"""Checkpoints of a run that refer to what is recorded of its steps anyway.

A finished step of a run is never written again, so the state as of a commit is the first context, the finished steps
up to a position, and how each of them changed the context. A delta holds that position and what does change: the
steps that were unfinished at the time. It costs the same whatever the run has done before.

It also holds a hash over all it refers to. Somebody who does change finished steps, or the first context, makes the
deltas whole first; if that was not done, or something is damaged, the hash does not match, and the delta is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.payloads import Payloads, encode
from orchestrator_state.records.context.changes.encoded import Encoded, join, split
from orchestrator_state.records.context.patches import Patch
from orchestrator_state.records.opening import Opener
from orchestrator_state.records.runs import StoredRun
from orchestrator_state.records.steps import FINAL, OpenStep, SealedStep, step_json


class HashChain:
    """A hash over a run's first context and its finished steps, in the order of their commits."""

    def __init__(self, sha256: hashlib._Hash) -> None:
        self._sha256 = sha256

    @classmethod
    def of(cls, initial: Encoded) -> HashChain:
        return cls(hashlib.sha256(join(initial).encode()))

    def with_step(self, step: OpenStep) -> HashChain:
        """The chain with `step` added to it; one that is not finished is no part of it."""
        if step.status not in FINAL:
            return self
        longer = self._sha256.copy()
        parts = (step.step_id, step.status, step.outputs, step.context_patch or "")
        longer.update("\0".join(parts).encode() + b"\0\0")
        return HashChain(longer)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Delta:
    """What a checkpoint stores instead of the whole state."""

    position: int
    updated_at: str
    unfinished: Mapping[str, dict[str, Any]]
    """Steps that were under way or had failed, as `unfinished_fields`, by id."""
    chain: str

    def to_json(self) -> str:
        text: bytes = msgspec.json.encode(self)  # all of it is ours, or was stored before: nothing to check
        return text.decode()

    @classmethod
    def from_json(cls, text: str) -> Delta:
        """Raises `CorruptPayload` for anything that `to_json` has not written."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise CorruptPayload("the stored snapshot is no delta", path="snapshot") from None


class RunHeader(NamedTuple):
    """The run that a snapshot is of: what a run never changes of its row."""

    id: UUID
    workflow_id: str
    workflow_name: str
    user_id: str | None
    started_at: datetime

    def snapshot(self, updated_at: str, context: Encoded, steps: Mapping[str, str]) -> str:
        """The JSON of the whole state, as `WorkflowState.to_snapshot` has it, put together from encoded parts."""
        parts = {"updated_at": encode(updated_at, "updated_at"), "context": join(context), "steps": join(steps)}
        return join(_encoded(self) | parts)


@lru_cache(maxsize=1024)  # a run of few and short steps has it in the checkpoint of each of them
def _encoded(header: RunHeader) -> Encoded:
    fields = {
        "id": str(header.id),
        "workflow_id": header.workflow_id,
        "workflow_name": header.workflow_name,
        "status": WorkflowStatus.RUNNING.value,
        "user_id": header.user_id,
        "started_at": header.started_at.isoformat(),
    }
    return {name: encode(value, name) for name, value in fields.items()}


class DeltaBase:
    """What the deltas of a run refer to: its row, and those of its steps in order of position.

    A step is opened when a delta wants it, so that damage to a later one does not matter.
    """

    def __init__(self, header: RunHeader, run: StoredRun, step_rows: Sequence[SealedStep], payloads: Payloads) -> None:
        self._header = header
        self._run = run
        self._step_rows = step_rows
        self._opener = Opener.of(payloads, run)
        self._open_step = cache(self._step)

    @property
    def texts(self) -> Iterator[object]:
        """What it is made of."""
        yield from (self._run.context, self._run.initial_context)
        for row in self._step_rows:
            yield from (row.outputs, row.context_patch)

    def whole(self, delta: Delta) -> str:
        """The JSON of the state that `delta` is of. Raises `CorruptPayload` if what it refers to is not what it was."""
        try:
            return self._whole(delta)
        except InvalidPayload as error:  # no object where one was stored
            raise CorruptPayload(str(error), **error.about) from None

    def _whole(self, delta: Delta) -> str:
        context = self._initial()
        chain, parts = HashChain.of(context), {}
        for row in self._step_rows:
            if row.status in FINAL and row.position <= delta.position:
                step = self._open_step(row)
                chain = chain.with_step(step)
                parts[step.step_id] = step.to_json()
                if step.context_patch:
                    context = Patch.from_json(step.context_patch).change.apply(context)
        if chain.hexdigest() != delta.chain:
            raise CorruptPayload("the steps that the stored snapshot refers to are not what they were", path="snapshot")
        for step_id, fields in delta.unfinished.items():
            outputs = fields.get("outputs", "null")
            parts[step_id] = step_json({name: fields[name] for name in fields if name != "outputs"}, outputs)
        return self._header.snapshot(delta.updated_at, context, parts)

    def _initial(self) -> Encoded:
        run = self._run
        if run.initial_context is None:
            text = self._opener.workflow("context", run.context, run.context_digest)
        else:
            text = self._opener.workflow("initial_context", run.initial_context, run.initial_context_digest)
        return split(text or "", "context")

    def _step(self, row: SealedStep) -> OpenStep:
        return OpenStep.of(row, self._opener)
