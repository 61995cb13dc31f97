"""How a state differs from what is stored: what the next save writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from orchestrator_state.records.identities import Columns
from orchestrator_state.records.states.saved import SavedRows, Shown
from orchestrator_state.records.states.upcasting import Stamps, as_stored

_SEEN_BY_DELTAS: Final = frozenset({"workflow_id", "workflow_name", "user_id", "started_at", "context"})


@dataclass(slots=True, kw_only=True)
class ChangedRows:
    """What a save writes, and what there is afterwards."""

    columns: Columns
    """Of the workflow, those that changed."""
    steps: dict[str, Columns]
    """Those that changed."""
    removed: Sequence[str]
    positions: Mapping[str, int]
    stamps: Stamps
    shown: Mapping[str | None, Shown]

    @classmethod
    def since(cls, saved: SavedRows, columns: Columns, steps: dict[str, Columns], version: int | None) -> ChangedRows:
        """All that differs; `columns` and `steps` get back what is only shown in another version."""
        stamps, shown = as_stored(columns, steps, saved, version)
        positions = _positions(list(steps), saved.positions)
        changed = {name: value for name, value in columns.items() if value != saved.workflow[name]}
        if stamps.get(None) != saved.stamps.get(None):
            changed["schema_version"] = stamps.get(None)
        return cls(
            columns=changed,
            steps=_changed_steps(steps, positions, stamps, saved),
            removed=[step_id for step_id in saved.steps if step_id not in steps],
            positions=positions,
            stamps=stamps,
            shown=shown,
        )

    @property
    def are_none(self) -> bool:
        return not (self.columns or self.steps or self.removed)

    @property
    def are_seen_by_deltas(self) -> bool:
        return bool(self.steps or self.removed or _SEEN_BY_DELTAS & self.columns.keys())

    def add_what_follows(self, saved: SavedRows, columns: Columns, steps: dict[str, Columns]) -> None:
        """What has to be written because something else is."""
        if saved.outdated:
            # Afterwards the workflow's digests count again, so none that is out of date may be left.
            self.columns, self.steps = self.columns | columns, steps
        if self.removed and saved.has_patches:  # what they did to the context would go with them
            self.columns["context"] = columns["context"]
        if self.removed or "context" in self.columns:
            # Of the steps that are left: new ones will stand in the place of those that went.
            self.columns["context_position"] = max(self.positions.values(), default=-1)
        self.columns |= {"updated_at": columns["updated_at"], "digested_at": columns["updated_at"]}


def _changed_steps(
    steps: dict[str, Columns], positions: Mapping[str, int], stamps: Stamps, saved: SavedRows
) -> dict[str, Columns]:
    return {
        step_id: row
        for step_id, row in steps.items()
        if row != saved.steps.get(step_id)
        or positions[step_id] != saved.positions[step_id]
        or stamps.get(step_id) != saved.stamps.get(step_id)
    }


def _positions(step_ids: Sequence[str], saved: Mapping[str, int]) -> dict[str, int]:
    """Where each step stands: as saved if that is the order of `step_ids`, new ones at the end; else all anew."""
    kept = [saved[step_id] for step_id in step_ids if step_id in saved]
    if kept == sorted(kept) and all(map(saved.__contains__, step_ids[: len(kept)])):
        free = count(max(saved.values(), default=-1) + 1)
        return {step_id: saved[step_id] if step_id in saved else next(free) for step_id in step_ids}
    return {step_id: position for position, step_id in enumerate(step_ids)}
