"""Small handlers, all of them up to a size: lines that change the context, steps, branches, timeouts, tasks left alone.

They are executed against the history of a context alone, without a database: a commit is an entry in a dict. A program
is made of tuples; each of its lines and functions leaves a mark of its own, so that what counts twice is seen.

Until it vanishes, a worker does what one does that goes on. So a program is not executed once for each moment at which
its worker may vanish: one attempt goes to the end, and what was recorded after each of its commits is where another
attempt begins.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from orchestrator_state.records.context import ContextHistory, Patch, join

Statement = tuple[Any, ...]
Program = tuple[Statement, ...]

START: dict[str, Any] = {"n": 0, "log": ["start"], "deep": {"rows": [{"marks": []}], "words": "start" * 60}}
_STORED: Final = {key: json.dumps(item, separators=(",", ":")) for key, item in START.items()}
_INITIAL: Final = join(_STORED)

_value: Final = cache(json.loads)
_patch: Final = cache(Patch.from_json)
"""Many programs come past the same texts; whoever asks for what they say leaves it as it is."""

MADE = ("made", "found", "sorted", "table")
"""Keys that are made by whoever needs them first."""


@dataclass
class Recorded:
    """What a database would have."""

    steps: dict[str, int] = field(default_factory=dict)
    patches: dict[int, str] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    """Of functions whose step is recorded."""
    committed: dict[str, str] = field(default_factory=_STORED.copy)

    def copy(self) -> "Recorded":
        return Recorded(self.steps.copy(), self.patches.copy(), self.marks.copy(), self.committed.copy())


class Attempt:
    """One call of a program's handler. `speed` is how many turns of the loop a turn of a step's function takes."""

    def __init__(self, recorded: Recorded, *, speed: int = 1, is_first: bool = False) -> None:
        self.recorded = recorded
        self._is_first = is_first
        self.moments: list[Recorded] = []
        """What a worker leaves that vanishes after the first commit of this attempt, after the second, and so on."""
        patches = {position: _patch(text) for position, text in recorded.patches.items()}
        self.history = ContextHistory(_INITIAL, recorded.committed, patches)
        assert not self.history.was_edited, "the patches lead to what is committed"
        self.executed: set[str] = set()
        self._speed = speed
        self._tasks: list[asyncio.Task[Any]] = []
        self._turn = asyncio.Lock()

    @property
    def context(self) -> Any:
        return self.history.taken_up()

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
        change, position = self.history.diff(), len(self.recorded.steps)
        self.recorded.steps[step_id] = position
        self.recorded.marks |= {mark for mark in self.executed if mark == f"{step_id}()"}
        if change.patch is not None:
            self.recorded.patches[position] = change.patch.to_json()
        self.history.accept(change, position)
        self.recorded.committed = dict(self.history.committed)
        lost = self.recorded.marks - {*check(self.recorded.committed)}
        assert not lost, f"a commit takes back what recorded steps did: {lost}"
        self.moments.append(self.recorded.copy())

    async def run(self, program: Program, name: str = "") -> None:
        for number, statement in enumerate(program):
            await self._execute(statement, f"{name}{number}")

    async def _execute(self, statement: Statement, name: str) -> None:
        match statement:
            case ("pause", int(turns)):
                await pause(turns)
            case ("line", str(how)):
                self.change(how, name)
            case ("step" | "failing" as kind, int(turns), change):
                await self.step(name, turns, change, fails=kind == "failing")
            case ("later", *inside):
                await self._later(tuple(inside), name)
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

    async def _later(self, inside: Program, name: str) -> None:
        """In the first attempt its time had not come, or its first step had failed."""
        if not self._is_first:
            with contextlib.suppress(ValueError):
                await self.run(inside, name)

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
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def pause(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def check(context: dict[str, str]) -> list[str]:
    """The marks in a context, none of them twice."""
    values = {key: _value(text) for key, text in context.items()}
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


async def execute(program: Program, recorded: Recorded, speed: int, *, is_first: bool) -> list[Recorded]:
    """Run a program to its end and look at the context. Returns the moments at which its worker may have vanished."""
    attempt = Attempt(recorded, speed=speed, is_first=is_first)
    attempt.history.enter()
    try:
        await attempt.run(program)
        await attempt.settle()
    finally:
        await attempt.abandon()
    final = attempt.history.final()
    marks = sorted(check(final))
    expected = sorted(attempt.executed | recorded.marks)
    assert marks == expected, f"{marks} instead of {expected}"
    assert _value(final["n"]) == sum(key not in START and key not in MADE for key in final), "each counts once"
    return attempt.moments
