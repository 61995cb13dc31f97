"""The journal: which process really ran which step, written beside the database and not by it.

It is the independent witness of the demo. A line is appended and synced before a step's function starts,
after it ended, and after the step's commit: what a killed process did can be read whatever the database says.
"midway" is where the process waits to be killed: the work is done and nobody has recorded it.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

Event = Literal["start", "midway", "end", "saved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """`at` is seconds of the monotonic clock, which the processes of one machine share."""

    event: Event
    pid: int
    step: str
    attempt: int
    at: float


class Journal:
    """Appends entries; each is one write to an O_APPEND file and is on disk when `add` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, event: Event, step: str, attempt: int) -> None:
        entry = Entry(event=event, pid=os.getpid(), step=step, attempt=attempt, at=time.monotonic())
        os.write(self._file, json.dumps(asdict(entry)).encode() + b"\n")
        os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def read_journal(path: Path) -> list[Entry]:
    """All whole lines; the tail of a line that is being written is left for the next reading."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [Entry(**json.loads(line)) for line in whole.splitlines()]
