"""What the database held of a state when it was last loaded or saved: what the next save compares with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from orchestrator_state.domain import WorkflowState
from orchestrator_state.payloads import Payloads
from orchestrator_state.records.states.columns import all_step_columns, payload_bytes, workflow_columns


@dataclass(frozen=True, slots=True, repr=False)
class Shown:
    """A payload that was upcast, as JSON, and the one of version `stamp` that it was made from."""

    text: str
    stored: str
    stamp: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SavedRows:
    """What the database held when a state was last loaded or saved: the base that a save compares with.

    `workflow` maps columns to values, `steps` maps step ids to their columns, payloads encoded; `positions` is the
    order of the steps. By step id, and by None for the context: `stamps` are the versions of what was stored, and
    `shown` is what the caller got in place of an older version. `outdated`: some digests are older than what they stand
    beside, so a save writes all of it. `may_have_deltas`: checkpoints may refer to the steps. `has_patches`: steps hold
    changes of the context that its column has not.
    """

    workflow: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]
    positions: Mapping[str, int]
    stamps: Mapping[str | None, int | None] = field(default_factory=dict)
    shown: Mapping[str | None, Shown] = field(default_factory=dict)
    outdated: bool = False
    may_have_deltas: bool = False
    has_patches: bool = False

    def payload(self, key: str | None) -> str | None:
        """The stored outputs of a step, or the context for None; None for a step that is not there."""
        if key is None:
            return self.workflow.get("context")
        return self.steps[key]["outputs"] if key in self.steps else None


def loaded_from(state: WorkflowState) -> SavedRows:
    """What a state that was loaded from the database was built from."""
    saved: SavedRows | None = state._saved
    if saved is None:
        raise ValueError("this state was not loaded from the database")
    return saved


async def rebase(state: WorkflowState, live: WorkflowState, payloads: Payloads) -> None:
    """Make `state` the successor of `live`: saving it replaces what `live` was loaded from, and nothing newer.

    Both were just made, and are nobody else's.
    """
    base = loaded_from(live)
    state.version = live.version
    comparing = partial(equals_stored, state, live, payloads)
    if await payloads.aside.call(comparing, payload_bytes(base.workflow, base.steps)):
        state.updated_at = live.updated_at  # saving it writes nothing
    # As if `updated_at` were unmoved: saving an older state is an update of today.
    state._saved = replace(base, workflow={**base.workflow, "updated_at": state.updated_at})


def equals_stored(state: WorkflowState, live: WorkflowState, payloads: Payloads) -> bool:
    """Whether what a save of `state` would write is what `live` was loaded from, `updated_at` aside."""
    stored = loaded_from(live)
    mine = workflow_columns(state, payloads) | {"updated_at": live.updated_at}
    steps = all_step_columns(state, payloads)
    for key, shown in stored.shown.items():
        if key is None:
            mine["context"] = shown.stored if mine["context"] == shown.text else mine["context"]
        elif key in steps and steps[key]["outputs"] == shown.text:
            steps[key]["outputs"] = shown.stored
    return mine == stored.workflow and steps == stored.steps


def snapshot_of(state: WorkflowState) -> WorkflowState:
    """A saved `state` as it was written, to compare with what is there."""
    copied = state.model_copy()
    copied._saved = state._saved
    return copied


def same_rows(live: WorkflowState, written: WorkflowState) -> bool:
    """Whether `live` was loaded from the very rows that the save of `written` wrote, `updated_at` included."""
    there, mine = live._saved, written._saved
    if there is None or mine is None:
        return False
    return live.version == written.version and there.workflow == mine.workflow and there.steps == mine.steps
