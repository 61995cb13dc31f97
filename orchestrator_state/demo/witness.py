"""The witness: which process really ran which step, written to a file beside the database and not by it.

It stands between the pipeline and `run.step`. A line is written when a step's function starts, when it has ended, and
when `run.step` has returned its result, be it fresh or recorded. A line that is written outlives its process, so what a
killed worker did can be read whatever the database says.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict, TypeVar, TypeVarTuple

from orchestrator_state import Run

LINGER_SECONDS = 60.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Event = Literal["start", "midway", "end", "returned"]


class Instructions(TypedDict):
    """What the demo asks of the witness, in the run's context.

    It pauses for `pace` seconds before each step, so that a person can watch. In the step `linger_in` the first worker
    waits, with the work done and nothing recorded, to be killed.
    """

    journal: str
    pace: float
    linger_in: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """`at` is seconds of the monotonic clock, which the processes of one machine share."""

    event: Event
    pid: int
    step: str
    at: float


class Witness:
    """Does the steps of a run, and notes what happens."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._asked: Instructions = run.context["witness"]

    async def step(self, step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts) -> T:
        result: T = await self._run.step(step_id, self._watched, step_id, fn, args)
        self._note("returned", step_id)
        return result

    async def _watched(self, step_id: str, fn: Callable[[*Ts], T], args: tuple[*Ts]) -> T:
        await asyncio.sleep(self._asked["pace"])
        self._note("start", step_id)
        result = await asyncio.to_thread(fn, *args)
        if step_id == self._asked["linger_in"] and self._run.attempts == 0:
            self._note("midway", step_id)
            await asyncio.sleep(LINGER_SECONDS)
        self._note("end", step_id)
        return result

    def _note(self, event: Event, step_id: str) -> None:
        append(Path(self._asked["journal"]), Entry(event=event, pid=os.getpid(), step=step_id, at=time.monotonic()))


def append(journal: Path, entry: Entry) -> None:
    """One write to a file that is only appended to: several processes may share it."""
    with journal.open("ab", buffering=0) as file:
        file.write(json.dumps(asdict(entry)).encode() + b"\n")


def read(journal: Path) -> list[Entry]:
    """All whole lines; the tail of a line that is being written is left for the next reading."""
    if not journal.exists():
        return []
    whole, _, _ = journal.read_text().rpartition("\n")
    return [Entry(**json.loads(line)) for line in whole.splitlines()]
