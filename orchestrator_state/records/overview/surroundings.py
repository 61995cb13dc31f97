"""What other rows say of a run: its steps that are under way, its children and its signals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator_state.records.cells import is_id, is_time
from orchestrator_state.records.steps import LOOKS_NUMBERED, SIGNAL, SLEEP

MOST_BESIDE: Final = 100
"""Steps, children and names of signals that are named of one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentStep:
    """A step that is under way. One that takes no longer than a moment may not be seen."""

    id: str
    kind: str | None
    """What was called, if not a function by `run.step`: `signal`, `sleep`, `child`, `transact`."""
    started_at: datetime | None
    until: datetime | None
    """Of a wait that has a time limit: when that is over."""

    @property
    def signal(self) -> str | None:
        """The name of the signal that it waits for."""
        if self.kind != SIGNAL:
            return None
        name = self.id.removeprefix(f"{SIGNAL}:")
        return name.rpartition("#")[0] if LOOKS_NUMBERED.fullmatch(name) else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What other rows say of a run."""

    current_steps: tuple[CurrentStep, ...] = ()
    children: tuple[UUID, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    finished_steps: int = 0
    stored_bytes: int = 0

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of those that it waits for."""
        return tuple(dict.fromkeys(step.signal for step in self.current_steps if step.signal is not None))


NOTHING_BESIDE: Final = Surroundings()


class SurroundingRows:
    """Rows of many runs, sorted by run."""

    def __init__(self) -> None:
        self._steps: defaultdict[UUID, dict[str, CurrentStep]] = defaultdict(dict)
        self._children: defaultdict[UUID, list[UUID]] = defaultdict(list)
        self._unread: defaultdict[UUID, dict[str, int]] = defaultdict(dict)
        self._counts: dict[UUID, tuple[int, int]] = {}
        self._bytes: defaultdict[UUID, int] = defaultdict(int)

    def add(self, kind: str, row: Any) -> None:
        """Take a row of that `kind` in."""
        getattr(self, f"_add_{kind}")(row.workflow_state_id, row)

    def of_runs(self) -> dict[UUID, Surroundings]:
        """Those of each run that has any."""
        runs = {*self._steps, *self._children, *self._unread, *self._counts}
        return {run: self._of(run) for run in runs}

    def _of(self, run: UUID) -> Surroundings:
        steps, finished = self._counts.get(run, (0, 0))
        current = sorted(self._steps[run].values(), key=_oldest_first)
        return Surroundings(
            current_steps=tuple(current[:MOST_BESIDE]),
            children=tuple(self._children[run]),
            unread=self._unread[run],
            steps=steps,
            finished_steps=finished,
            stored_bytes=self._bytes[run],
        )

    def _add_current(self, run: UUID, row: Any) -> None:
        step = CurrentStep(id=readable(row.step_id), kind=None, started_at=_time(row.started_at), until=None)
        self._steps[run].setdefault(step.id, step)

    def _add_running(self, run: UUID, row: Any) -> None:
        step_id = readable(row.step_id)
        self._steps[run][step_id] = CurrentStep(
            id=step_id,
            kind=kind_of(step_id, row.kind),
            started_at=_time(row.started_at),
            until=_time(row.waits_until),
        )

    def _add_children(self, run: UUID, row: Any) -> None:
        if is_id(row.child):
            self._children[run].append(row.child)

    def _add_signals(self, run: UUID, row: Any) -> None:
        if len(self._unread[run]) < MOST_BESIDE:
            self._unread[run][readable(row.name)] = row.number
        self._bytes[run] += int(row.stored_bytes)

    def _add_steps(self, run: UUID, row: Any) -> None:
        self._counts[run] = (row.number, int(row.finished))
        self._bytes[run] += int(row.stored_bytes)


def readable(name: Any) -> str:
    """SQLite keeps anything in any column."""
    text = name if isinstance(name, str) else name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return text.encode(errors="replace").decode()


def _oldest_first(step: CurrentStep) -> tuple[float, str]:
    return (math.inf if step.started_at is None else step.started_at.timestamp()), step.id


def _time(value: Any) -> datetime | None:
    return value if is_time(value) else None


def kind_of(step_id: str, kind: Any) -> str | None:
    """Software of earlier versions says it of no step, but names the steps of waits after their kinds."""
    if kind is not None:
        return readable(kind)
    if step_id.startswith(f"{SIGNAL}:"):
        return SIGNAL
    return SLEEP if step_id == SLEEP or step_id.startswith(f"{SLEEP}#") else None
