"""What an operator sees of runs: each in its condition, page by page, whatever is damaged or encrypted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, update

from orchestrator_state import (
    InvalidPayload,
    PayloadTooLarge,
    Run,
    RunCondition,
    RunSummary,
    StateStore,
    WorkflowNotFound,
    WorkflowState,
)
from orchestrator_state.database import FAR_FUTURE
from orchestrator_state.models import current_steps, step_states, workflow_states
from tests.support.payload_samples import encrypted
from tests.support.raw_sql import SQLITE, execute, fetch
from tests.support.running import LONG_AGO, change_row

SOON = timedelta(hours=1)
SECRET = "nobody-sees-this"


async def saved(store: StateStore, **columns: Any) -> UUID:
    """A workflow whose row is as given."""
    state = WorkflowState(workflow_id=f"w{columns.pop('number', 0)}", workflow_name=columns.pop("name", "n"))
    await store.save_workflow_state(state)
    if columns:
        await change_row(store, state.id, **columns)
    return state.id


async def with_step(store: StateStore, run: UUID, step_id: str, **columns: Any) -> None:
    values = {"workflow_state_id": run, "step_id": step_id, "status": "running", "started_at": datetime.now(UTC)}
    async with store.begin() as uow:
        await uow.session.execute(insert(step_states).values(values | columns))


async def listed(store: StateStore, run: UUID, **filters: Any) -> RunSummary:
    return next(each for each in await store.list_runs(**filters) if each.id == run)


async def ids(store: StateStore, **filters: Any) -> set[str]:
    return {run.workflow_id for run in await store.list_runs(**filters)}


def leased(until: datetime | None = None) -> dict[str, Any]:
    return {
        "status": "running",
        "lease_owner": uuid4(),
        "lease_process": "boot/1|17|5|rack-3",
        "lease_token": 3,
        "lease_expires_at": until or datetime.now(UTC) + timedelta(minutes=1),
        "updated_at": datetime.now(UTC),
    }


# --- conditions ------------------------------------------------------------------------------------------------------

TOMORROW = datetime.now(UTC) + timedelta(days=1)
UNOWNED: list[tuple[dict[str, Any], str]] = [
    ({"status": "pending"}, "runnable"),
    ({"status": "running"}, "runnable"),
    ({"status": "running", "wake_at": LONG_AGO}, "runnable"),
    ({"status": "running", "wake_at": TOMORROW}, "asleep"),
    ({"status": "running", "wake_at": FAR_FUTURE}, "waiting"),
    ({"status": "running", "lease_expires_at": LONG_AGO}, "abandoned"),
    ({"status": "paused"}, "paused"),
    ({"status": "paused", "wake_at": TOMORROW}, "paused"),
    ({"status": "completed", "completed_at": LONG_AGO}, "finished"),
    ({"status": "failed", "completed_at": LONG_AGO}, "finished"),
    ({"status": "cancelled", "completed_at": LONG_AGO}, "finished"),
]


@pytest.mark.parametrize(("columns", "condition"), UNOWNED)
async def test_what_nobody_owns_is_in_the_condition_of_its_columns(
    store: StateStore, database_url: str, columns: dict[str, Any], condition: str
) -> None:
    run = await saved(store, **columns)
    assert fetch(database_url, "SELECT condition, steps FROM workflow_overview") == [(condition, 0)]
    assert (await listed(store, run)).condition == condition
    assert [each.id for each in await store.list_runs(condition=condition)] == [run]
    others = [each for each in RunCondition if each != condition]
    assert not (await store.list_runs(condition=others)).runs


async def test_an_owned_run_is_stuck_once_no_step_has_ended_for_long(store: StateStore) -> None:
    run = await saved(store, **leased())
    assert (await listed(store, run)).condition == "owned"
    await change_row(store, run, updated_at=datetime.now(UTC) - timedelta(minutes=11))
    assert (await listed(store, run)).condition == "stuck"
    assert (await listed(store, run, stuck_for=SOON)).condition == "owned"
    assert [each.id for each in await store.list_runs(condition="stuck")] == [run]
    assert not (await store.list_runs(condition="stuck", stuck_for=3600)).runs


@pytest.mark.parametrize("longer_than_there_is", [timedelta.max, 1e300, timedelta(days=3_000_000)])
async def test_no_run_is_stuck_that_may_take_for_ever(store: StateStore, longer_than_there_is: Any) -> None:
    run = await saved(store, **leased())
    assert (await listed(store, run, stuck_for=longer_than_there_is)).condition == "owned"
    assert (await store.get_run(run, stuck_for=longer_than_there_is)).condition == "owned"
    (count,) = (await store.stats(stuck_for=longer_than_there_is)).unfinished
    assert count.condition == "owned"


@pytest.mark.parametrize(
    ("step_id", "kind", "condition"),
    [
        ("signal:go", "signal", "waiting"),
        ("signal:go", None, "waiting"),
        ("which", "question", "waiting"),
        ("child:n", "child", "waiting"),
        ("sleep", "sleep", "asleep"),
        ("sleep#2", None, "asleep"),
        ("charge", None, "stuck"),
    ],
)
async def test_an_owned_run_that_only_waits_is_not_stuck(
    store: StateStore, database_url: str, step_id: str, kind: str | None, condition: str
) -> None:
    run = await saved(store, **leased() | {"updated_at": LONG_AGO})
    await with_step(store, run, step_id, kind=kind)
    assert (await listed(store, run)).condition == condition
    assert fetch(database_url, "SELECT condition, steps FROM workflow_overview") == [(condition, 1)]
    await with_step(store, run, "another", started_at=LONG_AGO)
    assert (await listed(store, run)).condition == "stuck"


async def test_a_current_step_of_the_owner_is_at_work_until_it_has_ended(store: StateStore) -> None:
    run = await saved(store, **leased() | {"updated_at": LONG_AGO})
    await with_step(store, run, "signal:go", kind="signal")
    now = datetime.now(UTC)
    rows = {"workflow_state_id": run, "started_at": now}
    async with store.begin() as uow:
        await uow.session.execute(insert(current_steps).values(rows | {"step_id": "old", "lease_token": 2}))
    assert (await listed(store, run)).condition == "waiting"
    async with store.begin() as uow:
        await uow.session.execute(insert(current_steps).values(rows | {"step_id": "ask model", "lease_token": 3}))
    found = await listed(store, run)
    assert found.condition == "stuck"
    assert [(step.id, step.kind) for step in found.current_steps] == [("signal:go", "signal"), ("ask model", None)]
    await with_step(store, run, "ask model", status="completed", completed_at=now + timedelta(seconds=1))
    found = await listed(store, run)
    assert found.condition == "waiting"
    assert [step.id for step in found.current_steps] == ["signal:go"]


async def test_a_run_waits_for_its_unfinished_children(store: StateStore) -> None:
    parent = await saved(store, **leased())
    child = await saved(store, parent_id=parent, number=1)
    await saved(store, parent_id=parent, status="completed", number=2)
    found = await listed(store, parent)
    assert (found.condition, found.waits_for_children) == ("waiting", (child,))
    assert await ids(store, parent=parent) == {"w1", "w2"}
    assert (await listed(store, child)).parent_id == parent


# --- what a summary says ---------------------------------------------------------------------------------------------


async def test_a_summary_says_what_a_run_waits_for_who_has_it_and_what_is_unread(store: StateStore) -> None:
    async def waits(run: Run) -> object:
        await run.step("screen", lambda: {"secret": SECRET})
        return await run.wait_for("approval", timeout=SOON)

    state = await store.start("order", workflow_id="w", user_id="u", context={"secret": SECRET})
    await store.recover({"order": waits})
    await store.signal(state.id, "stray", SECRET)
    await store.signal(state.id, "stray", SECRET)
    (found,) = await store.list_runs()
    assert (found.id, found.workflow_id, found.name, found.user_id) == (state.id, "w", "order", "u")
    assert (found.steps, found.finished_steps) == (2, 1)
    assert found.waits_for_signals == ("approval",)
    assert found.unread_signals == {"stray": 2}
    assert found.stored_bytes > 100
    assert SECRET not in repr(found)


async def test_the_owner_is_named_by_host_and_pid_and_unknown_if_older_software_has_the_run(store: StateStore) -> None:
    run = await saved(store, **leased())
    owner = (await listed(store, run)).owner
    assert owner is not None
    assert (owner.host, owner.pid) == ("rack-3", 17)
    await change_row(store, run, lease_process="boot/1|17|5")
    owner = (await listed(store, run)).owner
    assert owner is not None
    assert (owner.host, owner.pid) == (None, 17)


async def test_a_handler_that_runs_is_seen_as_owned_by_this_host(store: StateStore) -> None:
    seen: list[RunSummary] = []

    async def handler(run: Run) -> None:
        seen.extend(await store.list_runs())

    await store.run("n", handler, context={})
    (found,) = seen
    assert found.condition == "owned"
    assert found.owner is not None
    assert found.owner.host
    assert found.owner.pid


@pytest.mark.parametrize(("name", "step_id"), [("a", "signal:a"), ("a", "signal:a#2"), ("a#2", "signal:a#2#1")])
async def test_the_name_of_an_awaited_signal_is_read_from_its_step(store: StateStore, name: str, step_id: str) -> None:
    run = await saved(store, status="running", wake_at=FAR_FUTURE)
    await with_step(store, run, step_id, kind="signal")
    assert (await listed(store, run)).waits_for_signals == (name,)


async def test_it_works_without_keys_on_an_encrypted_database(database_url: str) -> None:
    async with StateStore.open(database_url, payloads=encrypted("key")) as store:
        state = await store.start("n", workflow_id="w", context={"secret": SECRET})
    async with StateStore.open(database_url) as store:
        (found,) = await store.list_runs()
        assert found.id == state.id


# --- filters ---------------------------------------------------------------------------------------------------------


async def test_filters_find_what_passes_all_of_them(store: StateStore) -> None:
    hour = datetime(2026, 5, 1, 12, tzinfo=UTC)
    for number in range(6):
        await saved(
            store,
            number=number,
            name="even" if number % 2 == 0 else "odd",
            user_id=f"u{number // 3}",
            status=("completed", "failed", "running")[number % 3],
            started_at=hour + timedelta(hours=number),
            updated_at=hour + timedelta(days=number),
            completed_at=None if number % 3 == 2 else hour + timedelta(days=number),
            error="TimeoutError: 100% of _all_\nÜber" if number % 3 == 1 else None,
        )
    every = {f"w{number}" for number in range(6)}
    assert await ids(store) == every
    assert await ids(store, name="even") == {"w0", "w2", "w4"}
    assert await ids(store, name="even", user_id="u1") == {"w4"}
    assert await ids(store, user_id="u1", status="failed") == {"w4"}
    assert await ids(store, status=["failed", "completed"]) == {"w0", "w1", "w3", "w4"}
    assert await ids(store, workflow_id="w3") == {"w3"}
    assert await ids(store, started=(hour + timedelta(hours=1), hour + timedelta(hours=3))) == {"w1", "w2"}
    assert await ids(store, updated=(hour + timedelta(days=4), None)) == {"w4", "w5"}
    assert await ids(store, finished=(None, hour + timedelta(days=1))) == {"w0"}
    assert await ids(store, error_contains="TIMEOUTERROR: 100% of _ALL_") == {"w1", "w4"}
    assert await ids(store, error_contains="ber") == {"w1", "w4"}
    assert await ids(store, error_contains="100_ of") == set()
    assert await ids(store, error_contains="über") == set(), "only A to Z are the same as a to z"
    assert await ids(store, condition="finished", name="odd") == {"w1", "w3"}
    assert await ids(store, condition="paused", status="running") == set()
    newest_first = [run.workflow_id for run in await store.list_runs(status=["failed", "completed", "running"])]
    assert newest_first == sorted(every, reverse=True)


ATTRIBUTES: dict[str, Any] = {
    "whole": 1,
    "real": 1.5,
    "yes": True,
    "text": "1",
    "nothing": None,
    'qu"ote\\': "🚀",
    "a.b[0]": 2**53 + 1,
}


@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        ({}, True),
        (ATTRIBUTES, True),
        *(({name: value}, True) for name, value in ATTRIBUTES.items()),
        ({"whole": 1.0}, True),
        ({"whole": True}, False),
        ({"whole": "1"}, False),
        ({"yes": 1}, False),
        ({"yes": False}, False),
        ({"yes": "true"}, False),
        ({"text": 1}, False),
        ({"nothing": 0}, False),
        ({"absent": None}, False),
        ({"a.b[0]": float(2**53)}, False),
        ({"whole": 1, "real": 2}, False),
    ],
)
async def test_attributes_are_found_by_value_and_kind(store: StateStore, wanted: Any, is_found: bool) -> None:
    await saved(store, attributes=ATTRIBUTES)
    await saved(store, number=1)
    await saved(store, number=2, attributes={})
    if wanted:
        assert await ids(store, attributes=wanted) == ({"w0"} if is_found else set())
    else:
        assert len(await ids(store, attributes=wanted)) == 3
    assert (await store.list_runs(workflow_id="w0")).runs[0].attributes == ATTRIBUTES


async def test_a_run_of_another_namespace_is_not_seen(store: StateStore, database_url: str) -> None:
    async with StateStore.open(database_url, namespace="theirs") as theirs:
        await saved(theirs)
    assert not (await store.list_runs()).runs


@pytest.mark.parametrize(
    "filters",
    [
        {"status": "sleeping"},
        {"status": []},
        {"status": 3},
        {"condition": ["owned", "lost"]},
        {"condition": {"owned": 1}},
        {"name": 3},
        {"name": "\0"},
        {"user_id": "\ud800"},
        {"workflow_id": b"w"},
        {"parent": "no id"},
        {"started": datetime.now(UTC)},
        {"started": (datetime(2026, 1, 1), None)},  # noqa: DTZ001 - that is what is refused
        {"updated": (TOMORROW, LONG_AGO)},
        {"finished": (1, 2, 3)},
        {"attributes": [1]},
        {"attributes": {1: 1}},
        {"attributes": {"": 1}},
        {"attributes": {"a": {"b": 1}}},
        {"attributes": {"a": [1]}},
        {"attributes": {"a": float("nan")}},
        {"attributes": {"a": 2**64}},
        {"attributes": {"a": 1e300}},
        {"attributes": {"a": "\0"}},
        {"error_contains": ""},
        {"error_contains": "x" * 1001},
        {"stuck_for": "long"},
        {"limit": 0},
        {"limit": 501},
        {"limit": True},
        {"limit": 2.0},
        {"cursor": 3},
        {"cursor": ""},
        {"cursor": "garbage"},
        {"cursor": "é"},
        {"cursor": "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
    ],
)
async def test_what_can_be_no_filter_is_refused(store: StateStore, filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload) as refused:
        await store.list_runs(**filters)
    assert refused.value.path.split(".")[0] == next(iter(filters))


async def test_too_many_attributes_are_refused(store: StateStore) -> None:
    with pytest.raises(PayloadTooLarge):
        await store.list_runs(attributes={str(number): number for number in range(65)})
    with pytest.raises(PayloadTooLarge):
        await store.list_runs(attributes={"a": "x" * 5000})
    with pytest.raises(TypeError, match="'colour'"):
        await store.list_runs(colour="red")  # type: ignore[call-arg]


# --- pages -----------------------------------------------------------------------------------------------------------


async def all_pages(store: StateStore, limit: int, **filters: Any) -> list[UUID]:
    found: list[UUID] = []
    cursor = None
    while True:
        page = await store.list_runs(limit=limit, cursor=cursor, **filters)
        found += [run.id for run in page]
        cursor = page.next
        if cursor is None:
            return found
        assert len(page) == limit


@pytest.mark.parametrize("limit", [1, 3, 7])
@pytest.mark.parametrize("filters", [{}, {"status": ["pending", "running"]}, {"name": "n"}])
async def test_pages_list_each_run_once_newest_first(store: StateStore, limit: int, filters: dict[str, Any]) -> None:
    for number in range(7):
        status = "pending" if number % 2 else "running"
        await saved(store, number=number, started_at=LONG_AGO + timedelta(seconds=number // 2), status=status)
    found = await all_pages(store, limit, **filters)
    assert found == [run.id for run in await store.list_runs()]
    assert len({*found}) == 7


async def test_a_page_goes_on_where_the_one_before_ended_though_runs_come_go_and_move(store: StateStore) -> None:
    runs = [await saved(store, number=number, started_at=LONG_AGO + timedelta(days=number)) for number in range(6)]
    first = await store.list_runs(limit=3)
    await saved(store, number=9)
    for run in runs[2:]:
        await change_row(store, run, status="completed", updated_at=datetime.now(UTC))
    async with store.begin() as uow:
        await uow.workflows.delete([runs[3]])
    second = await store.list_runs(limit=3, cursor=first.next)
    assert [run.id for run in (*first, *second)] == runs[::-1]
    assert second.next is None


async def test_a_cursor_of_another_query_is_refused(store: StateStore, database_url: str) -> None:
    for number in range(3):
        await saved(store, number=number)
    cursor = (await store.list_runs(limit=1, name="n")).next
    assert cursor is not None
    assert len(await store.list_runs(limit=2, name="n", cursor=cursor)) == 2
    for filters in ({}, {"name": "other"}, {"name": "n", "user_id": "u"}, {"name": "n", "stuck_for": 1}):
        with pytest.raises(InvalidPayload, match="cursor"):
            await store.list_runs(cursor=cursor, **filters)
    with pytest.raises(InvalidPayload, match="cursor"):
        await store.list_runs(cursor=cursor[:-2], name="n")
    async with StateStore.open(database_url, namespace="theirs") as theirs:
        with pytest.raises(InvalidPayload, match="cursor"):
            await theirs.list_runs(cursor=cursor, name="n")


# --- views -----------------------------------------------------------------------------------------------------------


async def test_a_view_tells_how_long_each_step_took(store: StateStore, database_url: str) -> None:
    run = await saved(store)
    ended = LONG_AGO + timedelta(seconds=2.5)
    await with_step(store, run, "a", status="completed", started_at=LONG_AGO, completed_at=ended)
    await with_step(store, run, "b")
    rows = fetch(database_url, "SELECT step_id, workflow_name, seconds FROM step_durations ORDER BY step_id")
    assert rows == [("a", "n", 2.5), ("b", "n", None)]


# --- damage ----------------------------------------------------------------------------------------------------------

POSTGRES_DAMAGE = ["started_at = 'infinity'", "started_at = '-infinity'", "started_at = '12000-02-29 10:00+00'",
                   "updated_at = '0044-03-15 BC'", "completed_at = 'infinity'", "attributes = '[1]'",
                   "wake_at = 'infinity'", "attempts = -1", "lease_process = 'x'"]  # fmt: skip
SQLITE_DAMAGE = ["started_at = 5", "started_at = 1.1", "started_at = x'ff00'", "started_at = CAST(x'ff' AS TEXT)",
                 "started_at = ''", "updated_at = 'soon'", "status = x'00'", "workflow_name = x'ff'",
                 "workflow_id = CAST(x'ff41' AS TEXT)", "user_id = 7", "attempts = 'many'", "attributes = '{'",
                 "attributes = x'00'", "attributes = '[1]'", "lease_token = x''", "lease_owner = 'me'",
                 "wake_at = 'x'", "parent_id = 'p'", "error_type = x'ff'", "id = 'no id'", "id = x'ff'",
                 "id = upper(id)", "namespace = namespace"]  # fmt: skip


async def test_damage_hides_no_other_run_and_no_page(store: StateStore, database_url: str) -> None:
    is_sqlite = database_url.startswith(SQLITE)
    damages = SQLITE_DAMAGE if is_sqlite else POSTGRES_DAMAGE
    sound = {await saved(store, number=100 + number, status="running") for number in range(2)}
    for number, damage in enumerate(damages):
        await saved(store, number=number)
        execute(
            database_url,
            *(["PRAGMA ignore_check_constraints=ON"] if is_sqlite else []),
            f"UPDATE workflow_states SET {damage} WHERE workflow_id = 'w{number}'",
        )
    for limit in (1, 2, 50):
        found = await all_pages(store, limit)
        assert len(found) == len(damages) + 2
        assert {*found} >= sound
    runs = {run.workflow_id: run for run in await store.list_runs()}
    assert runs["w0"].damaged == ("started_at",)
    assert runs["w0"].started_at is None
    assert not runs["w100"].damaged
    for filters in ({"condition": [*RunCondition]}, {"attributes": {"a": 1}}, {"error_contains": "x"}):
        await store.list_runs(**filters)


async def test_rows_beside_a_run_may_be_damaged_too(store: StateStore, database_url: str) -> None:
    run = await saved(store, status="running")
    await with_step(store, run, "a")
    await with_step(store, run, "b")
    if database_url.startswith(SQLITE):
        execute(
            database_url,
            "PRAGMA ignore_check_constraints=ON",
            "UPDATE step_states SET started_at = x'ff', kind = x'fe', waits_until = 'x', outputs = x'ff'"
            " WHERE step_id = 'a'",
            "UPDATE step_states SET status = x'ff' WHERE step_id = 'b'",
        )
    else:
        execute(database_url, "UPDATE step_states SET started_at = 'infinity', waits_until = '-infinity'")
    (found,) = await store.list_runs()
    assert found.steps == 2
    assert found.current_steps[0].started_at is None


# --- what it costs others --------------------------------------------------------------------------------------------


async def test_lists_neither_wait_for_writers_nor_hold_them_up(store: StateStore) -> None:
    run = await saved(store, name="before")
    async with writing(store, run):
        (found,) = await store.list_runs()
        assert found.name == "before"
    (found,) = await store.list_runs()
    assert found.name == "after"


@asynccontextmanager
async def writing(store: StateStore, run: UUID) -> AsyncIterator[None]:
    async with store.begin() as uow:
        await uow.session.execute(
            update(workflow_states).where(workflow_states.c.id == run).values(workflow_name="after")
        )
        yield


# --- one run ---------------------------------------------------------------------------------------------------------


async def test_a_run_is_shown_with_its_steps_in_their_order(store: StateStore) -> None:
    def fails() -> None:
        raise ValueError(SECRET)

    async def handler(run: Run) -> object:
        await run.step("first", lambda: SECRET)
        with suppress(ValueError):
            await run.step("second", fails)
        return await run.wait_for("go", timeout=SOON)

    state = await store.start("n", workflow_id="w", context={})
    await store.recover({"n": handler})
    details = await store.get_run(str(state.id))
    assert details.condition == "waiting"
    assert [(step.id, step.status, step.kind, step.has_error) for step in details.timeline] == [
        ("first", "completed", None, False),
        ("second", "failed", None, True),
        ("signal:go", "running", "signal", False),
    ]
    first, _, waits = details.timeline
    assert first.duration is not None
    assert first.duration >= timedelta()
    assert first.stored_bytes > len(SECRET)
    assert waits.duration is None
    assert details.earlier is None
    assert SECRET not in repr(details)
    (listed_run,) = await store.list_runs()
    assert (listed_run.id, listed_run.steps) == (details.id, details.steps)


@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_a_long_timeline_is_read_backwards_in_parts(store: StateStore, limit: int) -> None:
    run = await saved(store)
    for number in range(10):
        await with_step(store, run, f"s{number}", position=number // 2, status="completed")
    found: list[str] = []
    cursor = None
    while True:
        details = await store.get_run(run, steps_limit=limit, steps_cursor=cursor)
        found = [step.id for step in details.timeline] + found
        cursor = details.earlier
        if cursor is None:
            break
    assert found == [f"s{number}" for number in range(10)]


async def test_what_can_be_no_run_and_no_part_of_its_timeline_is_refused(store: StateStore, database_url: str) -> None:
    run, other = await saved(store), await saved(store, number=1)
    for each in (run, other):
        await with_step(store, each, "a", position=0)
        await with_step(store, each, "b", position=1)
    with pytest.raises(WorkflowNotFound):
        await store.get_run(uuid4())
    async with StateStore.open(database_url, namespace="theirs") as theirs:
        with pytest.raises(WorkflowNotFound):
            await theirs.get_run(run)
    cursor = (await store.get_run(other, steps_limit=1)).earlier
    for arguments in ({"steps_limit": 0}, {"steps_cursor": "x"}, {"steps_cursor": cursor}, {"stuck_for": "x"}):
        with pytest.raises(InvalidPayload):
            await store.get_run(run, **arguments)
    with pytest.raises(InvalidPayload):
        await store.get_run("no id")


async def test_a_timeline_shows_what_is_left_of_damaged_steps(store: StateStore, database_url: str) -> None:
    run = await saved(store, status="running")
    for number in range(3):
        await with_step(store, run, f"s{number}", position=number, status="completed", completed_at=datetime.now(UTC))
    if database_url.startswith(SQLITE):
        execute(
            database_url,
            "PRAGMA ignore_check_constraints=ON",
            "UPDATE step_states SET position = 'x', outputs = x'ff', retry_count = 'y' WHERE step_id = 's0'",
            "UPDATE step_states SET status = x'ff', step_id = CAST(x'ff' AS TEXT), kind = x'ff' WHERE step_id = 's1'",
        )
    else:
        execute(database_url, "UPDATE step_states SET position = -7, started_at = 'infinity' WHERE step_id = 's0'")
    cursor, found = None, 0
    while found < 3:
        details = await store.get_run(run, steps_limit=1, steps_cursor=cursor)
        found += len(details.timeline)
        cursor = details.earlier
    assert cursor is None
    assert len([step for step in (await store.get_run(run)).timeline if step.damaged]) >= 1
