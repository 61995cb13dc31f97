"""The steps of one run that are on record, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from orchestrator_state.domain import StepStatus, utc_now
from orchestrator_state.payloads import Limits
from orchestrator_state.records import OpenStep


class StepsOnRecord:
    """Each commit adds to them. `schema_version` is that of new ones."""

    def __init__(self, steps: Sequence[OpenStep], schema_version: int | None, limits: Limits) -> None:
        self.by_id: Final = {step.step_id: step for step in steps}
        self.outputs_length = self.patches_length = self.next_position = 0
        for step in steps:
            self.outputs_length += len(step.outputs)
            self.patches_length += len(step.context_patch or "")
            self.next_position = max(self.next_position, step.position + 1)
        self._schema_version = schema_version
        self._limits = limits

    def new(self, step_id: str, kind: str | None = None, waits_until: datetime | None = None) -> OpenStep:
        """A step that is about to be done. Raises `PayloadTooLarge` if the run has too many."""
        known = self.by_id.get(step_id)
        if known is None and len(self.by_id) >= self._limits.steps:
            self._limits.check_workflow(0, len(self.by_id) + 1)
        return OpenStep(
            step_id=step_id,
            position=0,
            status=StepStatus.PENDING.value,
            started_at=utc_now(),
            completed_at=None,
            outputs="null",
            error=known.error if known else None,
            retry_count=known.retry_count if known else 0,
            schema_version=self._schema_version,
            kind=kind,
            waits_until=waits_until,
        )

    def check_size(self, step_id: str, outputs: str, context_length: int) -> None:
        """Raise `PayloadTooLarge` if the run would be too large with this step."""
        steps = len(self.by_id) + (step_id not in self.by_id)
        size = self.outputs_length + context_length + self.patches_length + len(outputs)
        if size > self._limits.workflow_bytes or steps > self._limits.steps:
            self._limits.check_workflow(size, steps)

    def add(self, step: OpenStep) -> None:
        """`step` is on record; it may replace what was recorded under its id."""
        replaced = self.by_id.get(step.step_id)
        self.outputs_length += len(step.outputs) - (len(replaced.outputs) if replaced else 0)
        self.patches_length += len(step.context_patch or "") - len((replaced and replaced.context_patch) or "")
        self.by_id[step.step_id] = step
        self.next_position = max(self.next_position, step.position + 1)
