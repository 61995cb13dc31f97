"""What a commit of a run writes, as the parameters of the statements that write it: the same names on both databases.

They are made of the fields of the records: a column that a record gains is written without a word here. None is called
like a column: in an UPDATE such a parameter would be a new value.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

from sqlalchemy import BigInteger, Integer
from sqlalchemy.types import TypeEngine

from orchestrator_state.models import checkpoints, signals, step_states, workflow_states
from orchestrator_state.records import CheckpointRecord, FoldedContext, RunChange, SealedStep

STEP: Final = {name: f"step_{name}" for name in SealedStep._fields if name != "workflow_state_id"}
"""The parameters of a step, by column."""
CHECKPOINT: Final = {name: f"checkpoint_{name}" for name in CheckpointRecord.__slots__ if name != "keep"}
FOLD: Final = {("context_position" if name == "position" else name): name for name in FoldedContext.__slots__}
"""The fields of a folded context, by column of the run's row; their parameters are called `new_` and the column."""

_w = workflow_states.c
TYPES: Final[dict[str, TypeEngine[Any]]] = (
    {"fence_id": _w.id.type, "fence_owner": _w.lease_owner.type, "fence_token": Integer(), "fence_version": Integer()}
    | {"consumed_signal": signals.c.id.type}
    | {parameter: step_states.c[name].type for name, parameter in STEP.items()}
    | {f"new_{name}": _w[name].type for name in FOLD}
    | {parameter: checkpoints.c[name].type for name, parameter in CHECKPOINT.items()}
    | {"keep": BigInteger()}
)
"""Of each parameter, in the order of `values_of`."""

_step_values: Final = attrgetter(*STEP)
_checkpoint_values: Final = attrgetter(*CHECKPOINT, "keep")
_fold_values: Final = attrgetter(*FOLD.values())
_NO_CHECKPOINT: Final = (None,) * (len(CHECKPOINT) + 1)
_NO_FOLD: Final = (None,) * len(FOLD)


def values_of(change: RunChange) -> tuple[Any, ...]:
    """A value for each of `TYPES`."""
    lease = change.lease
    return (
        lease.workflow_state_id,
        lease.owner,
        lease.token,
        lease.version,
        change.consumed_signal,
        *_step_values(change.step),
        *(_NO_FOLD if change.context is None else _fold_values(change.context)),
        *(_NO_CHECKPOINT if change.checkpoint is None else _checkpoint_values(change.checkpoint)),
    )
