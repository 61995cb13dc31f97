"""`run.state` and `returns=`: an application's own types, stored as JSON and loaded back equal, on both databases."""

import asyncio
import enum
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, computed_field, field_validator
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state import (
    ConfigurationError,
    InvalidPayload,
    Run,
    StateMismatch,
    StateSchema,
    StateStore,
    Worker,
)
from tests.support.cases import case
from tests.support.running import (
    Effect,
    VanishesEverywhere,
    becomes,
    change_step,
    count_rows,
    row_of,
    steps_of,
    until_done,
    vanish,
)

SECRET = "canary-7f3a"


class Colour(enum.StrEnum):
    RED = "red"


class Item(BaseModel):
    name: str
    price: Decimal


class Basket(BaseModel):
    items: list[Item] = []
    count: int = 0
    colour: Colour = Colour.RED
    seen_at: datetime | None = None
    notes: dict[str, str] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> Decimal:
        return sum((item.price for item in self.items), Decimal())


@dataclass
class Point:
    x: int
    at: datetime


NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

# --- state ---


async def test_changes_of_the_state_count_once_wherever_the_worker_vanishes(database_url: str) -> None:
    async def handler(run: Run[Basket]) -> dict[str, Any]:
        state = run.state  # kept in a variable, which every replayed step changes in place
        for n in range(3):
            state.count += 1
            state.notes[f"note {n}"] = "x"
            run.append("items", Item(name=f"item {n}", price=Decimal("1.10")))
            await run.step("work", Effect(), n)
            del state.notes[f"note {n}"]
        state.seen_at = NOON
        await run.checkpoint()
        assert state is run.state
        return {"count": state.count, "total": str(state.total), "seen_at": state.seen_at.isoformat()}

    async with StateStore.open(database_url, hook=VanishesEverywhere()) as store:
        result = await until_done(lambda: store.run("n", handler, workflow_id="w", state=Basket, context=Basket()))
        state = await store.load_workflow_state_by_workflow_id("w")
    assert result == {"count": 3, "total": "3.30", "seen_at": NOON.isoformat()}
    assert state.context == {
        "items": [{"name": f"item {n}", "price": "1.10"} for n in range(3)],
        "count": 3,
        "colour": "red",
        "seen_at": "2026-11-23T12:00:00Z",
        "notes": {},
    }


async def test_a_step_stores_only_what_it_changed_of_the_state(store: StateStore) -> None:
    async def handler(run: Run[Basket]) -> None:
        run.state.items.append(Item(name="a", price=Decimal(1)))
        await run.step("appends", Effect())
        run.state.count = 7
        await run.step("sets", Effect())

    await store.run("n", handler, workflow_id="w", state=Basket, context={"items": [{"name": "z", "price": "2"}]})
    steps = await steps_of(store, "w")
    assert steps["appends"].context_patch == '{"set":{},"append":{"items":[{"name":"a","price":"1"}]},"drop":[]}'
    assert steps["sets"].context_patch == '{"set":{"count":7},"append":{},"drop":[]}'


async def test_after_each_replayed_step_the_state_shows_what_that_step_saved(store: StateStore) -> None:
    async def first(run: Run[Basket]) -> None:
        for n in range(3):
            run.state.count = n
            await run.step(f"step {n}", Effect())
        vanish()

    seen: list[int] = []

    async def again(run: Run[Basket]) -> None:
        for n in range(3):
            seen.append(run.state.count)
            await run.step(f"step {n}", Effect())
        seen.append(run.state.count)

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", first, workflow_id="w", state=Basket, context={"count": 9})
    await store.run("n", again, workflow_id="w", state=Basket)
    assert seen == [9, 0, 1, 2]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", validate_assignment=True)
    log: list[str] = Field(default=[], alias="theLog")
    _client: object = PrivateAttr(default=None)


