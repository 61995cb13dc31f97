"""What is compiled is kept as long as the process: no payload is in it, nor elsewhere once the stores are closed."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.compiler import Compiled
from sqlalchemy.sql.elements import BindParameter

from orchestrator_state import Checkpoint, Run, StateSchema, StateStore, StepState, StepStatus, WorkflowState
from orchestrator_state.database import compiled
from orchestrator_state.database.direct.driver import DriverStatement
from tests.support.payload_samples import encrypted, stored
from tests.support.raw_sql import execute
from tests.support.running import vanish

_MARK = "marked-"
_LENGTH = 3000
_numbers = count()


def marked() -> str:
    """A payload that is like no other."""
    return f"{_MARK}{next(_numbers)}-" + "x" * _LENGTH


def _upcast(context: dict[str, Any]) -> dict[str, Any]:
    return context | {"upcast": marked()}


V1, V2 = StateSchema("versioned", version=1), StateSchema("versioned", version=2)
V2.upcast(1)(_upcast)


async def _kid(run: Run[Any]) -> str:
    run.context["kid"] = marked()
    await run.step("kid", marked)
    return marked()


async def _write(session: AsyncSession) -> str:
    """As an application's code, whose statements may have any value in them."""
    connection = await session.connection()
    await connection.execute(select(literal(marked())))
    return str((await session.execute(select(literal(marked()).label("b")))).scalar_one())


def _fail() -> None:
    raise ValueError(marked())


async def _all(run: Run[Any]) -> str:
    run.context["a"] = marked()
    await run.step("a", marked)
    run.append("list", marked())
    await run.step("b", marked)
    run.append("list", marked())
    await run.transact("c", _write)
    run.context["d"] = marked()
    await run.checkpoint()
    await run.child("kid", _kid, context={"kid": marked()})
    with suppress(ValueError):
        await run.step("fails", _fail)
    await run.sleep(timedelta(milliseconds=1))
    return str(await run.wait_for("go")) + marked()


async def _failing(run: Run[Any]) -> None:
    run.context["a"] = marked()
    await run.step("a", marked)
    raise ValueError(marked())


async def _vanishing(run: Run[Any]) -> None:
    for _ in range(3):
        run.context["a"] = marked()
        await run.step("a", marked)
    vanish()


async def _going_on(run: Run[Any]) -> str:
    for _ in range(4):
        run.context["a"] = marked()
        await run.step("a", marked)
    return marked()


_HANDLERS = {"all": _all, "kid": _kid, "failing": _failing, "damaged": _going_on, "old": _going_on}


async def _runs(store: StateStore) -> None:
    started = await store.start("all", workflow_id="all", context={"first": marked()})
    await store.recover(_HANDLERS)
    await store.signal(started.id, "go", marked())
    await store.signal(started.id, "never heard", marked())
    for _ in range(3):
        await store.recover(_HANDLERS)
    with pytest.raises(ValueError, match=_MARK):
        await store.run("failing", _failing, workflow_id="failing", context={"first": marked()})
    waiting = await store.start("waiting", workflow_id="waiting", context={"first": marked()})
    await store.signal(waiting.id, "go", marked())
    await store.pause(waiting.id)
    await store.resume(waiting.id)
    await store.cancel((await store.start("waiting", context={"first": marked()})).id)


async def _forks_and_rewinds(store: StateStore) -> None:
    state = await store.load_workflow_state_by_workflow_id("all")
    async with store.begin() as uow:
        checkpoints = await uow.checkpoints.list(state.id)
    for checkpoint in checkpoints[:3]:
        await store.restore_from_checkpoint(checkpoint.id)
        await store.fork(checkpoint.id)
    await store.rewind(checkpoints[2].id)
    await store.recover(_HANDLERS)


def _by_hand(name: str) -> WorkflowState:
    steps = {"a": StepState(step_id="a", status=StepStatus.FAILED, outputs={"a": marked()}, error=marked())}
    return WorkflowState(workflow_id=str(uuid4()), workflow_name=name, context={"a": marked()}, steps=steps)


def _checkpoint_of(state: WorkflowState) -> Checkpoint:
    return Checkpoint(workflow_state_id=state.id, step_id="a", snapshot=state.to_snapshot())


