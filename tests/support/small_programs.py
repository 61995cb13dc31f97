"""Small handlers, all of them up to a size: lines that change the context, steps, branches, timeouts, tasks left alone.

They are executed against the history of a context alone, without a database: a commit is an entry in a dict. A program
is made of tuples; each of its lines and functions leaves a mark of its own, so that what counts twice is seen.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator_state.records.context import ContextHistory, Patch, join

Statement = tuple[Any, ...]
Program = tuple[Statement, ...]

START: dict[str, Any] = {"n": 0, "log": ["start"], "deep": {"rows": [{"marks": []}], "words": "start" * 60}}


MADE = ("made", "found", "sorted", "table")
"""Keys that are made by whoever needs them first."""


class Crash(BaseException):
    """The worker is gone: nothing more is committed."""


@dataclass
class Recorded:
    """What a database would have."""

    steps: dict[str, int] = field(default_factory=dict)
    patches: dict[int, str] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    """Of functions whose step is recorded."""
    committed: dict[str, str] = field(default_factory=lambda: _encoded(START))


def _encoded(value: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(item, separators=(",", ":")) for key, item in value.items()}


class Attempt:
    """One call of a program's handler. `speed` is how many turns of the loop a turn of a step's function takes."""

    def __init__(self, recorded: Recorded, *, crash_after: int | None = None, speed: int = 1) -> None:
        self.recorded = recorded
        patches = {position: Patch.from_json(text) for position, text in recorded.patches.items()}
        self.history = ContextHistory(join(_encoded(START)), recorded.committed, patches)
        assert not self.history.was_edited, "the patches lead to what is committed"
        self.executed: set[str] = set()
        self._left = crash_after
        self._speed = speed
        self._tasks: list[asyncio.Task[Any]] = []
        self._turn = asyncio.Lock()

    @property
    def context(self) -> Any:
        return self.history.held.taken_up()

    def change(self, how: str, mark: str) -> None:
        self.executed.add(mark)
        context = self.context
        if how == "count":
            context["n"] += 1
            context[mark] = context.get(mark, 0) + 1
        elif how == "append":
            context["log"].append(mark)
        elif how == "deep":
            context["deep"]["rows"][0]["marks"].append(mark)
            context["deep"]["words"] += f" {mark}"
        elif how == "new":
            context["made"] = context.get("made", 0) + 1
            context.setdefault("found", {})[mark] = 1
            context.setdefault("sorted", {}).setdefault("new", {"marks": []})["marks"].append(mark)
        elif how == "table":
            context.setdefault("table", {}).setdefault("rows", [{"marks": []}])[0]["marks"].append(mark)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        place = self.history.begin_call()
        try:
            yield
        finally:
            self.history.end_call(place)

    async def step(self, step_id: str, turns: int, change: str | None, *, fails: bool = False) -> None:
        with self._calling():
            if step_id in self.recorded.steps:
                self.history.replay(self.recorded.steps[step_id])
                return
            await pause(turns * self._speed)
            if change is not None:
                self.change(change, f"{step_id}()")
            await pause(turns * self._speed)
            if fails:
                raise ValueError(step_id)
            async with self._turn:
                await asyncio.shield(asyncio.ensure_future(pause(1)))
                self._commit(step_id)

    def _commit(self, step_id: str) -> None:
        if self._left == 0:
            raise Crash
        change, position = self.history.diff(), len(self.recorded.steps)
        self.recorded.steps[step_id] = position
        self.recorded.marks |= {mark for mark in self.executed if mark == f"{step_id}()"}
        if change.patch is not None:
            self.recorded.patches[position] = change.patch.to_json()
        self.history.accept(change, position)
        self.recorded.committed = dict(self.history.committed)
        check(self.recorded.committed)
        if self._left is not None:
            self._left -= 1

    async def run(self, program: Program, name: str = "") -> None:
        for number, statement in enumerate(program):
            await self._execute(statement, f"{name}{number}")

    async def _execute(self, statement: Statement, name: str) -> None:
        match statement:
            case ("pause", int(turns)):
                await pause(turns)
            case ("line", str(how)):
                self.change(how, name)
            case ("step", int(turns), change):
                await self.step(name, turns, change)
            case ("failing", int(turns), change):
                await self.step(name, turns, change, fails=True)
            case ("timeout", int(limit), *inside):
                await self._limited(limit, tuple(inside), name)
            case ("gather", *branches):
                tasks = [
                    self._start(branch, f"{name}{letter}") for letter, branch in zip("abc", branches, strict=False)
                ]
                with contextlib.suppress(ValueError):
                    await asyncio.gather(*tasks)
            case ("group", *branches):
                await self._grouped(branches, name)
            case ("beside", *inside):
                self._start(tuple(inside), f"{name}x")
            case _:
                raise AssertionError(statement)

    async def _grouped(self, branches: Sequence[Program], name: str) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for letter, branch in zip("abc", branches, strict=False):
                    self._tasks.append(group.create_task(self.run(branch, f"{name}{letter}")))
        except* ValueError:
            pass

    async def _limited(self, limit: int, inside: Program, name: str) -> None:
        """`asyncio.timeout`, in turns of the loop instead of seconds."""
        task = self._start(inside, name)
        for _ in range(limit):
            if task.done():
                break
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    def _start(self, program: Program, name: str) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(self.run(program, name))
        self._tasks.append(task)
        return task

    async def settle(self) -> None:
        """Wait for the branches that nobody waited for; a crash is everybody's."""
        while self._tasks:
            for result in await asyncio.gather(*self._tasks[:1], return_exceptions=True):
                del self._tasks[0]
                if isinstance(result, BaseException) and not isinstance(result, ValueError | asyncio.CancelledError):
                    raise result

    async def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def pause(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def check(context: dict[str, str]) -> list[str]:
    """The marks in a context, none of them twice."""
    values = {key: json.loads(text) for key, text in context.items()}
    counted = {key: count for key, count in values.items() if key not in START and key not in MADE}
    words = values["deep"]["words"].split()[1:]
    found = values.get("found", {})
    assert all(count == 1 for count in found.values())
    assert values.get("made", 0) == len(found), f"made {values.get('made')} of {found}"
    news = values.get("sorted", {}).get("new", {}).get("marks", [])
    assert sorted(news) == sorted(found), f"{news} and {found}"
    marks = [*values["log"][1:], *values["deep"]["rows"][0]["marks"], *found]
    marks += [mark for row in values.get("table", {}).get("rows", []) for mark in row["marks"]]
    assert all(count == 1 for count in counted.values()), f"counted twice: {counted}"
    assert len({*marks}) == len(marks), f"appended twice: {marks}"
    assert len({*words}) == len(words), f"added to the text twice: {words}"
    return [*counted, *marks]


async def execute(program: Program, crashes: Sequence[int], speeds: Sequence[int]) -> None:
    """Run a program to the end, its worker vanishing after so many commits of each attempt; look at the context."""
    recorded = Recorded()
    attempt = Attempt(recorded)
    for crash_after, speed in zip([*crashes, None], speeds, strict=False):
        attempt = Attempt(recorded, crash_after=crash_after, speed=speed)
        attempt.history.enter()
        try:
            await attempt.run(program)
            await attempt.settle()
        except (Crash, ValueError) as stop:
            await attempt.abandon()
            if crash_after is None and isinstance(stop, Crash):
                raise
            if isinstance(stop, ValueError):
                break
            continue
        except BaseExceptionGroup:
            await attempt.abandon()
            continue
        break
    final = attempt.history.final()
    values = {key: json.loads(text) for key, text in final.items()}
    marks = sorted(check(final))
    expected = sorted(attempt.executed | recorded.marks)
    assert marks == expected, f"{marks} instead of {expected}"
    assert values["n"] == sum(key not in START and key not in MADE for key in values), "each counts once"


def commits_of(program: Program) -> int:
    """At most so many."""
    total = 0
    for statement in program:
        if statement[0] == "step":
            total += 1
        for part in statement[1:]:
            if type(part) is tuple and part:
                total += commits_of(part if type(part[0]) is tuple else (part,))
    return total
