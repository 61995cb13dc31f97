"""What is long is worked on beside the event loop, and stored as it was at one moment. On both databases."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from orchestrator_state import InvalidPayload, Payloads, Run, StateStore, WorkflowState
from orchestrator_state.concurrency.aside import LONG, Aside
from orchestrator_state.payloads import canonical
from orchestrator_state.payloads.canonical import decode_long, encode_steady
from tests.support.running import Effect, row_of, steps_of, vanish

pytestmark = pytest.mark.slow

# Much JSON of few objects, and few characters in texts: the values alone are too many to look at in the event loop.
ROWS = [{"id": n, "name": f"row {n}", "marks": [*[10**18 + n] * 8, 0.5, None, True]} for n in range(2700)]


class Watched:
    """A codec that remembers in which threads it was called with something long."""

    tag = "watched"

    def __init__(self) -> None:
        self.in_the_loop: list[str] = []
        self.beside = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def encode(self, data: bytes, identity: bytes) -> bytes:
        self._note("encode", data, identity)
        return data

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        self._note("decode", data, identity)
        return data

    def _note(self, what: str, data: bytes, identity: bytes) -> None:
        if len(data) < 2 * LONG:
            return
        if threading.current_thread() is threading.main_thread():
            self.in_the_loop.append(f"{what} {identity.decode()}")
            return
        self.beside += 1
        self.entered.set()
        self.gate.wait(30)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
async def watching(database_url: str, watched: Watched) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url, migrate=True, payloads=Payloads([watched])) as store:
        yield store


@pytest.fixture
def long_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many values were looked at in the loop, where those were many."""
    looks: list[int] = []
    look = canonical._is_surely_json

    def noted(root: Any, max_depth: int, max_values: int, *most: int) -> bool:
        is_sure = look(root, max_depth, max_values, *most)
        if max_values > 10_000 and is_sure and threading.current_thread() is threading.main_thread():
            size = len(canonical._to_json(root))
            if size > 2 * LONG:
                looks.append(size)
        return is_sure

    monkeypatch.setattr(canonical, "_is_surely_json", noted)
    return looks


async def test_no_long_payload_of_a_run_is_looked_at_sealed_or_opened_in_the_event_loop(
    watching: StateStore, watched: Watched, long_looks: list[int]
) -> None:
    store = watching

    async def handler(run: Run) -> Any:
        outputs = await run.step("outputs", lambda: [*ROWS, "outputs"])
        run.context["rows"] = [*ROWS, "replaced"]
        run.context["new"] = [*ROWS, "new"]
        await run.step("context", lambda: 1)
        run.context["rows"].pop(0)
        await run.checkpoint("by-hand")
        answer = await run.wait_for("answer")
        if not attempts:
            attempts.append(1)
            vanish()
        return [outputs[-1], run.context["rows"][0], answer[-1], *ROWS]

    attempts: list[int] = []
    started = await store.start("n", workflow_id="w", context={"rows": [*ROWS, "start"]})
    await store.signal(started.id, "answer", [*ROWS, "answer"])
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    result = await store.run("n", handler, workflow_id="w")
    assert result[:3] == ["outputs", ROWS[1], "answer"]
    assert await store.run("n", handler, workflow_id="w") == result
    state = await store.load_workflow_state(started.id)
    assert state.context == {"rows": [*ROWS[1:], "replaced"], "new": [*ROWS, "new"]}
    assert state.steps["outputs"].outputs == [*ROWS, "outputs"]
    checkpoint = await store.get_latest_checkpoint(started.id)
    assert checkpoint is not None
    assert checkpoint.snapshot["context"] == state.context
    assert watched.in_the_loop == []
    assert long_looks == []
    assert watched.beside > 10


class Threaded:
    """A codec that remembers what it encoded in another thread than the main one."""

    tag = "threaded"

    def __init__(self) -> None:
        self.elsewhere: list[str] = []

    def encode(self, data: bytes, identity: bytes) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            self.elsewhere.append(identity.decode())
        return data

    def decode(self, data: bytes, identity: bytes, parameter: str) -> bytes:
        return data


async def test_no_thread_is_asked_for_a_short_step_of_a_run_that_has_much_on_record(database_url: str) -> None:
    codec = Threaded()

    async def handler(run: Run) -> None:
        await run.step("long", asyncio.sleep, 0, "x" * 2 * LONG)
        await run.step("whose checkpoint is the first delta, on all that is there", asyncio.sleep, 0)
        codec.elsewhere.clear()
        for n in range(20):
            run.context["n"] = n
            await run.step("short", asyncio.sleep, 0, n)

    async with StateStore.open(database_url, migrate=True, payloads=Payloads([codec])) as store:
        await store.run("order", handler, workflow_id="w")
    assert codec.elsewhere == []


async def test_nor_of_a_state_that_is_saved_by_hand_or_of_what_is_rekeyed(
    watching: StateStore, watched: Watched
) -> None:
    state = WorkflowState(workflow_id="w", workflow_name="n", context={"rows": ROWS})
    await watching.save_workflow_state(state)
    state.context["rows"] = ROWS[1:]
    await watching.save_workflow_state(state)
    assert await watching.load_workflow_state(state.id) == state
    assert (await watching.verify()).is_sound
    assert (await watching.rekey()).is_complete
    assert watched.in_the_loop == []


