"""Checkpoints of a run on both databases: most refer to the steps on record, and all read as the whole state."""

import asyncio
import json
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from orchestrator_state import Checkpoint, CorruptPayload, Run, StateStore, WorkflowStatus
from orchestrator_state.models import checkpoints
from orchestrator_state.runs.journal import checkpoints as cadence
from tests.support.interleaving import just_after
from tests.support.running import change_row, change_step, checkpoints_of, row_of, until_done, vanish

TIMES = {"started_at", "completed_at", "updated_at"}


@pytest.fixture
def only_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the state is."""
    _set_cadence(monkeypatch, small=-1, least_added=10**9)


def _set_cadence(monkeypatch: pytest.MonkeyPatch, *, small: int, least_added: int) -> None:
    monkeypatch.setattr(cadence, "_SMALL", small)
    monkeypatch.setattr(cadence, "_LEAST_ADDED", least_added)


async def positions_of(store: StateStore, workflow_state_id: UUID) -> list[int | None]:
    """Of the deltas, None for whole ones; oldest first."""
    query = select(checkpoints.c.position).where(checkpoints.c.workflow_state_id == workflow_state_id)
    async with store.begin() as uow:
        return list((await uow.session.execute(query.order_by(checkpoints.c.seq))).scalars())


def timeless(snapshot: Any) -> Any:
    """A snapshot without its times and its run's id, to compare two runs."""
    state = {name: value for name, value in snapshot.items() if name not in TIMES | {"id"}}
    steps = snapshot["steps"].items()
    return state | {
        "steps": {key: {name: value for name, value in step.items() if name not in TIMES} for key, step in steps}
    }


# --- deltas read as whole snapshots ------------------------------------------------------------------------------

_keys = st.sampled_from("abc")
_values = st.sampled_from([0, 1.5, "text", None, [1], {"x": [True]}])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), _keys, _values),
        st.tuples(st.just("drop"), _keys),
        st.tuples(st.just("append"), st.just("list"), _values),
        st.tuples(st.just("step"), _keys, _values),
        st.tuples(st.just("fail"), _keys),
        st.tuples(st.just("beside"), _values, _values),
        st.tuples(st.just("checkpoint"), _keys),
        st.tuples(st.just("vanish")),
    ),
    max_size=12,
)


class Program:
    """A handler that does what it is told; each `vanish` ends one attempt."""

    def __init__(self, operations: list[tuple[Any, ...]]) -> None:
        self._operations = operations
        self._vanished: set[int] = set()

    async def __call__(self, run: Run) -> None:
        for number, (operation, *arguments) in enumerate(self._operations):
            if operation != "vanish":
                await getattr(self, f"_{operation}")(run, *arguments)
            elif number not in self._vanished:
                self._vanished.add(number)
                vanish()

    async def _set(self, run: Run, key: str, value: Any) -> None:
        run.context[key] = value

    async def _drop(self, run: Run, key: str) -> None:
        run.context.pop(key, None)

    async def _append(self, run: Run, key: str, value: Any) -> None:
        run.append(key, value)

    async def _step(self, run: Run, step_id: str, value: Any) -> None:
        await run.step(step_id, lambda: value)

    async def _fail(self, run: Run, step_id: str) -> None:
        def fail() -> None:
            raise LookupError(step_id)

        with pytest.raises(LookupError):
            await run.step(step_id, fail)

    async def _beside(self, run: Run, one: Any, other: Any) -> None:
        """Two steps side by side, of which the one is begun when the other is committed."""
        committed = asyncio.Event()

        async def late() -> Any:
            await committed.wait()
            return one

        async def early() -> None:
            await run.step("early", lambda: other)
            committed.set()

        await asyncio.gather(run.step("late", late, on_unknown=lambda _: None), early())

    async def _checkpoint(self, run: Run, label: str) -> None:
        await run.checkpoint(label)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
async def test_deltas_read_as_the_whole_snapshots_of_the_same_run(
    database_url: str, monkeypatch: pytest.MonkeyPatch, operations: list[tuple[Any, ...]]
) -> None:
    async with StateStore.open(database_url, keep_checkpoints=100) as store:
        snapshots: list[Any] = []
        for small in (10**9, -1):
            _set_cadence(monkeypatch, small=small, least_added=10**9)
            program, workflow_id = Program(operations), uuid4().hex
            await until_done(lambda: store.run("n", program, workflow_id=workflow_id, context={"n": 0}))  # noqa: B023
            made = await checkpoints_of(store, workflow_id)
            kinds = await positions_of(store, (await row_of(store, workflow_id)).id)
            assert {position is None for position in kinds} <= {small > 0}
            snapshots.append([timeless(each.snapshot) | {"workflow_id": ""} for each in made])
        whole, from_deltas = snapshots
        assert from_deltas == whole


