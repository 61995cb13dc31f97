"""The context of a run whose branches go on side by side: what a resumed handler does again counts once.

First over all programs of a small grammar, without a database; then the programs that people write, on both.
"""

import asyncio
import contextlib
import copy
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator_state import PayloadError, Run, StateStore
from orchestrator_state.records.context.branches import Place
from orchestrator_state.records.context.patches import Patch
from tests.support.cases import case
from tests.support.running import Effect, Failing, Gate, steps_of, vanish
from tests.support.small_programs import Program, Recorded, Statement, execute

BRANCHES: list[Program] = [
    (("step", 2, None),),
    (("step", 3, None), ("line", "count")),
    (("line", "append"), ("step", 1, None)),
    (("failing", 1, None),),
    (("step", 2, "append"),),
    (("step", 1, None), ("line", "count"), ("step", 2, None)),
    (("step", 1, "count"), ("line", "append")),
    (("step", 2, "deep"), ("line", "deep"), ("step", 1, None)),
    (("line", "deep"), ("pause", 3), ("line", "count")),
    (("pause", 2), ("step", 1, "new")),
    (("line", "table"), ("step", 1, "new"), ("line", "new"), ("step", 2, "table")),
]
HOW = ("count", "append", "deep", "new", "table")
SPEEDS = ((1, 1, 1), (1, 4, 1), (3, 0, 1))
"""Of the steps in each attempt: branches come in another order each time."""


def fails(branch: Program) -> bool:
    return any(statement[0] == "failing" for statement in branch)


def forks(turn: int) -> Iterator[Statement]:
    """Two that differ come in one order with one change to the context, and in the other with the next change."""
    for (nth, one), (mth, other) in itertools.combinations_with_replacement(enumerate(BRANCHES), 2):
        branches = (one, other) if (nth + mth + turn) % 2 else (other, one)
        yield "gather", *branches
        if one is other or fails(one) or fails(other):  # else a group starts the same tasks, and waits for both of them
            yield "group", *branches
    for branch in BRANCHES:
        if any(statement[0] == "step" for statement in branch):
            yield "later", *branch
            yield "gather", (("later", *branch),), (("step", 1, "append"),)
            yield "beside", ("later", *branch)
        yield "beside", *branch
        yield from (("timeout", limit, *branch) for limit in (2, 4, 9))


def leaves_a_branch(fork: Statement) -> bool:
    """Whether one may still be at work when the handler goes on."""
    kind, *branches = fork
    return kind == "beside" or (kind == "gather" and any(map(fails, branches)))


def programs(change: str) -> Iterator[Program]:
    line, step = ("line", change), ("step", 1, None)
    saves, changes_later = (
        (step,),
        (("step", 12, change),),
    )  # what was done before they parted; and what the other saved
    for fork in itertools.permutations([saves, changes_later]):
        yield line, ("gather", *fork), line, step
        yield line, ("gather", *fork, (*saves, line)), line, step
    for fork in forks(HOW.index(change)):
        yield ("line", "append"), fork, line, ("pause", 9), ("step", 1, "append"), ("line", "append")
        yield fork, ("pause", 7), line, step, line, step
        if leaves_a_branch(fork):  # else a pause changes nothing, and this is how the one before begins
            yield fork, line, step


@pytest.mark.slow
@pytest.mark.parametrize(("change", "speeds"), [*zip(HOW, [*SPEEDS, *SPEEDS[1:]], strict=True)])
async def test_in_every_small_program_each_change_counts_once_wherever_the_worker_vanishes(
    change: str, speeds: tuple[int, ...]
) -> None:
    for program in programs(change):
        await wherever_it_vanishes(program, speeds, Recorded())


async def wherever_it_vanishes(program: Program, speeds: tuple[int, ...], recorded: Recorded, *crashes: int) -> None:
    """After each commit of the first attempt, and again after the first commit of the second one.

    Where that is the first to execute a part of the program: after each of its commits, wherever the first ended.
    """
    with case(f"{program} with crashes after {crashes}"):
        moments = await execute(program, recorded, speeds[len(crashes)], is_first=not crashes)
    for number, left in enumerate(moments, 1):
        if not crashes or (*crashes, number) == (1, 1) or (len(crashes) == 1 and "later" in repr(program)):
            await wherever_it_vanishes(program, speeds, left, *crashes, number)


