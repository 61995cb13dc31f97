"""Older software goes on writing to the same rows, without digests: it is believed, and its rows are digested again."""

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest

from orchestrator_state import CorruptPayload, Run, StateSchema, StateStore
from orchestrator_state.compression import Zstd
from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.hooks import FellBack
from orchestrator_state.payloads import Payloads
from tests.support.damage import CONTEXT, CONTEXT_PATCH, DAMAGES, INITIAL_CONTEXT, OUTPUTS, RESULT, Place
from tests.support.raw_sql import execute
from tests.support.running import Effect, Log, row_of, vanish
from tests.support.workflows import a_workflow

OWNER = "0f0f0f0f-0000-4000-8000-000000000001"
LATE = "2031-01-01T08:00:00.000000+00:00"

# The statements of the revision before there were digests.
GUARDED_UPDATE = f"""
    UPDATE workflow_states SET context = '{{"n":7}}', context_position = 0, updated_at = '{LATE}',
        version = version + 1, lease_token = lease_token + 1
    WHERE id = '{{id}}' AND namespace = 'default' AND lease_expires_at IS NULL"""
STEP_OF_A_SAVE = """
    INSERT INTO step_states (workflow_state_id, step_id, position, status, outputs, error, retry_count)
    VALUES ('{id}', 'a', 0, 'completed', '"changed"', NULL, 0), ('{id}', 'b', 1, 'completed', '"new"', NULL, 0)
    ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET position = excluded.position, status = excluded.status,
        outputs = excluded.outputs, error = excluded.error, retry_count = excluded.retry_count"""
CLAIM = f"""
    UPDATE workflow_states SET status = 'running', lease_owner = '{OWNER}', lease_process = 'elsewhere',
        lease_token = lease_token + 1, lease_expires_at = '2020-01-01T08:00:00.000000+00:00',
        attempts = attempts, wake_at = NULL, error = NULL, completed_at = NULL, version = version + 1,
        updated_at = '{LATE}'
    WHERE id = '{{id}}'"""
COMMIT = f"""
    UPDATE workflow_states SET updated_at = '{LATE}', context = '{{"n":2}}', context_position = 1,
        initial_context = COALESCE(initial_context, context), version = version + 1,
        checkpoint_seq = checkpoint_seq + 1
    WHERE id = '{{id}}' AND lease_owner = '{OWNER}'"""
STEP_OF_A_COMMIT = """
    INSERT INTO step_states
        (workflow_state_id, step_id, position, status, outputs, error, retry_count, context_patch)
    VALUES ('{id}', 'b', 1, 'completed', '"new"', NULL, 0, '{"set":{"n":2},"append":{},"drop":[]}')
    ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET position = excluded.position, status = excluded.status,
        outputs = excluded.outputs, error = excluded.error, retry_count = excluded.retry_count,
        context_patch = excluded.context_patch
    WHERE step_states.status <> 'completed'"""
END = f"""
    UPDATE workflow_states SET status = 'completed', result = '"theirs"', updated_at = '{LATE}',
        version = version + 1, lease_expires_at = NULL
    WHERE id = '{{id}}' AND lease_owner = '{OWNER}'"""
ORIGINAL_UPSERT = f"""
    INSERT INTO workflow_states
        (id, workflow_id, workflow_name, status, user_id, started_at, updated_at, completed_at, context, error)
    VALUES ('{{id}}', 'w', 'n', 'running', NULL, '{LATE}', '{LATE}', NULL, '{{"n":7}}', NULL)
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, updated_at = excluded.updated_at,
        completed_at = excluded.completed_at, context = excluded.context, error = excluded.error"""
ORIGINAL_STEP = """
    INSERT INTO step_states (workflow_state_id, step_id, status, outputs, error, retry_count)
    VALUES ('{id}', 'a', 'completed', '"changed"', NULL, 0)
    ON CONFLICT (workflow_state_id, step_id) DO UPDATE SET status = excluded.status, outputs = excluded.outputs,
        error = excluded.error, retry_count = excluded.retry_count"""

# What is written, and what is found afterwards: the context, and the outputs of the steps.
WRITES: dict[str, tuple[list[str], dict[str, int], dict[str, str]]] = {
    "a save": ([GUARDED_UPDATE, STEP_OF_A_SAVE], {"n": 7}, {"a": "changed", "b": "new"}),
    "a claim": ([CLAIM], {"n": 1}, {"a": "mine"}),
    "a step's commit": ([CLAIM, COMMIT, STEP_OF_A_COMMIT], {"n": 2}, {"a": "mine", "b": "new"}),
    "the original software's save": ([ORIGINAL_UPSERT, ORIGINAL_STEP], {"n": 7}, {"a": "changed"}),
}
each_write = pytest.mark.parametrize(("statements", "context", "outputs"), WRITES.values(), ids=WRITES)


