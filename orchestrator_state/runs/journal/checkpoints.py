"""The checkpoints that the commits of a run make: whole now and then, else what has changed since."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from orchestrator_state.domain import utc_now
from orchestrator_state.payloads import Payloads, Reference
from orchestrator_state.records import (
    FINAL,
    CheckpointRecord,
    ClaimedRun,
    Delta,
    HashChain,
    OpenStep,
    RunHeader,
    checkpoint_identity,
)
from orchestrator_state.records.context import ContextChange, ContextHistory

# Characters of JSON:
_KEPT: Final = 16 * 1024
_SMALL: Final = 4 * 1024
_LEAST_ADDED: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """A checkpoint with every `every`-th step (0: none), of which the newest `keep` are kept."""

    every: int
    keep: int


class WholeEvery:
    """When a checkpoint is whole: while the state is small, and once as much is new as the last whole one held.

    Whole ones then add up to no more than twice the state, and from time to time there is a second copy of each step.
    """

    def __init__(self, size: int) -> None:
        """`size` is that of the state so far."""
        self._last_whole = size
        self._added = 0

    def is_whole_due(self, size: int, added: int) -> bool:
        """`size` is that of the state with a step that adds `added`."""
        return size <= _SMALL or self._added + added >= max(_LEAST_ADDED, self._last_whole)

    def committed(self, size: int, added: int, *, whole: bool) -> None:
        self._added += added
        if whole:
            self._last_whole, self._added = size, 0


class Checkpoints:
    """Makes the checkpoints of one run. `steps` are those on record, to which each commit adds."""

    def __init__(
        self,
        run: ClaimedRun,
        schema_version: int | None,
        policy: CheckpointPolicy,
        steps: Mapping[str, OpenStep],
        history: ContextHistory,
        size: int,
    ) -> None:
        self.policy: Final = policy
        self._header = RunHeader(run.id, run.workflow_id, run.name, run.user_id, run.started_at)
        self._schema_version = schema_version
        self._id = str(run.id)  # a UUID is slow to spell, and this one is wanted for each step
        self._steps = steps
        self._unfinished = {step.step_id: step for step in steps.values() if step.status not in FINAL}
        self._history = history
        self._start = history.start
        self._whole_every = WholeEvery(size)
        self._encoded: dict[str, tuple[OpenStep, str]] = {}
        """The steps as the last whole one has them, if that was short: then the next one is whole, too."""
        self._chain: HashChain | None = None
        self._longer: tuple[OpenStep, HashChain] | None = None
        self._snapshots: deque[tuple[str, ...]] = deque()
        self._over = 0

    @property
    def is_due(self) -> bool:
        """Whether the policy wants one with the next step that is over."""
        return self.policy.every > 0 and (self._over + 1) % self.policy.every == 0

    def is_long(self, size: int, added: int) -> bool:
        """Whether the next one has to do with all that is recorded."""
        return self._chain is None or self._whole_every.is_whole_due(size, added)

    def made_with(
        self, step: OpenStep, change: ContextChange | None, size: int, payloads: Payloads
    ) -> CheckpointRecord:
        """The state as of the commit of `step`, with its `change` of the context; `size` is that of the state."""
        now, checkpoint_id = step.completed_at or utc_now(), uuid4()
        is_whole = self._whole_every.is_whole_due(size, step.length)
        text = self._whole(step, change, now) if is_whole else self._delta(step, now)
        sealed = payloads.seal(text, checkpoint_identity(self._id, checkpoint_id))
        return CheckpointRecord(
            id=checkpoint_id,
            step_id=step.step_id,
            timestamp=now,
            snapshot=sealed.text,
            snapshot_digest=sealed.digest,
            keep=self.policy.keep,
            schema_version=self._schema_version,
            position=None if is_whole else step.position,
        )

    def remember(self, step: OpenStep) -> None:
        """`step` is on record."""
        if self._chain is not None:
            self._chain = self._chain_with(step)
        if step.status not in FINAL:
            self._unfinished[step.step_id] = step
        elif self._unfinished:
            self._unfinished.pop(step.step_id, None)

    def committed(self, step: OpenStep, made: CheckpointRecord | None, size: int) -> None:
        """The checkpoint that was `made_with` it is on record too, if there is one."""
        self._over += step.status in FINAL
        self._whole_every.committed(size, step.length, whole=made is not None and made.position is None)

    def pruned_with(self, made: CheckpointRecord) -> Sequence[tuple[str, ...]]:
        """The snapshots that the commit of `made` has pruned, of the checkpoints made here: those in the blob store.

        By the rule of `superseded`, which the commit's statements say: the newest stay.
        """
        self._snapshots.append((made.snapshot,) if Reference.parse(made.snapshot) else ())
        return [self._snapshots.popleft() for _ in range(len(self._snapshots) - made.keep)]

    def _whole(self, step: OpenStep, change: ContextChange | None, now: datetime) -> str:
        context = self._history.committed if change is None else self._history.committed_with(change)
        parts: dict[str, str] = {}
        for step_id, known in {**self._steps, step.step_id: step}.items():
            encoded = self._encoded.get(step_id)
            if encoded is None or encoded[0] is not known:
                encoded = self._encoded[step_id] = known, known.to_json()
            parts[step_id] = encoded[1]
        text = self._header.snapshot(now.isoformat(), context, parts)
        if len(text) > _KEPT:
            self._encoded.clear()
        return text

    def _delta(self, step: OpenStep, now: datetime) -> str:
        unfinished: dict[str, dict[str, Any]] = {}
        for step_id, known in self._unfinished.items():
            if step_id != step.step_id:
                unfinished[step_id] = known.unfinished_fields()
        chain = self._chain_with(step).hexdigest()
        return Delta(position=step.position, updated_at=now.isoformat(), unfinished=unfinished, chain=chain).to_json()

    def _chain_with(self, step: OpenStep) -> HashChain:
        """The chain once `step` is committed; made once for the delta and for what comes after it."""
        if self._longer is None or self._longer[0] is not step:
            chain = self._chain or self._chain_of_steps()
            self._longer = step, chain.with_step(step)
        return self._longer[1]

    def _chain_of_steps(self) -> HashChain:
        """Made when it is first needed: a resumed run may never come to a checkpoint."""
        self._chain = HashChain.of(self._start)
        for known in sorted(self._steps.values(), key=lambda known: (known.position, known.step_id)):
            self._chain = self._chain.with_step(known)
        return self._chain
