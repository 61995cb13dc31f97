"""The verdict: what the witness, the database and the two reports say about the promise."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator_state.demo.witness import Entry

Fate = Literal["reused", "run", "interrupted", "run again", "missing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything the verdict rests on. `finished` and `final` map a finished step to its recorded output."""

    plan: Sequence[str]
    interrupted: str
    killed_pid: int
    killed_at: float  # by the monotonic clock
    journal: Sequence[Entry]
    finished: Mapping[str, object]  # in the database at the kill
    final: Mapping[str, object]  # in the database at the end
    report: bytes
    reference: bytes

    @property
    def take_over_seconds(self) -> float:
        """From the kill until another worker had the first result in hand."""
        return min((entry.at for entry in self.journal if self.survived(entry)), default=0.0) - self.killed_at

    def survived(self, entry: Entry) -> bool:
        return entry.pid != self.killed_pid


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """One line of the table. `pids` ran the step, in order; `seconds` is how long the execution took that stands."""

    step: str
    fate: Fate
    pids: Sequence[int]
    seconds: float | None


def faults(evidence: Evidence) -> list[str]:
    """Each way in which the promise was broken, as a sentence; empty when it was kept."""
    return [*_kill_faults(evidence), *_rerun_faults(evidence), *_loss_faults(evidence)]


def rows(evidence: Evidence) -> list[StepRow]:
    """The steps in their order, as the second worker met them."""
    pids: dict[str, list[int]] = {}
    for entry in evidence.journal:
        if entry.event == "start":
            pids.setdefault(entry.step, []).append(entry.pid)
    steps = [*evidence.plan, *(step for step in evidence.final if step not in evidence.plan)]
    return [
        StepRow(
            step=step,
            fate=_fate(evidence, step, len(pids.get(step, []))),
            pids=pids.get(step, []),
            seconds=_seconds(evidence.journal, step),
        )
        for step in steps
    ]


def _fate(evidence: Evidence, step: str, starts: int) -> Fate:
    if step not in evidence.final:
        return "missing"
    if step == evidence.interrupted:
        return "interrupted"
    if starts > 1:
        return "run again"
    return "reused" if step in evidence.finished else "run"


def _kill_faults(evidence: Evidence) -> Iterator[str]:
    own = {(entry.step, entry.event) for entry in evidence.journal if not evidence.survived(entry)}
    step = evidence.interrupted
    if (step, "start") not in own or (step, "end") in own or step in evidence.finished:
        yield f"the first worker was not killed in the middle of {step!r}"
    if any(evidence.survived(entry) and entry.at < evidence.killed_at for entry in evidence.journal):
        yield "a second worker had the run while the first one owned it"


def _rerun_faults(evidence: Evidence) -> Iterator[str]:
    starts = [entry for entry in evidence.journal if entry.event == "start"]
    again = {entry.step for entry in starts if evidence.survived(entry)} & evidence.finished.keys()
    for step, count in Counter(entry.step for entry in starts).items():
        if step in again:
            yield f"{step!r} ran again although it had finished"
        elif count > (2 if step == evidence.interrupted else 1):
            yield f"{step!r} ran {count} times"


def _loss_faults(evidence: Evidence) -> Iterator[str]:
    started = {entry.step for entry in evidence.journal if entry.event == "start"}
    for entry in evidence.journal:
        if entry.event == "returned" and not evidence.survived(entry) and entry.step not in evidence.finished:
            yield f"{entry.step!r} was acknowledged and is not in the database"
    for step, output in evidence.finished.items():
        if step in evidence.final and evidence.final[step] != output:
            yield f"the recorded output of {step!r} changed"
    for step in evidence.plan:
        if step not in evidence.final:
            yield f"{step!r} never finished"
        elif step not in started:
            yield f"{step!r} is recorded as finished and never ran"
    if evidence.report != evidence.reference:
        yield "the report differs from an uninterrupted run's"


def _seconds(journal: Sequence[Entry], step: str) -> float | None:
    began: dict[int, float] = {}
    seconds = None
    for entry in journal:
        if entry.step == step and entry.event == "start":
            began[entry.pid] = entry.at
        elif entry.step == step and entry.event == "end" and entry.pid in began:
            seconds = entry.at - began[entry.pid]
    return seconds