async def test_the_small_programs_notice_a_branch_that_is_taken_to_know_what_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Place, "knows", lambda *_: True)
    with pytest.raises(AssertionError):
        await test_in_every_small_program_each_change_counts_once_wherever_the_worker_vanishes("append", (1, 1, 1))


# --- what people write -------------------------------------------------------------------------------------------


left_alone: list[Any] = []


async def _gather(*steps: Any) -> None:
    await asyncio.gather(*steps)


async def _group(failing: Any, slow: Any) -> None:
    left_alone.append(asyncio.ensure_future(slow))  # a group would end it
    async with asyncio.TaskGroup() as group:
        group.create_task(failing)


async def _first(*steps: Any) -> None:
    done, rest = await asyncio.wait([asyncio.ensure_future(step) for step in steps], return_when="FIRST_EXCEPTION")
    left_alone.extend(rest)
    await next(task for task in done if task.exception() is not None)


async def recorded(run: Run[Any], store: StateStore, step_id: str) -> None:
    """Wait until the commit of another branch's step is there."""
    while True:
        steps = (await store.load_workflow_state(run.id)).steps
        if step_id in steps and steps[step_id].status == "completed":
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("fork", [_gather, _group, _first])
async def test_what_is_done_after_a_branch_failed_while_another_goes_on_counts_once(
    store: StateStore, fork: Any
) -> None:
    slow = Gate()

    async def handler(run: Run) -> Any:
        # Its failure comes while the other is under way.
        with contextlib.suppress(ValueError, ExceptionGroup):
            await fork(run.step("failing", Failing(*[ValueError("declined")] * 9)), run.step("slow", slow))
        run.context["attempts"] = run.context.get("attempts", 0) + 1
        run.append("log", "order sent")
        slow.opened.set()
        await recorded(run, store, "slow")
        state = await store.load_workflow_state(run.id)
        assert state.context == {"attempts": 1, "log": ["order sent"]}, "what was changed is saved with the commit"
        await run.step("after", Effect())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == {"attempts": 1, "log": ["order sent"]}
    state = await store.load_workflow_state_by_workflow_id("w")
    assert state.context == {"attempts": 1, "log": ["order sent"]}


async def test_what_a_step_does_once_its_branches_are_over_is_kept(store: StateStore) -> None:
    """A branch replays, with its own step, the line before the fork: that is no news to what comes after it."""

    async def handler(run: Run) -> Any:
        run.append("log", "before")
        await asyncio.gather(run.step("a", Effect()), run.step("b", Effect()))
        await run.step("joined", lambda: run.append("log", "joined"))
        if not attempts:
            attempts.append(1)
            vanish()
        run.append("log", "after")
        return run.context["log"]

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert await store.run("n", handler, workflow_id="w") == ["before", "joined", "after"]
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"log": ["before", "joined", "after"]}


@pytest.mark.parametrize("key", ["n", "log", "text", "rows", "made"])
async def test_what_another_branch_has_saved_of_the_time_before_the_fork_stays(store: StateStore, key: str) -> None:
    """The function's change comes after that, so its step's commit saves what the function did, and that alone."""
    start = {"n": 0, "log": ["start"], "text": "word " * 200, "rows": [{"at": number} for number in range(50)]}
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        saved = asyncio.Event()

        def change(who: str) -> None:
            match run.context.get(key):
                case int(n):
                    run.context[key] = n + 1
                case str(text):
                    run.context[key] = f"{who} {text}"
                case list(items):
                    items.insert(len(items) // 2 if key == "rows" else len(items), who)
                case None:
                    run.context[key] = [who]

        async def slow() -> None:
            await saved.wait()
            change("function")

        async def quick() -> None:
            await run.step("quick", Effect())
            saved.set()

        change("line")
        await asyncio.gather(run.step("slow", slow), quick())
        value = copy.deepcopy(run.context[key])
        if not attempts:
            attempts.append(1)
            vanish()
        return value

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context=start)
    saved = (await store.load_workflow_state_by_workflow_id("w")).context
    assert await store.run("n", handler, workflow_id="w") == saved[key] != start.get(key)


