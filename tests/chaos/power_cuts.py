"""The power fails at a random moment: what SQLite's files hold then is made from what the worker wrote to them.

A worker is traced. The machine that lost its power has, of each file, all that was written before the file's last
fsync, and of what was written after it any part, down to single sectors of 512 bytes. The worker tells what was
acknowledged by writing it to a pipe, which stands in the same trace: so it is known what must be there.

python -m tests.chaos.power_cuts DATABASE SYNCHRONOUS     # the traced worker
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from orchestrator_state import Run, StateStore
from tests.chaos.report import Report
from tests.chaos.tools import find

_ROOT: Final = Path(__file__).parents[2]
_SECTOR: Final = 512
_RUNS: Final = 6
_STEPS: Final = 20
_TRACED: Final = "openat,pwrite64,write,ftruncate,fdatasync,fsync"


class Call(NamedTuple):
    """A system call that changes a file, or makes it durable; or that acknowledges a step."""

    name: str
    path: str
    data: bytes = b""
    offset: int = 0


@dataclass
class _File:
    """A file, as the disk has it, and what was written to it since."""

    durable: bytearray = field(default_factory=bytearray)
    since: list[Call] = field(default_factory=list)

    def after_a_cut(self, chance: random.Random) -> bytes:
        """Of what is not durable, any sectors: all of it, none, or some."""
        content, share = bytearray(self.durable), chance.choice((0.0, 0.5, 0.9, 1.0))
        for call in self.since:
            if call.name == "ftruncate":
                if chance.random() < share:
                    _resize(content, call.offset)
                continue
            for start in range(0, len(call.data), _SECTOR):
                if chance.random() < share:
                    _write(content, call.data[start : start + _SECTOR], call.offset + start)
        return bytes(content)

    def sync(self) -> None:
        for call in self.since:
            if call.name == "ftruncate":
                _resize(self.durable, call.offset)
            else:
                _write(self.durable, call.data, call.offset)
        self.since.clear()


async def cut_the_power(directory: Path, *, rounds: int, seed: int, synchronous: str = "FULL") -> Report:
    """Cut it `rounds` times in one recorded life of a worker, and look at what the database holds after each."""
    report, chance = Report(name=f"power cuts, synchronous={synchronous}", seed=seed), random.Random(seed)
    calls = await asyncio.to_thread(_record, directory, synchronous)
    moments = sorted(chance.sample(range(len(calls)), k=min(rounds, len(calls))))
    report.figures["system calls"] = len(calls)
    for moment, files, acknowledged in _states_at(calls, moments):
        report.rounds += 1
        report.acknowledged = len(acknowledged)
        fault = _look(directory, files, acknowledged, chance)
        if fault is not None:
            report.find("lost", f"power cut after {moment} calls: {fault}")
    return report


def _record(directory: Path, synchronous: str) -> list[Call]:
    """Every call of a worker that comes to its end."""
    directory.mkdir(exist_ok=True)
    trace, database = directory / "trace", directory / "workflows.db"
    command = [find("strace"), "-f", "-y", "-qq", "-xx", "-s", "100000000", "-o", str(trace), "-e", f"trace={_TRACED}"]
    worker = [sys.executable, "-m", "tests.chaos.power_cuts", str(database), synchronous]
    subprocess.run([*command, *worker], cwd=_ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return list(parsed(trace, str(database)))


# The number of a process is padded to five digits.
_CALL: Final = re.compile(
    r"^\d+ +(?P<name>\w+)\((?P<fd>\d+)<(?P<path>[^>]*)>"
    r'(?:, "(?P<data>[^"]*)")?(?:, (?P<first>\d+))?(?:, (?P<second>\d+))?\)\s+= (?P<result>\d+)'
)
_RESUMED: Final = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)$")
_UNFINISHED: Final = " <unfinished ...>"


def parsed(trace: Path, database: str) -> Iterator[Call]:
    """The calls in what strace wrote that concern the database, or acknowledge a step."""
    for line in _whole_lines(trace):
        found = _CALL.match(line)
        if found is None:
            continue
        path = bytes.fromhex(found["path"].replace("\\x", "")).decode()
        name, data = found["name"], bytes.fromhex((found["data"] or "").replace("\\x", ""))
        if name == "write" and data.startswith(b"ack "):
            yield Call("ack", "", data)
        elif path not in (database, f"{database}-wal"):
            continue
        elif name == "pwrite64":
            yield Call("pwrite64", path, data[: int(found["result"])], int(found["second"]))
        elif name == "ftruncate":
            yield Call("ftruncate", path, offset=int(found["first"]))
        elif name in ("fsync", "fdatasync"):
            yield Call("sync", path)


def _whole_lines(trace: Path) -> Iterator[str]:
    """A call that another thread interrupted stands in two lines; it counts when it was over."""
    begun: dict[str, str] = {}
    with trace.open() as lines:
        for line in lines:
            text = line.rstrip("\n")
            if text.endswith(_UNFINISHED):
                begun[text.split()[0]] = text.removesuffix(_UNFINISHED)
            elif resumed := _RESUMED.match(text):
                yield begun.pop(resumed["pid"], "") + resumed["rest"]
            else:
                yield text


def _states_at(
    calls: Sequence[Call], moments: Iterable[int]
) -> Iterator[tuple[int, dict[str, _File], list[tuple[str, str]]]]:
    files: dict[str, _File] = {}
    acknowledged: list[tuple[str, str]] = []
    at = 0
    for moment in moments:
        for call in calls[at:moment]:
            if call.name == "ack":
                _, workflow_id, step_id = call.data.decode().split()
                acknowledged.append((workflow_id, step_id))
            elif call.name == "sync":
                files.setdefault(call.path, _File()).sync()
            else:
                files.setdefault(call.path, _File()).since.append(call)
        at = moment
        yield moment, files, acknowledged


def _look(
    directory: Path, files: dict[str, _File], acknowledged: Sequence[tuple[str, str]], chance: random.Random
) -> str | None:
    """What is wrong with the database that such a disk holds."""
    place = directory / "after"
    place.mkdir(exist_ok=True)
    for path in place.iterdir():
        path.unlink()
    for name, file in files.items():
        (place / Path(name).name).write_bytes(file.after_a_cut(chance))
    if not acknowledged:
        return None
    try:
        with closing(sqlite3.connect(place / "workflows.db")) as connection:
            if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                return "the file is damaged"
            query = """
                SELECT workflow_id, step_id FROM step_states JOIN workflow_states ON id = workflow_state_id
                WHERE step_states.status = 'completed'
                """
            there = set(connection.execute(query).fetchall())
    except sqlite3.Error as error:
        return f"the file cannot be read ({error})"
    lost = [step for step in acknowledged if step not in there]
    return f"{len(lost)} acknowledged steps are lost, {lost[0]} among them" if lost else None


def _write(content: bytearray, data: bytes, offset: int) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


async def _work(database: str, synchronous: str) -> None:
    with open(os.devnull, "wb", buffering=0) as null:  # noqa: ASYNC230, PTH123

        async def handler(run: Run) -> None:
            for number in range(_STEPS):
                run.context["n"] = number
                await run.step(f"step-{number}", asyncio.sleep, 0, "x" * 300)
                os.write(null.fileno(), f"ack {run.workflow_id} step-{number}".encode())

        async with StateStore.open(database, synchronous=synchronous) as store:  # type: ignore[arg-type]
            await asyncio.gather(*(store.run("power", handler, workflow_id=f"w-{number}") for number in range(_RUNS)))


if __name__ == "__main__":
    asyncio.run(_work(*sys.argv[1:]))