async def _by_hand_too(store: StateStore) -> None:
    state = _by_hand("by hand")
    await store.save_workflow_state(state)
    state = await store.load_workflow_state(state.id)
    state.context["b"] = state.steps["a"].outputs["b"] = marked()
    await store.save_workflow_state(state)
    await store.create_checkpoint(_checkpoint_of(state))
    async with store.begin() as uow:
        await uow.workflows.save(_by_hand("in a unit"))
        await uow.checkpoints.add(_checkpoint_of(state))
        await _write(uow.session)
    run = await store.load_workflow_state_by_workflow_id("all")
    run.context["by hand"] = marked()  # its checkpoints are made whole
    run.steps["b"].outputs = marked()
    await store.save_workflow_state(run)
    await store.cleanup_old_checkpoints(state.id, keep=1)


async def _mended(store: StateStore, url: str) -> None:
    """A damaged step, a checkpoint that cannot be read, and what older software wrote."""
    ids = {}
    for name in ("damaged", "old"):
        with suppress(asyncio.CancelledError):
            await store.run(name, _vanishing, workflow_id=name, context={"first": marked()})
        ids[name] = (await store.load_workflow_state_by_workflow_id(name)).id
    of_damaged = f"WHERE workflow_state_id = '{ids['damaged']}'"
    execute(
        url,
        f"UPDATE step_states SET outputs = '{marked()}' {of_damaged} AND step_id = 'a#2'",
        f"UPDATE checkpoints SET snapshot = '{marked()}' {of_damaged}"
        f" AND seq = (SELECT max(seq) FROM checkpoints {of_damaged})",
        f"UPDATE workflow_states SET digested_at = NULL WHERE id = '{ids['old']}'",
    )
    await store.recover(_HANDLERS)
    for name in ids:
        assert (await store.load_workflow_state_by_workflow_id(name)).status == "completed"


async def _upcasts(url: str) -> None:
    async with StateStore.open(url, schemas=[V1]) as store:
        with suppress(asyncio.CancelledError):
            await store.run("versioned", _vanishing, workflow_id="v", context={"first": marked()})
    async with StateStore.open(url, schemas=[V2]) as store:
        state = await store.load_workflow_state_by_workflow_id("v")
        latest = await store.get_latest_checkpoint(state.id)
        assert latest is not None
        await store.fork(latest.id)
        await store.recover({"versioned": _going_on})


async def _everything(url: str) -> None:
    async with StateStore.open(url, keep_checkpoints=20) as store:
        await _runs(store)
        await _forks_and_rewinds(store)
        await _by_hand_too(store)
        await _mended(store, url)
    await _upcasts(url)
    async with StateStore.open(url, payloads=encrypted("k1")) as store:
        await store.rekey()
        await store.verify(load=True)
        await _by_hand_too(store)


def _values(statement: Any) -> Iterator[Any]:
    """All values of parameters in what was compiled."""
    if isinstance(statement, DriverStatement):
        yield from statement._constants.values()
    elif isinstance(statement, Compiled):
        parameters: list[BindParameter[Any]] = list(getattr(statement, "binds", {}).values())
        if statement.cache_key is not None:
            parameters += statement.cache_key.bindparams
        yield from (parameter.value for parameter in parameters)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _texts_in(item)


def _left() -> list[tuple[type, str]]:
    """Whatever in this process holds a marked payload."""
    return [
        (type(owner), text[:40])
        for owner in gc.get_objects()
        for text in gc.get_referents(owner)
        if issubclass(type(text), str) and _MARK in text[:100] and len(text) > _LENGTH  # whatever else it says it is
    ]


async def test_no_payload_stays_in_what_was_compiled_or_elsewhere(database_url: str) -> None:
    compiled._shared.clear()  # it keeps the values of whoever was first
    await asyncio.create_task(_everything(database_url))
    gc.collect()
    left = _left()
    payloads = {part for found in stored(database_url).values() for payload in found for part in payload if part}
    kept = [*compiled._shared.values()]
    assert len(kept) > 80
    values = {text: str(each)[:200] for each in kept for value in _values(each) for text in _texts_in(value)}
    assert len(values) > 5
    assert {text[:40]: values[text] for text in values if _MARK in text or text in payloads} == {}
    assert left == []