class Steps:
    def __init__(self, *, abandons: bool = False) -> None:
        self.abandons = abandons
        self.effect = Effect()

    async def __call__(self, run: Run) -> Any:
        run.context["n"] = 1
        a = await run.step("a", self.effect, "mine")
        if self.abandons:
            vanish()
        run.context["n"] = 2
        return [a, await run.step("b", self.effect, "new")]


async def written_by_both(store: StateStore, url: str, statements: list[str]) -> UUID:
    with suppress(asyncio.CancelledError):
        await store.run("n", Steps(abandons=True), workflow_id="w", context={"n": 0})
    row = await row_of(store, "w")
    execute(url, *(statement.replace("{id}", str(row.id)) for statement in statements))
    id_: UUID = row.id
    return id_


async def assert_guarded(store: StateStore, workflow_state_id: UUID, *places: Place) -> None:
    """Damage is found once more."""
    for place in places:
        sound = await place.read(store, workflow_state_id)
        assert sound[1] is not None, f"{place} has no digest"
        await place.write(store, workflow_state_id, DAMAGES["another valid JSON"](sound, sound))
        with pytest.raises(CorruptPayload):
            await store.load_workflow_state(workflow_state_id)
        await place.write(store, workflow_state_id, sound)
    await store.load_workflow_state(workflow_state_id)


@each_write
async def test_what_older_software_wrote_is_loaded_and_saved_with_digests(
    store: StateStore, database_url: str, statements: list[str], context: Any, outputs: dict[str, str]
) -> None:
    id_ = await written_by_both(store, database_url, statements)
    state = await store.load_workflow_state(id_)
    assert (state.context, {key: step.outputs for key, step in state.steps.items()}) == (context, outputs)
    assert [loaded.id for loaded in await store.list_active_workflows()] == [id_]
    async with store.begin() as uow:
        assert [step.outputs for step in await uow.steps.list(id_)] == list(outputs.values())
    state.user_id = "u"
    if state.status == "running" and (await row_of(store, "w")).lease_expires_at is not None:
        await store.pause(id_)
        state = await store.load_workflow_state(id_)
        state.user_id = "u"
    await store.save_workflow_state(state)
    assert (await store.load_workflow_state(id_)).context == context
    await assert_guarded(store, id_, CONTEXT, OUTPUTS)