async def test_aliases_extra_values_and_frozen_models_replay(store: StateStore) -> None:
    async def handler(run: Run[Frozen]) -> list[str]:
        run.append("theLog", "one")
        assert run.state.model_extra is not None
        run.state.model_extra["more"] = [1]
        run.state._client = object()
        await run.step("first", Effect())
        if len(attempts) == 0:
            attempts.append(1)
            vanish()
        assert run.state.model_extra == {"more": [1]}
        return run.state.log

    attempts: list[int] = []
    assert await until_done(lambda: store.run("n", handler, workflow_id="w", state=Frozen, context=Frozen())) == ["one"]
    assert (await store.load_workflow_state_by_workflow_id("w")).context == {"theLog": ["one"], "more": [1]}


@pytest.mark.parametrize(
    ("context", "path"),
    [
        ({"count": SECRET}, "context.count"),
        ({"items": [{"name": "a", "price": "1"}, {"name": SECRET}]}, "context.items[1].price"),
        (Item(name=SECRET, price=Decimal(1)), "context"),
        ([], "context"),
    ],
)
async def test_a_context_that_the_model_does_not_accept_is_refused_and_nothing_is_written(
    store: StateStore, context: Any, path: str
) -> None:
    with pytest.raises(InvalidPayload) as caught:
        await store.run("n", _nothing, state=Basket, context=context)
    assert caught.value.path == path
    assert SECRET not in str(caught.value)
    with pytest.raises(InvalidPayload):
        await store.start("n", state=Basket, context=context)
    assert await count_rows(store, "workflow_states") == 0


async def _nothing(run: Run[Any]) -> None:
    return None


class Needy(BaseModel):
    name: str


async def test_a_model_without_defaults_needs_a_context_at_the_start_and_not_at_a_resume(store: StateStore) -> None:
    with pytest.raises(InvalidPayload) as caught:
        await store.run("n", _nothing, workflow_id="w", state=Needy)
    assert caught.value.path == "context.name"
    assert await count_rows(store, "workflow_states") == 0
    await store.start("n", workflow_id="w", state=Needy, context=Needy(name="x"))
    await store.run("n", _nothing, workflow_id="w", state=Needy)


async def test_a_state_that_would_not_load_back_equal_is_refused_with_the_commit(store: StateStore) -> None:
    async def handler(run: Run[Basket]) -> None:
        run.state.count = "5"  # type: ignore[assignment]
        await run.step("work", Effect())

    with pytest.raises(InvalidPayload) as caught:
        await store.run("n", handler, workflow_id="w", state=Basket)
    assert caught.value.path == "state.count"
    assert (await store.load_workflow_state_by_workflow_id("w")).context["count"] == 0


async def test_a_run_has_either_a_state_or_a_context(store: StateStore) -> None:
    async def wants_context(run: Run) -> None:
        assert run.context is not None

    async def wants_state(run: Run) -> None:
        assert run.state is not None

    with pytest.raises(ConfigurationError, match=r"run\.state"):
        await store.run("n", wants_context, state=Basket)
    with pytest.raises(ConfigurationError, match="state="):
        await store.run("n", wants_state)
    with pytest.raises(InvalidPayload, match="state="):
        await store.run("n", wants_state, context=Basket())


@pytest.mark.parametrize("model", [RootModel[int], int, Point, "Basket"])
async def test_only_a_model_with_fields_is_a_state(store: StateStore, model: Any) -> None:
    with pytest.raises(ConfigurationError):
        await store.run("n", _nothing, state=model)
    with pytest.raises(ConfigurationError):
        StateSchema("n", state=model)


# --- outputs ---

VALUES: list[tuple[Any, Any]] = [
    (Basket, Basket(items=[Item(name="a", price=Decimal("1.10"))], seen_at=NOON)),
    (Point, Point(1, NOON)),
    (datetime, NOON),
    (timedelta, timedelta(microseconds=1)),
    (UUID, UUID(int=7)),
    (Decimal, Decimal("1.10")),
    (Colour, Colour.RED),
    (list[Item], [Item(name="a", price=Decimal(0))]),
    (dict[UUID, Point], {UUID(int=1): Point(1, NOON)}),
    (tuple[int, str], (1, "a")),
    (Item | Point, Point(2, NOON)),
    (Annotated[int, Field(gt=0)], 3),
    (bytes, b"abc"),
]