CHANGES: dict[str, Callable[[Run, str], object]] = {
    "counter": lambda run, mark: run.context.update(k=run.context.get("k", 0) + 1),
    "list": lambda run, mark: run.append("k", mark),
    "object": lambda run, mark: run.context.setdefault("k", {}).update({mark: 1}),
}


@pytest.mark.parametrize("kind", CHANGES)
async def test_a_line_stays_though_the_step_before_it_is_no_longer_asked_for(store: StateStore, kind: str) -> None:
    """Another branch's commit had saved it: the next step of its own branch says nothing of it."""
    is_new, change = False, CHANGES[kind]

    async def handler(run: Run) -> Any:
        is_changed, is_saved = asyncio.Event(), asyncio.Event()

        async def one() -> None:
            if not is_new:
                await run.step("removed", lambda: change(run, "function"))
            change(run, "line")
            is_changed.set()
            await run.step("next", slow)

        async def slow() -> None:
            await is_saved.wait()
            run.context["next"] = True

        async def other() -> None:
            await is_changed.wait()
            await run.step("saves", Effect())
            is_saved.set()

        await asyncio.gather(one(), other())
        if not is_new:
            vanish()
        return run.context["k"]

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    is_new = True
    saved = (await store.load_workflow_state_by_workflow_id("w")).context["k"]
    assert leaves(await store.run("n", handler, workflow_id="w")) == leaves(saved)


@pytest.mark.parametrize("kind", CHANGES)
async def test_what_a_function_did_stays_though_a_step_before_the_fork_is_no_longer_asked_for(
    store: StateStore, kind: str
) -> None:
    is_new, change = False, CHANGES[kind]

    async def handler(run: Run) -> Any:
        async def line() -> None:
            change(run, "line")

        if not is_new:
            await run.step("removed", lambda: change(run, "before"))
        branches = [line(), run.step("kept", lambda: change(run, "function"))]
        await asyncio.gather(*(reversed(branches) if is_new else branches))
        if not is_new:
            vanish()
        return run.context["k"]

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    is_new = True
    saved = (await store.load_workflow_state_by_workflow_id("w")).context["k"]
    assert leaves(await store.run("n", handler, workflow_id="w")) == leaves(saved)


async def test_branches_may_count_side_by_side(store: StateStore) -> None:
    """Each comes to its lines in an order of its own when the run is resumed."""

    async def branch(run: Run, name: str) -> None:
        for _ in range(3):
            await run.step(name, Effect())
            run.context["n"] += 1
            run.append("log", name)

    async def handler(run: Run) -> Any:
        names.append(names.pop(0))
        await asyncio.gather(*(branch(run, name) for name in names))
        await run.step("joined", Effect())
        state = await store.load_workflow_state(run.id)
        if len(attempts) < 3:
            attempts.append(1)
            vanish()
        return [run.context["n"], sorted(run.context["log"]), state.context["n"]]

    names, attempts = ["a", "b", "c"], list[int]()
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w", context={"n": 0})
    assert await store.run("n", handler, workflow_id="w") == [9, sorted("abc" * 3), 9]


async def test_what_the_functions_of_steps_do_side_by_side_is_kept(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        def note(name: str) -> None:
            run.context["n"] += 1
            run.context[name] = "done"
            run.append("log", name)

        async def count_beside() -> None:
            await run.step("first", Effect())
            run.context["n"] += 1
            await run.step("second", Effect())

        names.reverse()
        await asyncio.gather(count_beside(), *(run.step(name, note, name) for name in names))
        if not attempts:
            attempts.append(1)
            vanish()
        await run.step("joined", Effect())
        return [run.context["n"], run.context["a"], run.context["b"], sorted(run.context["log"])]

    names, attempts = ["a", "b"], list[int]()
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"n": 0})
    assert await store.run("n", handler, workflow_id="w") == [3, "done", "done", ["a", "b"]]