async def test_nor_of_a_state_that_is_restored_forked_or_rewound(
    watching: StateStore, watched: Watched, long_looks: list[int]
) -> None:
    async def handler(run: Run) -> Any:
        run.context["rows"].append("more")
        run.context["new"] = [*ROWS, "new"]
        await run.step("a", lambda: 1)
        return await run.wait_for("go")

    run_id = (await watching.start("n", workflow_id="w", context={"rows": [*ROWS]})).id
    await watching.recover({"n": handler})
    checkpoint = await watching.get_latest_checkpoint(run_id)
    assert checkpoint is not None
    states = [
        await watching.restore_from_checkpoint(checkpoint.id),
        await watching.fork(checkpoint.id),
        await watching.rewind(checkpoint.id),
    ]
    assert [state.context for state in states] == [{"rows": [*ROWS, "more"], "new": [*ROWS, "new"]}] * 3
    assert watched.in_the_loop == []
    assert long_looks == []


# --- what somebody changes meanwhile --------------------------------------------------------------------------------


async def test_a_long_context_that_is_changed_while_it_is_looked_at_is_stored_as_it_was_at_one_moment(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Aside.call

    async def meanwhile(self: Aside, work: Callable[[], Any], size: int) -> Any:
        done = await call(self, work, size)
        for change in changes:
            change()
        changes.clear()
        return done

    async def handler(run: Run) -> Any:
        rows = run.context["rows"] = [*ROWS]
        changes.extend([partial(rows.append, "late"), partial(run.context.update, late=True)])
        await run.step("step", lambda: 1)
        stored = (await store.load_workflow_state(run.id)).context
        return [len(stored["rows"]) - len(ROWS), stored.get("late")]

    changes: list[Callable[[], Any]] = []
    monkeypatch.setattr(Aside, "call", meanwhile)
    assert await store.run("n", handler, workflow_id="w") == [1, True], "all of it, and not a part"


async def test_what_a_long_context_becomes_meanwhile_is_checked_too(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Aside.call

    async def meanwhile(self: Aside, work: Callable[[], Any], size: int) -> Any:
        done = await call(self, work, size)
        for rows in held:
            rows[0] = float("nan")  # as JSON that is null
        held.clear()
        return done

    async def handler(run: Run) -> None:
        run.context["rows"] = [*ROWS]
        held.append(run.context["rows"])
        with pytest.raises(InvalidPayload, match="finite"):
            await run.step("step", lambda: 1)
        run.context["rows"][0] = 0
        await run.step("again", lambda: 1)

    held: list[list[Any]] = []
    monkeypatch.setattr(Aside, "call", meanwhile)
    await store.run("n", handler, workflow_id="w")
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"rows": [0, *ROWS[1:]]}


def test_a_value_that_is_not_the_same_twice_or_is_refused_is_for_the_loop_to_decide() -> None:
    texts = iter(["1", "2"])
    assert encode_steady(lambda: next(texts)) is None
    assert encode_steady(lambda: "1") == "1"

    def changing() -> str:
        raise RuntimeError("dictionary changed size during iteration")

    def refused() -> str:
        raise InvalidPayload("no")

    assert encode_steady(changing) is None
    assert encode_steady(refused) is None


# --- cancellation ----------------------------------------------------------------------------------------------------


async def test_a_call_that_came_to_its_end_is_recorded_although_its_long_outputs_are_still_being_sealed(
    watching: StateStore, watched: Watched
) -> None:
    async def handler(run: Run) -> Any:
        outputs = await run.step("paid", effect, [*ROWS])
        return len(outputs)

    effect = Effect()
    watched.gate.clear()
    running = asyncio.create_task(watching.run("n", handler, workflow_id="w"))
    assert await asyncio.to_thread(watched.entered.wait, 30)
    running.cancel()
    await asyncio.sleep(0.01)
    watched.gate.set()
    with suppress(asyncio.CancelledError):
        await running
    assert (await steps_of(watching, "w"))["paid"].status == "completed"
    assert await watching.run("n", handler, workflow_id="w") == len(ROWS)
    assert len(effect.calls) == 1


async def test_steps_side_by_side_with_long_values_commit_in_order(store: StateStore) -> None:
    async def branch(run: Run, name: str) -> None:
        for n in range(3):
            run.context[name] = [*ROWS, n]
            await run.step(f"{name}{n}", lambda n: [*ROWS, n], n)

    async def handler(run: Run) -> None:
        await asyncio.gather(*(branch(run, name) for name in "abc"))
        if not attempts:
            attempts.append(1)
            vanish()

    attempts: list[int] = []
    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    await store.run("n", handler, workflow_id="w")
    state = await store.load_workflow_state((await row_of(store, "w")).id)
    assert state.context == {name: [*ROWS, 2] for name in "abc"}
    assert [state.steps[f"{name}{n}"].outputs[-1] for name in "abc" for n in range(3)] == [0, 1, 2] * 3


@pytest.mark.parametrize("value", [ROWS, {"deep": {"rows": ROWS}, "": "x" * 300_000}, [], {}, "y" * 300_000, 5])
def test_what_is_decoded_in_pieces_is_what_was_encoded(value: Any) -> None:
    assert decode_long(canonical.encode(value, "v"), "v") == value
