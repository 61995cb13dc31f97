"""A retention policy deletes what it does not keep, and a dry run counts the same, on both databases."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from orchestrator_state import (
    BlobStore,
    ConfigurationError,
    Payloads,
    Removed,
    Retention,
    RetentionReport,
    Run,
    StateStore,
    WorkflowNotFound,
)
from orchestrator_state.maintenance import applying, retention
from orchestrator_state.models import checkpoints, step_states, workflow_states
from tests.support.damage import DAMAGES
from tests.support.running import change_row, count_rows, fetch
from tests.support.workflows import LONG_AGO, checkpointed, saved

DAY = timedelta(days=1)


async def applied(store: StateStore, policy: Retention) -> RetentionReport:
    """What a dry run says, which the run itself then does."""
    rows = [await count_rows(store, table) for table in ("workflow_states", "step_states", "checkpoints")]
    counted = await store.apply_retention(policy, dry_run=True)
    assert [await count_rows(store, table) for table in ("workflow_states", "step_states", "checkpoints")] == rows
    report = await store.apply_retention(policy)
    assert report == counted
    again = await store.apply_retention(policy)
    assert sum(again.rules.values(), Removed()) == Removed()
    return report


async def old(store: StateStore, status: str, **fields: Any) -> UUID:
    state = await saved(store, "load", status=status, updated_at=LONG_AGO, **fields)
    await checkpointed(store, state)
    return state.id


async def left(store: StateStore) -> set[UUID]:
    return {found for (found,) in await fetch(store, select(workflow_states.c.id))}


async def test_each_status_has_an_age_of_its_own(store: StateStore) -> None:
    ids = {
        status: await old(store, status)
        for status in ("pending", "running", "paused", "completed", "failed", "cancelled")
    }
    young = (await saved(store, status="completed")).id
    report = await applied(store, Retention(completed=DAY, cancelled=2 * DAY))
    assert await left(store) == {young, *(ids[status] for status in ("pending", "running", "paused", "failed"))}
    assert (report.runs, report.checkpoints) == (2, 2)
    assert report.rules.keys() == {"completed", "cancelled"}
    assert report.rules["completed"].runs == report.rules["cancelled"].runs == 1
    assert report.bytes > 0


async def test_a_failed_run_without_an_age_keeps_its_completed_parent(store: StateStore) -> None:
    parent, child = await old(store, "completed"), await old(store, "failed")
    await change_row(store, child, parent_id=parent)
    assert (await applied(store, Retention(completed=DAY))).runs == 0
    assert (await applied(store, Retention(completed=DAY, failed=DAY))).runs == 2


@pytest.mark.parametrize("status", ["pending", "running", "paused", "failed"])
async def test_a_finished_child_whose_parent_may_call_it_again_is_kept(store: StateStore, status: str) -> None:
    parent, child = await old(store, status), await old(store, "completed")
    await change_row(store, child, parent_id=parent)
    assert (await applied(store, Retention(completed=DAY))).runs == 0
    assert await left(store) == {parent, child}


@pytest.mark.parametrize("held", [0, 1, 2, 3])
async def test_a_hold_protects_all_of_a_family(store: StateStore, held: int) -> None:
    family = [await old(store, "completed") for _ in range(4)]
    other = await old(store, "completed")
    for child, parent in ((1, 0), (2, 1), (3, 0)):
        await change_row(store, family[child], parent_id=family[parent])
    await store.set_attributes(family[held], legal_hold=True)
    await change_row(store, family[held], updated_at=LONG_AGO)
    report = await applied(store, Retention(completed=DAY, keep_checkpoints=1, hold="legal_hold"))
    assert (report.runs, report.held) == (1, 4)
    assert await left(store) == {*family}
    assert other not in await left(store)
    await store.set_attributes(family[held], legal_hold=None)
    await change_row(store, family[held], updated_at=LONG_AGO)
    assert (await applied(store, Retention(completed=DAY, hold="legal_hold"))).runs == 4


@pytest.mark.parametrize(
    ("hold", "attributes", "is_held"),
    [
        ("hold", {"hold": False}, False),
        ("hold", {"hold": 0}, True),
        ("hold", {"hold": ""}, True),
        ("hold", {"other": True}, False),
        ({"case": 7}, {"case": 7}, True),
        ({"case": 7}, {"case": 8}, False),
        ({"case": 1}, {"case": True}, False),
        ({"case": 7, "hold": True}, {"hold": True}, True),
    ],
)
async def test_what_holds_a_run(store: StateStore, hold: Any, attributes: dict[str, Any], is_held: bool) -> None:
    run = await old(store, "completed")
    await store.set_attributes(run, **attributes)
    await change_row(store, run, updated_at=LONG_AGO)
    assert (await applied(store, Retention(completed=DAY, hold=hold))).held == is_held


async def test_a_hold_keeps_checkpoints_too(store: StateStore) -> None:
    run = await old(store, "running")
    await checkpointed(store, await store.load_workflow_state(run))
    await store.set_attributes(run, hold=True)
    assert (await applied(store, Retention(keep_checkpoints=1, hold="hold"))).checkpoints == 0
    assert (await applied(store, Retention(keep_checkpoints=1))).checkpoints == 1


async def test_checkpoints_of_runs_that_are_deleted_are_counted_once(store: StateStore) -> None:
    for status in ("completed", "running"):
        state = await saved(store, "load", status=status, updated_at=LONG_AGO)
        for _ in range(3):
            await checkpointed(store, state)
    report = await applied(store, Retention(completed=DAY, keep_checkpoints=1))
    assert report.rules["completed"].checkpoints == 3
    assert report.rules["keep_checkpoints"] == Removed(checkpoints=2, bytes=report.rules["keep_checkpoints"].bytes)


@pytest.mark.parametrize("damage", ["a flipped bit", "nothing left", "another valid JSON", "garbage for a digest"])
async def test_the_newest_checkpoint_that_is_not_damaged_stays(store: StateStore, damage: str) -> None:
    state = await saved(store, "load", status="running")
    made = [await checkpointed(store, state, snapshot={"n": n}) for n in range(5)]
    for checkpoint in made[2:]:
        await damaged(store, checkpoint.id, damage)
    report = await applied(store, Retention(keep_checkpoints=2))
    assert report.checkpoints == 1
    assert await store.prune_checkpoints(keep=1) == 0
    assert await store.cleanup_old_checkpoints(state.id, keep=1) == 0
    found = await fetch(store, select(checkpoints.c.id).order_by(checkpoints.c.seq))
    assert [row.id for row in found] == [checkpoint.id for checkpoint in made[1:]]


async def damaged(store: StateStore, checkpoint_id: UUID, damage: str) -> None:
    columns = select(checkpoints.c.snapshot, checkpoints.c.snapshot_digest).where(checkpoints.c.id == checkpoint_id)
    ((text, digest),) = await fetch(store, columns)
    text, digest = DAMAGES[damage]((text, digest), (text, digest))
    async with store.begin() as uow:
        changed = checkpoints.update().where(checkpoints.c.id == checkpoint_id)
        await uow.session.execute(changed.values(snapshot=text, snapshot_digest=digest))


async def test_of_a_run_a_delta_counts_as_damaged_with_its_steps(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        for number in range(4):
            await run.step(f"s{number}", lambda: "x")
            await run.checkpoint(f"c{number}")

    await store.run("n", handler, workflow_id="w")
    before = await count_rows(store, "checkpoints")
    async with store.begin() as uow:
        last = step_states.update().where(step_states.c.step_id == "s3")
        await uow.session.execute(last.values(outputs='"y"'))
    deltas = await fetch(store, select(checkpoints.c.position).order_by(checkpoints.c.seq.desc()))
    surely_damaged = 0
    for (position,) in deltas:
        if position is None or position < 3:
            break
        surely_damaged += 1
    assert await store.prune_checkpoints(keep=1) == before - surely_damaged - 1


async def test_if_no_checkpoint_is_sound_all_stay(store: StateStore) -> None:
    state = await saved(store, "load", status="running")
    for checkpoint in [await checkpointed(store, state) for _ in range(3)]:
        await damaged(store, checkpoint.id, "a flipped bit")
    assert (await applied(store, Retention(keep_checkpoints=1))).checkpoints == 0
    assert await store.cleanup_old_checkpoints(state.id, keep=0) == 3


@pytest.mark.parametrize("rows", [1, 3, 7, 5000])
async def test_all_is_done_however_many_transactions_it_takes(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(applying, "_WORKFLOWS", 4)
    monkeypatch.setattr(retention, "_ROWS", rows)
    held = []
    for number in range(11):
        state = await saved(store, "load", "split", status="completed", updated_at=LONG_AGO + number % 3 * DAY)
        for _ in range(number % 4):
            await checkpointed(store, state)
        if number % 5 == 0:
            held.append(state.id)
            await store.set_attributes(state.id, hold=True)
            await change_row(store, state.id, updated_at=LONG_AGO)
    alive = await saved(store, status="running")
    for _ in range(9):
        await checkpointed(store, alive)
    told: list[RetentionReport] = []
    policy = Retention(completed=DAY, keep_checkpoints=2, hold="hold")
    counted = await store.apply_retention(policy, dry_run=True)
    report = await store.apply_retention(policy, progress=told.append)
    assert report == counted == told[-1]
    assert (report.runs, report.held) == (8, 3)
    assert await left(store) == {*held, alive.id}


async def test_a_run_that_is_due_twice_is_counted_once(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "_WORKFLOWS", 1)
    for order in (0, 1):
        parent, child = await old(store, "completed"), await old(store, "completed")
        await change_row(store, child, parent_id=parent, updated_at=LONG_AGO + (order - 0.5) * DAY)
    assert (await applied(store, Retention(completed=DAY))).runs == 4


async def test_a_row_that_is_its_own_ancestor_ends_no_pass_and_holds_with_it(store: StateStore) -> None:
    ring = [await old(store, "completed") for _ in range(3)]
    for at, run in enumerate(ring):
        await change_row(store, run, parent_id=ring[at - 1])
    await store.set_attributes(ring[0], hold=True)
    for run in ring:
        await change_row(store, run, updated_at=LONG_AGO)
    assert (await store.apply_retention(Retention(completed=DAY, hold="hold"))).runs == 0


async def test_other_namespaces_are_left_alone(store: StateStore, database_url: str) -> None:
    async with StateStore.open(database_url, namespace="other") as other:
        run = await old(other, "completed")
        await old(store, "completed")
        assert (await applied(store, Retention(completed=DAY))).runs == 1
        assert (await other.load_workflow_state(run)).id == run
        assert await other.last_retention() is None
    assert await store.last_retention() is not None


async def test_only_a_pass_that_was_no_dry_run_is_the_last_success(store: StateStore) -> None:
    assert await store.last_retention() is None
    await store.apply_retention(Retention(completed=DAY), dry_run=True)
    assert await store.last_retention() is None
    await store.apply_retention(Retention(completed=DAY))
    first = await store.last_retention()
    await store.apply_retention(Retention(completed=DAY))
    second = await store.last_retention()
    assert first is not None
    assert second is not None
    assert first <= second


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 5},
        {"hold": "x"},
        {"keep_checkpoints": 0},
        {"keep_checkpoints": True},
        {"keep_checkpoints": 1.5},
        {"completed": -1},
        {"completed": "30d"},
        {"completed": float("nan")},
        {"completed": 1, "every": 0},
        {"completed": 1, "every": timedelta(milliseconds=999)},
        {"completed": 1, "hold": ""},
        {"completed": 1, "hold": {}},
        {"completed": 1, "hold": {"x": None}},
        {"completed": 1, "hold": {"x": [1]}},
        {"completed": 1, "hold": 7},
        {"completed": 1, "hold": "\0"},
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Retention(**options)


async def test_what_is_no_policy_is_refused(store: StateStore) -> None:
    with pytest.raises(ConfigurationError, match="policy must be a Retention"):
        await store.apply_retention({"completed": DAY})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        await store.apply_retention(Retention(completed=DAY), dry_run="no")  # type: ignore[arg-type]


async def test_an_age_that_nothing_can_have_deletes_nothing(store: StateStore) -> None:
    await old(store, "completed")
    assert (await applied(store, Retention(completed=timedelta.max))).runs == 0


async def test_an_age_of_nothing_deletes_what_has_just_finished(store: StateStore) -> None:
    run = await saved(store, status="completed", updated_at=LONG_AGO)
    assert (await applied(store, Retention(completed=0))).runs == 1
    with pytest.raises(WorkflowNotFound):
        await store.load_workflow_state(run.id)


# --- blobs ---


async def test_blobs_go_with_runs_and_checkpoints_and_are_counted(database_url: str, tmp_path: Path) -> None:
    payloads = Payloads(blobs=BlobStore((tmp_path / "blobs").as_uri(), above=1000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        done = await saved(store, status="completed", updated_at=LONG_AGO, context={"text": "x" * 2000})
        alive = await saved(store, status="running", context={"text": "y" * 2000})
        for state in (done, alive):
            for _ in range(3):
                await checkpointed(store, state)
        files = [path for path in (tmp_path / "blobs" / "default").rglob("*") if path.is_file()]
        report = await applied(store, Retention(completed=DAY, keep_checkpoints=1))
        assert report.rules["completed"].blobs == 4
        assert report.rules["keep_checkpoints"].blobs == 2
        left = [path for path in files if path.exists()]
        assert len(left) == len(files) - 6 == 2
        assert report.bytes > 6 * 2000


async def test_the_newest_checkpoint_whose_blob_is_there_stays(database_url: str, tmp_path: Path) -> None:
    payloads = Payloads(blobs=BlobStore((tmp_path / "blobs").as_uri(), above=1000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        state = await saved(store, status="running")
        sound = await checkpointed(store, state, snapshot={"n": "x" * 2000})
        before = set((tmp_path / "blobs").rglob("*"))
        for _ in range(2):
            await checkpointed(store, state, snapshot={"n": "x" * 2000})
        for path in set((tmp_path / "blobs").rglob("*")) - before:
            path.unlink()
        assert (await applied(store, Retention(keep_checkpoints=1))).checkpoints == 0
        found = await fetch(store, select(checkpoints.c.id).order_by(checkpoints.c.seq))
        assert found[0].id == sound.id


async def test_a_store_without_the_blobs_leaves_what_refers_to_them(database_url: str, tmp_path: Path) -> None:
    payloads = Payloads(blobs=BlobStore((tmp_path / "blobs").as_uri(), above=1000))
    async with StateStore.open(database_url, payloads=payloads) as store:
        await saved(store, status="completed", updated_at=LONG_AGO, context={"text": "x" * 2000})
    async with StateStore.open(database_url) as store:
        with pytest.raises(ConfigurationError, match="blob store"):
            await store.apply_retention(Retention(completed=DAY))
        assert await count_rows(store, "workflow_states") == 1
        assert await store.last_retention() is None