MAKERS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "counter": lambda context, name: context.update(k=context.get("k", 0) + 1),
    "list": lambda context, name: context.setdefault("k", []).append(name),
    "object": lambda context, name: context.setdefault("k", {}).update({name: 1}),
    "numbers as keys": lambda context, name: context.setdefault("k", {}).update({str(ord(name)): 1}),
    "counter inside": lambda context, name: count(context.setdefault("k", {})),
    "rows": lambda context, name: context.setdefault("k", {}).setdefault("rows", [{"in": []}])[0]["in"].append(name),
    "list set anew": lambda context, name: context.update(k=[*context.get("k", []), name]),
    "list at its front": lambda context, name: context.setdefault("k", []).insert(0, name),
    "list that was null": lambda context, name: context.update(k=[*(context["k"] or []), name]),
    "text from the start": lambda context, name: context.update(k=context["k"] + name),
    "counter that was null": lambda context, name: context.update(k=(context["k"] or 0) + 1),
    "object that was null": lambda context, name: context.update(k={**(context["k"] or {}), name: 1}),
}

MAKERS_OF_TEXTS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "text": lambda context, name: context.update(k=context.get("k", "") + name),
    "text inside": lambda context, name: add_to(context.setdefault("k", {}), "words", name),
    "text that was null": lambda context, name: context.update(k=(context["k"] or "") + name),
}
"""A function that makes a text sets it: what others have made of nothing by then is no part of it."""


def add_to(inside: dict[str, Any], key: str, text: str) -> None:
    inside[key] = inside.get(key, "") + text


def count(inside: dict[str, Any]) -> None:
    inside["n"] = inside.get("n", 0) + 1


def leaves(value: Any) -> list[Any]:
    if isinstance(value, str):  # in whichever order they were added
        return sorted(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sorted((leaf for each in inner for leaf in leaves(each)), key=str) or [value]


@pytest.mark.parametrize(
    ("by", "kinds"), [("functions", [*MAKERS, *MAKERS_OF_TEXTS]), ("a function and a line", [*MAKERS])]
)
async def test_what_whoever_needs_it_first_makes_is_made_once(store: StateStore, by: str, kinds: list[str]) -> None:
    """Both branches begin in plain code, and come to their steps in another order when the run is resumed."""
    for kind in kinds:
        with case(kind):
            await assert_made_once(store, kind, by)


async def assert_made_once(store: StateStore, kind: str, by: str) -> None:
    make, order, attempts = (MAKERS | MAKERS_OF_TEXTS)[kind], ["a", "b"], list[Any]()

    async def branch(run: Run, name: str) -> None:
        await asyncio.sleep(0.05 * order.index(name))
        if name == "b" and by != "functions":
            make(run.context, name)
        await run.step(name, note, run, name)

    async def note(run: Run, name: str) -> None:
        if name == "a" or by == "functions":
            make(run.context, name)

    async def handler(run: Run) -> Any:
        await asyncio.gather(branch(run, "a"), branch(run, "b"))
        if len(attempts) < 2:
            attempts.append(copy.deepcopy(run.context["k"]))
            order.reverse()
            vanish()
        return run.context["k"]

    context = {"k": None} if "null" in kind else {"k": ""} if "start" in kind else {}
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id=kind, context=context)
    assert [leaves(found) for found in (*attempts, await store.run("n", handler, workflow_id=kind))] == [
        leaves(attempts[0])
    ] * 3


@pytest.mark.parametrize("start", [{}, {"log": []}])
async def test_what_a_recorded_step_brings_while_a_function_is_at_work_is_not_that_functions_doing(
    store: StateStore, start: dict[str, Any]
) -> None:
    attempt = 0

    async def handler(run: Run) -> Any:
        at_work, is_back = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            run.append("log", "slow")
            at_work.set()
            if attempt == 1:
                await asyncio.Event().wait()
            await is_back.wait()
            run.append("log", "slow, too")

        async def quick_one() -> None:
            if attempt == 2:
                await at_work.wait()
            await run.step("quick", lambda: run.append("log", "quick"))
            is_back.set()
            if attempt == 1:
                vanish()

        await asyncio.gather(run.step("slow", slow), quick_one())
        if attempt == 2:
            vanish()
        return sorted(run.context["log"])

    while attempt < 2:
        attempt += 1
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w", context=start)
    attempt = 3
    assert await store.run("n", handler, workflow_id="w") == ["quick", "slow", "slow, too"]