async def test_outputs_and_results_come_back_equal_in_value_and_type(store: StateStore) -> None:
    for number, (kind, value) in enumerate(VALUES):
        with case(f"{value!r} as {kind}"):
            await assert_comes_back(store, f"{number}", kind, value)


async def assert_comes_back(store: StateStore, workflow_id: str, kind: Any, value: Any) -> None:
    async def in_session(session: AsyncSession) -> Any:
        return value

    async def child(run: Run) -> Any:
        return value

    async def handler(run: Run) -> Any:
        seen.append(await run.step("step", lambda: value, returns=kind))
        seen.append(await run.transact("transact", in_session, returns=kind))
        seen.append(await run.child("kid", child, returns=kind))
        if len(seen) < 6:
            vanish()
        return value

    seen: list[Any] = []
    result = await until_done(lambda: store.run("n", handler, workflow_id=workflow_id, returns=kind))
    recorded = await store.run("n", handler, workflow_id=workflow_id, returns=kind)
    assert all(one == value and type(one) is type(value) for one in (*seen, result, recorded))
    assert len(seen) == 6


class Secretive(BaseModel):
    name: str
    password: str = Field(default="none", exclude=True)


class Rounded(BaseModel):
    price: Decimal

    @field_validator("price")
    @classmethod
    def rounded(cls, price: Decimal) -> Decimal:
        return price + 1


class Base(BaseModel):
    name: str


class Derived(Base):
    more: int


UNFIT: list[tuple[Any, Any]] = [
    (Secretive, Secretive(name="a", password=SECRET)),
    (Rounded, Rounded.model_construct(price=Decimal("0.1"))),
    (float, math.nan),
    (list[float], [math.inf]),
    (Decimal, Decimal("NaN")),
    (Base, Derived(name=SECRET, more=1)),
    (Any, (1, 2)),
    (Any, object()),
    (list[Any], [(1, SECRET)]),
    (Any, Colour.RED),
    (int, SECRET),
    (Item, {"name": SECRET}),
]


async def test_outputs_that_would_not_load_back_equal_are_refused_without_a_word_of_them(store: StateStore) -> None:
    for number, (kind, value) in enumerate(UNFIT):
        with case(f"{value!r} as {kind}"):
            await assert_refused(store, f"{number}", kind, value)


async def assert_refused(store: StateStore, workflow_id: str, kind: Any, value: Any) -> None:
    calls: list[int] = []

    async def work() -> Any:
        calls.append(1)
        return value

    async def handler(run: Run) -> None:
        await run.step("work", work, returns=kind, retry=3)

    with pytest.raises(InvalidPayload) as caught:
        await store.run("n", handler, workflow_id=workflow_id)
    assert calls == [1]
    assert caught.value.path.startswith("steps['work'].outputs")
    assert SECRET not in str(caught.value)
    assert (await steps_of(store, workflow_id))["work"].outputs == "null"


@pytest.mark.parametrize("value", [Basket(), NOON, Point(1, NOON), [NOON]])
async def test_without_returns_a_typed_value_is_refused_and_told_to_pass_it(store: StateStore, value: Any) -> None:
    async def handler(run: Run) -> None:
        await run.step("work", Effect(), value)

    with pytest.raises(InvalidPayload, match="returns="):
        await store.run("n", handler)

    async def result(run: Run) -> Any:
        return value

    with pytest.raises(InvalidPayload, match="returns="):
        await store.run("n", result)


async def test_a_type_that_pydantic_does_not_know_is_refused(store: StateStore) -> None:
    class Opaque:
        pass

    work = Effect()

    async def handler(run: Run) -> None:
        await run.step("work", work, returns=Opaque)

    with pytest.raises(ConfigurationError):
        await store.run("n", handler)
    assert work.calls == []
    with pytest.raises(ConfigurationError):
        await store.run("n", handler, returns=Opaque)


