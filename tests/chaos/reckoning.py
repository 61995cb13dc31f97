"""Compare what workers and customers were told with what the database holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

from orchestrator_state import StateStore, WorkflowNotFound, WorkflowState, WorkflowStatus
from tests.chaos.report import Report
from tests.chaos.witness import entries
from tests.chaos.workload import LAPS, LAST, Note, read_diaries

Told = Literal["acknowledged", "maybe", "refused"]


@dataclass(kw_only=True)
class Order:
    """A run, as its customer knows it."""

    workflow_id: str
    id: UUID = field(default_factory=uuid4)
    """The run's, once its start was acknowledged."""
    is_cancelled: bool = False
    acknowledged: int = 0
    """Requests."""
    signals: dict[tuple[int, int], Told] = field(default_factory=dict)
    """By serial number and attempt."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What the workers noted."""

    of_runs: Mapping[str, Sequence[Note]]
    """In the order of time."""
    are_timers_checked: bool

    @classmethod
    def of(cls, diaries: Path, *, are_timers_checked: bool) -> Notes:
        of_runs: defaultdict[str, list[Note]] = defaultdict(list)
        for note in sorted(read_diaries(diaries), key=lambda note: note.at):
            of_runs[note.run].append(note)
        return cls(of_runs=of_runs, are_timers_checked=are_timers_checked)


async def reckon(store: StateStore, orders: Iterable[Order], notes: Notes, report: Report) -> None:
    """Put everything that is wrong into the report."""
    report.acknowledged += sum(note.what == "ack" for run in notes.of_runs.values() for note in run)
    for order in orders:
        report.acknowledged += order.acknowledged + list(order.signals.values()).count("acknowledged")
        report.figures["runs"] += 1
        await _Reckoning(store, order, notes, report).reckon()


class _Reckoning:
    """Of one order."""

    def __init__(self, store: StateStore, order: Order, notes: Notes, report: Report) -> None:
        self._store = store
        self._order = order
        self._notes = notes
        self._report = report

    async def reckon(self) -> None:
        order = self._order
        try:
            state = await self._store.load_workflow_state(order.id)
        except WorkflowNotFound:
            self._find("lost", "its start was acknowledged, and there is no run")
            return
        self._end(state)
        await self._steps(state)
        self._signals(state)
        if state.status is WorkflowStatus.COMPLETED and state.context != {"laps": LAPS, "log": list(range(LAPS))}:
            self._find("doubled", f"its context is {state.context}")
        if "child:part" in state.steps:
            child = await self._store.load_workflow_state_by_workflow_id(f"{state.id}/child:part")
            await self._steps(child)

    def _end(self, state: WorkflowState) -> None:
        self._report.figures[str(state.status)] += 1
        if state.status is WorkflowStatus.FAILED:
            self._find("failed", state.error or "")
        elif state.is_active:
            self._find("unrecovered", f"it is {state.status}, with the steps {sorted(state.steps)}")
        elif self._order.is_cancelled and state.status is not WorkflowStatus.CANCELLED:
            self._find("dropped", f"it was cancelled, and is {state.status}")
        elif state.status is WorkflowStatus.CANCELLED and not self._order.is_cancelled:
            self._find("other", "nobody cancelled it, and it is cancelled")

    async def _steps(self, state: WorkflowState) -> None:
        for step_id, note in self._acknowledged(self._notes.of_runs.get(str(state.id), ())).items():
            step = state.steps.get(step_id)
            if step is None or step.status != "completed":
                self._find("lost", f"{step_id} was acknowledged, and is not on record")
            elif step.outputs != note.value:
                self._find("stale", f"{step_id} was acknowledged as {note.value}, and is {step.outputs}")
        for step_id in ("pay", "bye", "part pay"):
            await self._payment(state, step_id)

    def _acknowledged(self, notes: Iterable[Note]) -> dict[str, Note]:
        """By step."""
        acknowledged: dict[str, Note] = {}
        timers: dict[str, Note] = {}
        for note in notes:
            if note.what == "call":
                if (before := acknowledged.get(note.step)) is None:
                    continue
                who = f"worker {note.worker} called it {note.at - before.at:.3f} s later"
                self._find("doubled", f"{note.step} was acknowledged to worker {before.worker}, and {who}")
            elif note.what == "sleep":
                timers.setdefault(note.step, note)
            elif note.what == "awake":
                slept = note.at - timers[note.step].at
                if self._notes.are_timers_checked and slept < note.value / 2:
                    self._find("other", f"{note.step} ended after {slept:.3f} of {note.value} s")
            elif acknowledged.setdefault(note.step, note).value != note.value:
                self._find("stale", f"{note.step} was acknowledged with two values")
        return acknowledged

    async def _payment(self, state: WorkflowState, step_id: str) -> None:
        booked = await entries(self._store, f"{state.id} {step_id}")
        step = state.steps.get(step_id)
        wanted = [step.outputs] if step is not None and step.status == "completed" else []
        if len(booked) > len(wanted):
            self._find("doubled", f"{step_id} is booked {len(booked)} times, and {len(wanted)} times on record")
        elif booked != wanted:
            self._find("lost", f"{step_id} is on record, and booked {len(booked)} times")

    def _signals(self, state: WorkflowState) -> None:
        consumed = [
            _sent(step.outputs)
            for step_id, step in state.steps.items()
            if step_id.partition("#")[0] == "signal:go" and step.status == "completed"
        ]
        for sent in set(consumed):
            if consumed.count(sent) > 1:
                self._find("doubled", f"signal {sent} was delivered {consumed.count(sent)} times")
            if self._order.signals.get(sent) == "refused":
                self._find("doubled", f"signal {sent} was called not stored, and was delivered")
        if state.status is not WorkflowStatus.CANCELLED:
            has_all = any(serial == LAST for serial, _ in consumed)
            for sent, told in self._order.signals.items():
                if told == "acknowledged" and sent not in consumed and not (has_all and sent[0] == LAST):
                    self._find("dropped", f"signal {sent} was acknowledged, and never delivered")

    def _find(self, kind: Any, what: str) -> None:
        self._report.find(kind, f"{self._order.workflow_id} ({self._order.id}): {what}")


def _sent(outputs: Any) -> tuple[int, int]:
    return outputs["serial"], outputs["attempt"]
