"""What the rows of a claimed run hold: opened, and checked for damage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator_state.damaged import DAMAGED_TIME, FURTHEST_COUNT
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import CorruptPayload, InvalidPayload
from orchestrator_state.payloads import LONGEST_NAME, Payloads, decode
from orchestrator_state.records.cells import corrupt_cells, is_count, is_integer, is_step_id, is_time
from orchestrator_state.records.context.changes.encoded import Encoded, split
from orchestrator_state.records.context.history import ContextHistory
from orchestrator_state.records.context.patches import Patch, apply_all
from orchestrator_state.records.opening import Opener
from orchestrator_state.records.runs import StoredRun
from orchestrator_state.records.steps import OpenStep, SealedStep

# What does not decrypt is not among them: taken for damage, a step under another key would run again.
DAMAGE: Final = (CorruptPayload, InvalidPayload)
_CELLS: Final[Mapping[str, Any]] = {"started_at": None, "completed_at": None, "retry_count": 0, "schema_version": None}
_CELL_CHECKS: Final = (
    ("started_at", is_time),
    ("completed_at", is_time),
    ("retry_count", is_integer),
    ("schema_version", is_integer),
)
_STATUSES: Final = frozenset(status.value for status in StepStatus)
# What has no digest shows its damage only when it is parsed.
_STEP_CHECKS: Final[Mapping[str, Callable[[str], object]]] = {
    "outputs": lambda text: decode(text, "outputs"),
    "error": lambda _: None,
    "context_patch": Patch.from_json,
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Recorded:
    """A run's rows, opened as far as they can be. A text that is None cannot be read."""

    id: UUID
    context: str | None
    initial: str | None
    """The context that the run started with."""
    was_overwritten: bool
    """Whether `initial` has a column of its own. Until the context is written over, it is the first one."""
    context_position: int
    steps: Sequence[OpenStep]
    schema_version: int | None
    damaged: Mapping[str, frozenset[str]]
    """Columns that cannot be read, by step."""
    outdated: bool
    """Software that knows no digests has written to the run since they were made."""

    @property
    def is_sound(self) -> bool:
        return self.context is not None and self.initial is not None and not self.damaged

    def history(self) -> tuple[ContextHistory, Encoded]:
        """The context's way through the steps whose patch can be read, and where it has led to."""
        if self.context is None or self.initial is None:
            raise CorruptPayload("the stored context cannot be read", path="context")
        patches = patches_of(self.steps)
        stored = split(self.context, "context")
        effective = apply_all(stored, (patches[at] for at in sorted(patches) if at > self.context_position))
        return ContextHistory(self.initial, effective, patches), effective


def open_rows(run: StoredRun, step_rows: Sequence[SealedStep], payloads: Payloads) -> Recorded:
    """Open the run's row and its steps'. Raises `PayloadError` for what is no damage, such as another key."""
    opener = Opener.of(payloads, run)
    damaged: dict[str, frozenset[str]] = {}
    steps = [_step(step, opener, damaged) for step in step_rows]
    was_overwritten = run.initial_context is not None or run.initial_context_digest is not None
    context = initial = _object(opener, "context", run.context, run.context_digest)
    if was_overwritten:
        initial = _object(opener, "initial_context", run.initial_context, run.initial_context_digest)
    return Recorded(
        id=run.id,
        context=context,
        initial=initial,
        was_overwritten=was_overwritten,
        context_position=run.context_position,
        steps=steps,
        schema_version=run.schema_version,
        damaged=damaged,
        outdated=opener.outdated,
    )


def patches_of(steps: Sequence[OpenStep]) -> dict[int, Patch]:
    """How each step changed the context, by position."""
    return {step.position: Patch.from_json(step.context_patch) for step in steps if step.context_patch}


def _object(opener: Opener, column: str, text: str | None, digest: str | None) -> str | None:
    try:
        opened = opener.workflow(column, text, digest)
        split(opened or "", column)
    except DAMAGE:
        return None
    return opened


def _step(row: SealedStep, opener: Opener, damaged: dict[str, frozenset[str]]) -> OpenStep:
    """The row as a record; what of it cannot be read is noted in `damaged`, and is None in the record.

    Nothing is decoded whose digest holds: the handler may never ask for it.
    """
    texts: dict[str, str | None] = {}
    lost = [] if is_surely_sound(row) else damaged_cells(row)
    for column, text, digest in (
        ("outputs", row.outputs, row.outputs_digest),
        ("error", row.error, row.error_digest),
        ("context_patch", row.context_patch, row.context_patch_digest),
    ):
        if text is None and digest is None and column != "outputs":
            texts[column] = None
            continue
        try:
            texts[column] = opened = opener.step(row.step_id, column, text, digest)
            if opened is not None and (digest is None or opener.outdated):
                _STEP_CHECKS[column](opened)
        except DAMAGE:
            texts[column] = None
            lost.append(column)
    record = OpenStep.with_texts(row, **texts)
    if not lost:
        return record
    damaged[row.step_id] = frozenset(lost)
    return record._replace(**{column: _CELLS[column] for column in lost if column in _CELLS})


def is_surely_sound(row: SealedStep) -> bool:
    """Whether `damaged_cells` finds nothing. False means no more than a doubt: see there for what is damage.

    What nearly each of many steps is, in one expression; by exact types, and None only where nearly all have it.
    """
    return (
        type(row.position) is int
        and 0 <= row.position < FURTHEST_COUNT
        and type(row.step_id) is str
        and row.step_id.isascii()
        and len(row.step_id) <= LONGEST_NAME
        and type(row.status) is str
        and row.status in _STATUSES
        and type(row.started_at) is datetime
        and row.started_at != DAMAGED_TIME
        and type(row.completed_at) is datetime
        and row.completed_at != DAMAGED_TIME
        and type(row.retry_count) is int
        and (row.schema_version is None or type(row.schema_version) is int)
    )


def damaged_cells(row: SealedStep) -> list[str]:
    """Columns of a step, payloads aside, that cannot be read. Raises `CorruptPayload` if it has no place in the run."""
    if not (is_count(row.position) and is_step_id(row.step_id)):
        raise corrupt_cells(["step_id" if is_count(row.position) else "position"], row.workflow_state_id)
    damaged = []
    for name, is_sound in _CELL_CHECKS:
        if (value := getattr(row, name)) is not None and not is_sound(value):
            damaged.append(name)
    if row.status not in _STATUSES:
        damaged.append("status")
    return damaged