async def count_to(store: StateStore, number: int, *, size: int = 10, workflow_id: str = "w") -> list[Checkpoint]:
    """A run of so many steps, each of which appends to the context; its checkpoints, oldest first."""

    async def handler(run: Run) -> None:
        for each in range(number):
            run.append("log", each)
            run.context["n"] = each
            await run.step(f"step-{each}", lambda: "x" * size)

    await store.run("n", handler, workflow_id=workflow_id, context={"constant": "y" * size})
    return await checkpoints_of(store, workflow_id)


@pytest.mark.usefixtures("only_deltas")
async def test_a_delta_holds_the_state_as_of_its_step_and_prunes_like_any_other(store: StateStore) -> None:
    made = await count_to(store, 30)
    assert len(made) == 10
    assert [len(each.snapshot["steps"]) for each in made] == list(range(21, 31))
    assert [each.snapshot["context"]["log"] for each in made] == [list(range(count)) for count in range(21, 31)]
    assert [each.snapshot["context"]["n"] for each in made] == list(range(20, 30))


@pytest.mark.usefixtures("only_deltas")
async def test_a_delta_does_not_grow_with_the_run(store: StateStore) -> None:
    await count_to(store, 60, size=1000)
    async with store.begin() as uow:
        stored = (await uow.session.execute(select(checkpoints.c.snapshot))).scalars().all()
    assert max(map(len, stored)) < 300


async def test_whole_ones_come_between_and_add_up_to_less_than_twice_the_state(database_url: str) -> None:
    async with StateStore.open(database_url, keep_checkpoints=1000) as store:
        await count_to(store, 100, size=6000)
        kinds = await positions_of(store, (await row_of(store, "w")).id)
        async with store.begin() as uow:
            query = select(checkpoints.c.snapshot).where(checkpoints.c.position.is_(None))
            whole = sum(map(len, (await uow.session.execute(query)).scalars()))
    assert 4 <= kinds.count(None) <= 12
    assert whole < 2.1 * 100 * 6100


# --- what they refer to changes ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("only_deltas")
@pytest.mark.parametrize("change", ["context", "outputs", "removed", "name"])
async def test_a_save_by_hand_makes_older_checkpoints_whole_first(store: StateStore, change: str) -> None:
    before = await count_to(store, 5)
    state = await store.load_workflow_state((await row_of(store, "w")).id)
    if change == "context":
        state.context = {"edited": True}
    elif change == "outputs":
        state.steps["step-1"].outputs = "edited"
    elif change == "removed":
        del state.steps["step-0"]
    else:
        state.user_id = "somebody else"
    await store.save_workflow_state(state)
    assert await checkpoints_of(store, "w") == before
    assert await positions_of(store, state.id) == [None] * 5


@pytest.mark.usefixtures("only_deltas")
async def test_a_save_of_the_status_alone_leaves_the_deltas(store: StateStore) -> None:
    await count_to(store, 3)
    row = await row_of(store, "w")
    await change_row(store, row.id, status="running")
    state = await store.load_workflow_state(row.id)
    state.mark_failed("by hand")
    await store.save_workflow_state(state)
    assert await positions_of(store, row.id) == [0, 1, 2]


@pytest.mark.usefixtures("only_deltas")
async def test_damage_to_a_step_spoils_the_deltas_from_it_on_and_no_earlier_one(store: StateStore) -> None:
    made = await count_to(store, 4)
    row = await row_of(store, "w")
    await change_step(store, row.id, "step-2", outputs='"changed behind the digest"')
    async with store.begin() as uow:
        assert [await uow.checkpoints.get(checkpoint.id) for checkpoint in made[:2]] == made[:2]
    for checkpoint in made[2:]:
        with pytest.raises(CorruptPayload) as caught:
            await store.fork(checkpoint.id)
        assert caught.value.about["checkpoint_id"] == checkpoint.id


@pytest.mark.usefixtures("only_deltas")
async def test_a_step_that_other_software_changed_is_not_taken_for_the_one_referred_to(store: StateStore) -> None:
    made = await count_to(store, 3)
    row = await row_of(store, "w")
    await change_step(store, row.id, "step-0", outputs='"another"', outputs_digest=None)
    with pytest.raises(CorruptPayload, match="not what they were"):
        await store.fork(made[-1].id)


@pytest.mark.usefixtures("only_deltas")
async def test_a_checkpoint_that_is_made_whole_while_it_is_read_is_read_once_more(store: StateStore) -> None:
    made = await count_to(store, 3)
    row = await row_of(store, "w")

    async def save_in_between() -> None:
        state = await store.load_workflow_state(row.id)
        state.context, state.steps = {"edited": True}, {}
        await store.save_workflow_state(state)

    with just_after(store, "FROM checkpoints", save_in_between):
        latest = await store.get_latest_checkpoint(row.id)
    assert latest == made[-1]