class Orders(BaseModel):
    attempts: int = 0
    log: list[str] = []
    paid: int = 0


async def test_a_typed_state_counts_once_too(store: StateStore) -> None:
    slow = Gate()

    async def handler(run: Run[Orders]) -> Any:
        def pay() -> None:
            run.state.paid += 1

        try:
            await asyncio.gather(run.step("failing", Failing(*[ValueError("declined")] * 9)), run.step("slow", slow))
        except ValueError:
            run.state.attempts += 1
            run.state.log.append("order sent")
        slow.opened.set()
        await recorded(run, store, "slow")
        await run.step("pay", pay)
        if not attempts:
            attempts.append(1)
            vanish()
        return run.state.model_dump()

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", state=Orders)
    expected = {"attempts": 1, "log": ["order sent"], "paid": 1}
    assert await store.run("n", handler, workflow_id="w", state=Orders) == expected


async def test_a_handler_without_branches_writes_what_earlier_software_reads(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        for n in range(3):
            run.context["n"] = n
            run.append("log", n)
            await run.step("step", Effect())

    await store.run("n", handler, workflow_id="w")
    texts = [step.context_patch for step in (await steps_of(store, "w")).values()]
    assert [json.loads(text).keys() for text in texts] == [{"set", "append", "drop"}] * 3


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[1,{}]",
        "[2,{}]",
        '[2,{"change":{},"after":"a"}]',
        '[2,{"change":{"add":{"n":"1"}}}]',
        '[2,{"change":{"extend":{"n":1}}}]',
        '[2,{"change":{"within":{"n":1}}}]',
        '[2,{"change":{},"other":1}]',
        '[2,{"change":{},"made":[1]}]',
    ],
)
def test_an_array_that_is_no_patch_is_refused(text: str) -> None:
    with pytest.raises(PayloadError, match="context_patch"):
        Patch.from_json(text)


@pytest.mark.parametrize(
    ("start", "after", "other"),
    [
        ("a", "ab", 12),
        ("a", "ab", [3, 4]),
        ([1], [1, 2], "a text"),
        ([1], [1, 2], {"x": "text"}),
        (1, 2, "a text"),
        (1, 2, True),
        ({"x": [1]}, {"x": [1, 2]}, [3, 4]),
        ({"x": [1]}, {"x": [1, 2]}, {"x": "text"}),
        ([[1]], [[1, 5]], "a text"),
        ([[1]], [[1, 5]], []),
    ],
)
async def test_what_a_function_added_is_not_done_to_another_kind_of_value(
    store: StateStore, start: Any, after: Any, other: Any
) -> None:
    """On resume the line of the other branch comes first."""
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        met = asyncio.Event()

        async def grow() -> None:
            run.context["v"] = after

        async def by_a_function() -> None:
            if attempts:
                await met.wait()
            await run.step("grow", grow)
            met.set()

        async def by_a_line() -> None:
            if not attempts:
                await met.wait()
            run.context["v"] = other
            met.set()
            await run.step("line", Effect())

        await asyncio.gather(by_a_function(), by_a_line())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context["v"]

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"v": start})
    assert await store.run("n", handler, workflow_id="w") == other


async def test_an_empty_list_that_a_function_made_adds_nothing_to_one_that_others_made(store: StateStore) -> None:
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        made = asyncio.Event()

        async def make() -> None:
            run.context.setdefault("log", [])
            run.context["deep"].setdefault("log", [])

        async def by_a_function() -> None:
            if attempts:
                await made.wait()
            await run.step("make", make)
            made.set()

        async def by_lines() -> None:
            if not attempts:
                await made.wait()
            for place in (run.context, run.context["deep"]):
                place.setdefault("log", []).append("line")
            made.set()
            await run.step("line", Effect())

        await asyncio.gather(by_a_function(), by_lines())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={"deep": {}})
    assert await store.run("n", handler, workflow_id="w") == {"log": ["line"], "deep": {"log": ["line"]}}