@each_write
async def test_a_run_that_older_software_wrote_to_is_resumed_and_guarded_again(
    store: StateStore, database_url: str, statements: list[str], context: Any, outputs: dict[str, str]
) -> None:
    id_ = await written_by_both(store, database_url, statements)
    handler = Steps(abandons=True)
    with suppress(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    await assert_guarded(store, id_, CONTEXT, OUTPUTS)
    handler.abandons = False
    assert await store.run("n", handler, workflow_id="w") == [outputs["a"], "new"]
    assert handler.effect.calls == ([] if "b" in outputs else ["new"]), "a did not run again"
    assert (await store.load_workflow_state(id_)).context == {"n": 2}
    await assert_guarded(store, id_, CONTEXT, OUTPUTS)


@each_write
async def test_a_fork_and_a_rewind_of_what_older_software_wrote_are_guarded(
    store: StateStore, database_url: str, statements: list[str], context: Any, outputs: dict[str, str]
) -> None:
    id_ = await written_by_both(store, database_url, statements)
    latest = await store.get_latest_checkpoint(id_)
    assert latest is not None
    fork = await store.fork(latest.id, workflow_id="fork")
    assert (await store.load_workflow_state(fork.id)).context == {"n": 1}
    await assert_guarded(store, fork.id, CONTEXT, OUTPUTS)
    handler = Steps()
    assert await store.run("n", handler, workflow_id="fork") == ["mine", "new"]
    assert handler.effect.calls == ["new"]
    rewound = await store.rewind(latest.id)
    assert (rewound.context, list(rewound.steps)) == ({"n": 1}, ["a"])
    await assert_guarded(store, id_, CONTEXT, OUTPUTS)
    assert await store.run("n", handler, workflow_id="w") == ["mine", "new"]


async def test_a_result_of_older_software_is_returned(store: StateStore, database_url: str) -> None:
    await written_by_both(store, database_url, [CLAIM, COMMIT, STEP_OF_A_COMMIT, END])
    handler = Steps()
    assert await store.run("n", handler, workflow_id="w") == "theirs"
    assert handler.effect.calls == []
    id_ = (await row_of(store, "w")).id
    latest = await store.get_latest_checkpoint(id_)
    assert latest is not None
    await store.rewind(latest.id)
    assert await store.run("n", handler, workflow_id="w") == ["mine", "new"]
    sound = await RESULT.read(store, id_)
    await RESULT.write(store, id_, ('"forged"', sound[1]))
    with pytest.raises(CorruptPayload):
        await store.run("n", handler, workflow_id="w")


@pytest.mark.parametrize("place", [INITIAL_CONTEXT, CONTEXT_PATCH], ids=str)
async def test_what_only_a_resumed_run_reads_is_guarded_again_too(database_url: str, place: Place) -> None:
    log, handler = Log(), Steps(abandons=True)
    async with StateStore.open(database_url, hook=log) as store:
        id_ = await written_by_both(store, database_url, [CLAIM])
        for fell_back in (0, 1):
            with suppress(asyncio.CancelledError):
                await store.run("n", handler, workflow_id="w")
            assert len(log.of(FellBack)) == fell_back
            text, digest = await place.read(store, id_)
            if not fell_back:
                await place.write(store, id_, (text.replace('"n"', '"m"'), digest))
        assert handler.effect.calls == []
        assert (await store.load_workflow_state(id_)).context == {"n": 1}


@each_write
async def test_older_software_does_not_spoil_an_encrypted_workflow(
    database_url: str, statements: list[str], context: Any, outputs: dict[str, str]
) -> None:
    """It writes in clear, and copies envelopes at most."""
    payloads = Payloads([Zstd(threshold=1), AesGcm(KeyRing({"key": new_key()}, "key"))])
    async with StateStore.open(database_url, payloads=payloads) as store:
        id_ = await written_by_both(store, database_url, statements)
        assert (await store.load_workflow_state(id_)).context == context
        handler = Steps()
        assert await store.run("n", handler, workflow_id="w") == [outputs["a"], "new"]
        assert handler.effect.calls == ([] if "b" in outputs else ["new"])
        for place in (CONTEXT, INITIAL_CONTEXT, OUTPUTS):
            assert (await place.read(store, id_))[0].startswith("~payload:"), place
        assert (await row_of(store, "w")).status == "completed"


async def test_what_older_software_wrote_is_not_upcast_twice(database_url: str) -> None:
    new = StateSchema("n", version=2)

    @new.upcast(1)
    def _(context: dict[str, Any]) -> dict[str, Any]:
        return {"n": context["n"] * 100}

    async with StateStore.open(database_url) as store:
        state = a_workflow(workflow_name="n", context={"n": 1})
        await store.save_workflow_state(state)
    execute(database_url, f"UPDATE workflow_states SET updated_at = '{LATE}', version = version + 1")
    async with StateStore.open(database_url, schemas=[new]) as store:
        state = await store.load_workflow_state(state.id)
        state.context["n"] += 1
        await store.save_workflow_state(state)
        assert (await store.load_workflow_state(state.id)).context == {"n": 101}


async def test_a_run_that_falls_back_after_older_software_wrote_to_it_is_guarded_again(database_url: str) -> None:
    log = Log()

    async def handler(run: Run) -> Any:
        await run.step("a", Effect(), 1)
        if len(runs) < 3:
            vanish()
        return run.context["n"]

    runs: list[None] = []
    async with StateStore.open(database_url, hook=log, checkpoint_every=0) as store:
        for _ in range(3):
            runs.append(None)
            with suppress(asyncio.CancelledError):
                assert await store.run("n", handler, workflow_id="w", context={"n": 1}) == 7
            if len(runs) == 1:
                row = await row_of(store, "w")
                execute(database_url, GUARDED_UPDATE.replace("{id}", str(row.id)))
                execute(database_url, "UPDATE step_states SET outputs = 'torn' WHERE step_id = 'a'")
        assert len(log.of(FellBack)) == 1
        assert (await row_of(store, "w")).status == "completed"
        assert (await store.verify()).is_sound


async def test_a_save_after_older_software_wrote_leaves_what_is_encrypted_guarded(database_url: str) -> None:
    payloads = Payloads([AesGcm(KeyRing({"key": new_key()}, "key"))], strict=True)
    async with StateStore.open(database_url, payloads=payloads) as store:
        id_ = await written_by_both(store, database_url, [f"UPDATE workflow_states SET updated_at = '{LATE}'"])
        state = await store.load_workflow_state(id_)
        state.user_id = "u"
        await store.save_workflow_state(state)
        handler = Steps()
        assert await store.run("n", handler, workflow_id="w") == ["mine", "new"]
        assert handler.effect.calls == ["new"]


async def test_a_result_that_older_software_took_back_is_no_damage(store: StateStore, database_url: str) -> None:
    handler = Steps()
    await store.run("n", handler, workflow_id="w", context={"n": 0})
    execute(
        database_url,
        f"UPDATE workflow_states SET status = 'pending', result = NULL, updated_at = '{LATE}', version = version + 1",
        "DELETE FROM step_states WHERE step_id = 'b'",
    )
    handler.abandons = True
    with suppress(asyncio.CancelledError):
        await store.run("n", handler, workflow_id="w")
    assert (await store.verify()).damage == []