@pytest.mark.usefixtures("only_deltas")
async def test_fork_and_rewind_go_on_from_a_delta(store: StateStore) -> None:
    made = await count_to(store, 4)
    fork = await store.fork(made[1].id)
    assert (fork.context["log"], list(fork.steps)) == ([0, 1], ["step-0", "step-1"])
    rewound = await store.rewind(made[2].id)
    assert (rewound.status, list(rewound.steps)) == (WorkflowStatus.PENDING, ["step-0", "step-1", "step-2"])
    assert await checkpoints_of(store, "w") == made[:3]
    assert (await count_to(store, 4))[-1].snapshot["context"] == made[-1].snapshot["context"]


@pytest.mark.usefixtures("only_deltas")
async def test_an_unfinished_step_that_ends_later_is_unfinished_in_the_older_checkpoint(store: StateStore) -> None:
    attempts: list[int] = []

    def flaky() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise LookupError("not yet")
        return "at last"

    async def handler(run: Run) -> None:
        try:
            await run.step("flaky", flaky)
        except LookupError:
            await run.step("beside", lambda: 1)
            raise

    with pytest.raises(LookupError):
        await store.run("n", handler, workflow_id="w")
    await store.run("n", handler, workflow_id="w")
    first, last = [each.snapshot["steps"] for each in await checkpoints_of(store, "w")]
    assert (first["flaky"]["status"], first["flaky"]["retry_count"]) == ("failed", 1)
    assert (last["flaky"]["status"], last["flaky"]["outputs"]) == ("completed", "at last")


@pytest.mark.usefixtures("only_deltas")
@pytest.mark.parametrize("parts", [{}, {"chain": 1}, {"position": "0"}, {"unfinished": []}, {"unfinished": {"a": 1}}])
async def test_a_delta_that_is_none_is_damage(store: StateStore, parts: dict[str, Any]) -> None:
    made = await count_to(store, 2)
    sound = {"position": 0, "updated_at": "", "unfinished": {}, "chain": ""}
    text = json.dumps(sound | parts if parts else {"position": 0})
    async with store.begin() as uow:
        torn = update(checkpoints).where(checkpoints.c.id == made[0].id)
        await uow.session.execute(torn.values(snapshot=text, snapshot_digest=None))
    with pytest.raises(CorruptPayload, match="no delta"):
        await store.fork(made[0].id)


@pytest.mark.parametrize("small", [-1, 10**9])
async def test_a_wait_that_was_under_way_goes_on_after_a_rewind(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Of a step under way the outputs are what it remembers: a wait, until when. `small` is for whole checkpoints."""
    _set_cadence(monkeypatch, small=small, least_added=10**9)
    waits = asyncio.Event()

    async def handler(run: Run) -> str:
        async def beside() -> None:
            while not waits.is_set():
                await asyncio.sleep(0.01)
                if run._steps.journal.recorded("sleep") is not None:
                    waits.set()
            await run.step("beside", lambda: 1)
            await run.step("vanish", vanish)

        await asyncio.gather(run.sleep(2.5), beside() if not waits.is_set() else asyncio.sleep(0))
        return "done"

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    [made] = await checkpoints_of(store, "w")
    await store.rewind(made.id)
    assert await store.run("n", handler, workflow_id="w") == "done"


@pytest.mark.usefixtures("only_deltas")
@pytest.mark.parametrize("how", ["edited", "damaged"])
async def test_deltas_of_a_run_whose_context_started_anew_read_too(store: StateStore, how: str) -> None:
    """Its recorded steps leave the context alone from then on, in the deltas as in the rows."""

    async def handler(run: Run) -> None:
        for each in range(4):
            run.context["n"] = each
            await run.step(f"step-{each}", lambda each: each, each)
            if each == 1 and len(await checkpoints_of(store, "w")) < 4:
                vanish()

    with suppress(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w", context={})
    state = await store.load_workflow_state((await row_of(store, "w")).id)
    if how == "edited":
        state.context = {"by": "hand"}
        await store.save_workflow_state(state)
    await store.create_checkpoint(
        Checkpoint(workflow_state_id=state.id, step_id="by hand", snapshot=state.to_snapshot())
    )
    await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="another", snapshot=None))
    if how == "damaged":
        await change_row(store, state.id, initial_context="torn")
        await store.cleanup_old_checkpoints(state.id, keep=2)
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="a third", snapshot=None))
        await store.create_checkpoint(Checkpoint(workflow_state_id=state.id, step_id="a fourth", snapshot=None))
    await store.run("n", handler, workflow_id="w")
    made = await checkpoints_of(store, "w")
    assert [each.snapshot["context"]["n"] for each in made[-2:]] == [2, 3]
    assert list(made[-1].snapshot["steps"]) == [f"step-{each}" for each in range(4)]


@pytest.mark.usefixtures("only_deltas")
async def test_a_first_context_that_is_no_object_is_damage(store: StateStore) -> None:
    await count_to(store, 2)
    row = await row_of(store, "w")
    await change_row(store, row.id, initial_context="[]", initial_context_digest=None)
    with pytest.raises(CorruptPayload):
        await store.get_latest_checkpoint(row.id)