async def test_what_a_later_step_has_replaced_does_not_come_back(store: StateStore) -> None:
    """The functions' number waits for one to be there, as on record it is an object by then."""
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        made, counted = asyncio.Event(), asyncio.Event()

        async def count() -> None:
            run.context["z"] = run.context.get("z", 0) + 1

        async def replace() -> None:
            run.context["z"] = {"x": 1}

        async def one() -> None:
            if attempts:
                await counted.wait()
            await run.step("make", count)
            made.set()
            await counted.wait()
            await run.step("replace", replace)

        async def other() -> None:
            if not attempts:
                await made.wait()
            await run.step("count", count)
            counted.set()

        await asyncio.gather(one(), other())
        if not attempts:
            attempts.append(1)
            vanish()
        assert run.context.pop("z") == {"x": 1}
        await run.step("end", Effect())
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == {}
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {}


async def test_what_a_line_has_removed_does_not_come_back(store: StateStore) -> None:
    """On resume a text stands where the function's entry needs an object, until the line removes it."""
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        given_up, removed = asyncio.Event(), asyncio.Event()

        async def note() -> None:
            run.context.setdefault("z", {})["noted"] = True

        async def give_up() -> None:
            run.context["z"] = "given up"
            given_up.set()
            await removed.wait()

        async def noting() -> None:
            if attempts:
                await given_up.wait()
            await run.step("note", note)
            if not attempts:
                attempts.append(1)
                vanish()
            del run.context["z"]
            removed.set()

        await asyncio.gather(noting(), *([run.step("give up", give_up)] if attempts else []))
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == {}
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {}


async def test_what_a_line_has_replaced_does_not_come_back_when_a_step_that_removed_it_is_replayed(
    store: StateStore,
) -> None:
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        begun, gone, counted, removed, replaced = (asyncio.Event() for _ in range(5))

        async def begin() -> None:
            run.context["z"] = "begun"

        async def count() -> None:
            run.context["z"] = run.context.get("z", 0) + 1
            counted.set()
            await removed.wait()

        async def remove() -> None:
            del run.context["z"]
            gone.set()
            await counted.wait()

        async def counting() -> None:
            await run.step("begin", begin)
            begun.set()
            if not attempts:
                await gone.wait()
            await run.step("count", count)
            run.context["z"] = "ended"
            replaced.set()

        async def removing() -> None:
            await (replaced if attempts else begun).wait()
            await run.step("remove", remove)
            removed.set()

        await asyncio.gather(counting(), removing())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == {}


async def marked_by_a_line_and_a_function(run: Run, *, is_resumed: bool) -> None:
    """The line makes the list, and comes first; on resume the function does."""
    made, marked = asyncio.Event(), asyncio.Event()

    def mark(by: str) -> None:
        run.context.setdefault("rows", [{"marks": []}])[0]["marks"].append(by)

    async def by_a_line() -> None:
        if is_resumed:
            await marked.wait()
        mark("line")
        made.set()

    async def by_a_function() -> None:
        if not is_resumed:
            await made.wait()
        await run.step("mark", mark, "function")
        marked.set()

    await asyncio.gather(by_a_line(), by_a_function())


async def test_what_a_function_did_inside_of_a_list_waits_for_the_list_though_its_key_is_gone_by_now(
    store: StateStore,
) -> None:
    """On resume the function's step comes before the line that makes the list; what is on record no longer has it."""
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        await marked_by_a_line_and_a_function(run, is_resumed=bool(attempts))
        await run.step("use", Effect())
        rows = run.context.pop("rows")
        await run.step("remove", Effect())
        if not attempts:
            attempts.append(1)
            vanish()
        return rows

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == [{"marks": ["line", "function"]}]
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {}