async def test_recorded_outputs_that_the_type_no_longer_accepts_leave_the_run_to_other_code(store: StateStore) -> None:
    async def first(run: Run) -> None:
        await run.step("work", Effect(), {"name": SECRET})
        vanish()

    async def second(run: Run) -> None:
        await run.step("work", Effect(), returns=Item)

    async def mended(run: Run) -> str:
        return (await run.step("work", Effect(), returns=Base)).name

    with pytest.raises(asyncio.CancelledError):
        await store.run("n", first, workflow_id="w")
    with pytest.raises(StateMismatch) as caught:
        await store.run("n", second, workflow_id="w")
    row = await row_of(store, "w")
    assert caught.value.path == "steps['work'].outputs.price"
    assert (caught.value.workflow_name, caught.value.workflow_state_id) == ("n", row.id)
    assert SECRET not in str(caught.value)
    assert (row.status, row.lease_expires_at) == ("running", None)
    assert await store.run("n", mended, workflow_id="w") == SECRET


async def test_a_signal_of_another_type_is_consumed_and_refused_and_the_next_one_counts(store: StateStore) -> None:
    async def handler(run: Run) -> int:
        try:
            return await run.wait_for("answer", returns=int)
        except InvalidPayload as error:
            refused.append(str(error))
            return await run.wait_for("answer", returns=int)

    refused: list[str] = []
    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "answer", SECRET)
    await store.signal(state.id, "answer", 42)
    assert await store.run("n", handler, workflow_id="w") == 42
    assert await count_rows(store, "signals") == 0
    assert len(refused) == 1
    assert SECRET not in refused[0]


# --- where the types come from ---

SHOP = StateSchema("shop", state=Basket, outputs={"price": Decimal, "child:kid": UUID}, result=Point)


async def shop(run: Run[Basket]) -> Point:
    run.state.items.append(Item(name="a", price=await run.step("price", _price)))
    return Point(len(run.state.items), NOON)


async def _price() -> Decimal:
    return Decimal("1.10")


async def _recover(store: StateStore) -> None:
    report = await store.recover({"shop": shop})
    assert [run.outcome for run in report.runs] == ["completed"]


async def _work(store: StateStore) -> None:
    worker = Worker(store, {"shop": shop}, poll=0.05, handle_signals=False)
    task = asyncio.create_task(worker.run())
    await becomes(lambda row: row.status == "completed", store, "w")
    worker.stop()
    await task


@pytest.mark.parametrize("execute", [_recover, _work])
async def test_a_worker_takes_the_types_from_the_schema(
    database_url: str, execute: Callable[[StateStore], Awaitable[None]]
) -> None:
    async with StateStore.open(database_url, schemas=[SHOP]) as store:
        started = await store.start("shop", workflow_id="w")
        assert started.context["colour"] == "red"
        await execute(store)
        assert await store.run("shop", shop, workflow_id="w") == Point(1, NOON)
        assert (await store.load_workflow_state(started.id)).context["items"] == [{"name": "a", "price": "1.10"}]


async def test_a_call_must_not_contradict_the_schema(database_url: str) -> None:
    async with StateStore.open(database_url, schemas=[SHOP]) as store:
        with pytest.raises(ConfigurationError):
            await store.run("shop", _nothing, state=Needy)


async def test_a_state_saved_by_hand_has_to_be_one_that_a_load_accepts(database_url: str) -> None:
    async with StateStore.open(database_url, schemas=[SHOP]) as store:
        state = await store.start("shop", workflow_id="w")
        state.context["count"] = SECRET
        with pytest.raises(InvalidPayload) as caught:
            await store.save_workflow_state(state)
        assert caught.value.path == "context.count"
        assert SECRET not in str(caught.value)


async def test_a_step_changed_past_the_package_is_a_mismatch_when_it_is_loaded(database_url: str) -> None:
    async with StateStore.open(database_url, schemas=[SHOP]) as store:
        await store.run("shop", shop, workflow_id="w")
        row = await row_of(store, "w")
        await change_step(store, row.id, "price", outputs=f'"{SECRET}"', outputs_digest=None)
        with pytest.raises(StateMismatch) as caught:
            await store.load_workflow_state(row.id)
        assert (caught.value.path, caught.value.workflow_state_id) == ("steps['price'].outputs", row.id)
        assert SECRET not in str(caught.value)