@pytest.mark.parametrize("attempts", [2, 3])
async def test_an_object_with_a_key_of_no_letters_is_made_once_by_whoever_needs_it_first(
    store: StateStore, attempts: int
) -> None:
    """In a change inside of a list that key stands for the list's end."""
    lives = 0

    async def handler(run: Run) -> Any:
        nonlocal lives
        lives += 1

        async def branch(name: str) -> None:
            await asyncio.sleep(0.05 * (name == names[lives % 2]))
            await run.step(name, lambda: run.context.setdefault("k", {}).setdefault("", []).append(name))

        await asyncio.gather(*map(branch, names))
        value = copy.deepcopy(run.context["k"])
        del run.context["k"]
        await run.step("remove", Effect())
        if lives < attempts:
            vanish()
        return value

    names = ["a", "b"]
    for _ in range(attempts - 1):
        with pytest.raises(asyncio.CancelledError):
            await store.run("n", handler, workflow_id="w", context={})
    value = await store.run("n", handler, workflow_id="w")
    assert (value.keys(), sorted(value[""])) == ({""}, names)


async def test_what_a_function_has_set_is_there_though_the_handler_sets_another_kind_of_value_later(
    store: StateStore,
) -> None:
    """Another branch's commit has saved the function's value, so that the key is left to the lines from then on."""
    attempts: list[int] = []
    begun_with: list[Any] = []

    async def handler(run: Run) -> Any:
        begun, saved = asyncio.Event(), asyncio.Event()

        async def begin() -> None:
            run.context["status"] = "begun"
            begun.set()
            await saved.wait()

        async def other() -> None:
            if not attempts:
                await begun.wait()
            await run.step("other", Effect())
            saved.set()

        await asyncio.gather(run.step("begin", begin), other())
        begun_with.append(run.context.get("status"))
        run.context["status"] = {"ended": True}
        await run.step("end", Effect())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == {"status": {"ended": True}}
    assert begun_with == ["begun", "begun"]


@pytest.mark.parametrize("made", [{"left": 1}, ["item"], 7])
async def test_what_a_function_made_is_there_though_another_branch_has_saved_what_lines_made_of_it(
    store: StateStore, made: Any
) -> None:
    """On a resume that branch is the first."""
    attempts: list[int] = []
    found: list[Any] = []

    async def handler(run: Run) -> Any:
        changed, saved = asyncio.Event(), asyncio.Event()

        async def make() -> None:
            run.context["job"] = made

        async def job() -> None:
            if attempts:
                await saved.wait()
            await run.step("make", make)
            found.append(run.context.get("job"))
            run.context["job"] = "done"
            changed.set()

        async def other() -> None:
            if not attempts:
                await changed.wait()
            await run.step("other", Effect())
            saved.set()

        await asyncio.gather(job(), other())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == {"job": "done"}
    assert found == [made, made]


@pytest.mark.parametrize("later", ["ended", ["ended"], {"ended": True}])
@pytest.mark.parametrize("made", [{"left": 1}, {"of": {"a": []}}, ["item"], 7])
async def test_what_a_function_made_is_there_though_another_kind_of_value_is_on_record_by_now(
    store: StateStore, made: Any, later: Any
) -> None:
    attempts: list[int] = []
    found: list[Any] = []

    async def handler(run: Run) -> Any:
        begun, saved = asyncio.Event(), asyncio.Event()

        async def make() -> None:
            run.context["job"] = made
            begun.set()
            await saved.wait()

        async def other() -> None:
            if not attempts:
                await begun.wait()
            await run.step("other", Effect())
            saved.set()

        await asyncio.gather(run.step("make", make), other())
        found.append(run.context.get("job"))
        run.context["job"] = later
        await run.step("end", Effect())
        if not attempts:
            attempts.append(1)
            vanish()
        return run.context

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == {"job": later}
    assert found == [made, made]


async def test_what_a_function_did_inside_of_a_list_is_there_as_soon_as_a_line_has_made_the_list(
    store: StateStore,
) -> None:
    """On resume its step comes before that line, and none comes after it: so the handler looks by itself."""
    attempts: list[int] = []

    async def handler(run: Run) -> Any:
        await marked_by_a_line_and_a_function(run, is_resumed=bool(attempts))
        if not attempts:
            attempts.append(1)
            vanish()
        return copy.deepcopy(run.context["rows"])

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    assert await store.run("n", handler, workflow_id="w") == [{"marks": ["line", "function"]}]
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"rows": [{"marks": ["line", "function"]}]}
