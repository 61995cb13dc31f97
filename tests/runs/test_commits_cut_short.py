"""A call is cancelled while one of its COMMITs is on the way, and that takes effect once its connection is given up.

Then no run is left under a lease that nobody renews, no request that nobody heeds, and no child of a cancelled parent;
and the same call, made again, does what it is for, once.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from orchestrator_state import Run, StateStore, Worker
from orchestrator_state.models import workflow_states
from tests.support.cases import case, gathered
from tests.support.cutting_proxy import COMMIT
from tests.support.held import checked_out, comes_true
from tests.support.postgres_proxy import Link, PostgresProxy, opened_impatient
from tests.support.running import LONG_AGO, Effect, Gate, change_row, fetch, seconds
from tests.support.states import a_checkpoint, a_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("soon_given_up")]

SCENES_AT_ONCE = 8  # they mostly wait
NOT_YET = UUID(int=0)
NEVER = 1000  # more commits than any call has
A_MOMENT = 0.3  # seconds


class LateProxy(PostgresProxy):
    """Lets the server have the n-th COMMIT since `arm` once its client has given up the connection, and tidies up.

    `seen` is how many there were.
    """

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(url, directory)
        self._left = self.seen = 0
        self.reached, self.delivered = asyncio.Event(), asyncio.Event()

    def arm(self, number: int) -> None:
        self._left, self.seen = number, 0

    async def pass_on(self, link: Link) -> None:
        while data := await link.message():
            self._left -= COMMIT in data
            self.seen += COMMIT in data
            if self._left or COMMIT not in data:
                link.to_server.write(data)
                continue
            await link.silence()
            self.reached.set()
            await link.client.read()
            await asyncio.sleep(A_MOMENT)
            link.to_server.write(data)
            await link.answer()
            self.delivered.set()


@dataclass
class Scene:
    """A namespace of its own, seen by the store whose calls are cancelled and by another one."""

    store: StateStore
    near: StateStore
    target: UUID = NOT_YET
    checkpoint: UUID = NOT_YET
    gate: Gate = field(default_factory=Gate)
    owner: "asyncio.Task[Any] | None" = None

    async def rows(self) -> list[Any]:
        """Of all workflows, the eldest first."""
        w = workflow_states.c
        is_leased = text("(lease_expires_at > now()) IS TRUE AS is_leased")
        query = select(workflow_states, is_leased).where(w.namespace == self.near.namespace).order_by(w.started_at)
        return list(await fetch(self.near, query))

    async def statuses(self) -> list[str]:
        return [row.status for row in await self.rows()]

    async def handler(self, run: Run) -> str:
        await run.step("a", Effect())
        run.append("log", 1)
        await run.transact("pay", self._pay)
        await run.checkpoint("c")
        with suppress(TimeoutError):
            await run.wait_for("never", timeout=0.01)
        await run.sleep(0.01)
        return await run.child("child", self.child)

    async def _pay(self, session: Any) -> None:
        await session.execute(text("INSERT INTO payments VALUES (:who)"), {"who": self.near.namespace})

    async def child(self, run: Run) -> str:
        return await run.step("s", Effect(), "done")

    async def waiting_child(self, run: Run) -> str:
        return await run.step("s", Effect(), await run.wait_for("go"))

    async def parent(self, run: Run) -> str:
        return await run.child("child", self.waiting_child)

    async def busy(self, run: Run) -> None:
        await run.step("gate", self.gate)
        await run.step("after", Effect())

    async def busy_parent(self, run: Run) -> None:
        await run.child("child", self.busy)


# --- what there is before ---


async def nothing(_: Scene) -> None:
    pass


async def pending(scene: Scene) -> None:
    scene.target = (await scene.near.start("n", workflow_id="w")).id


async def hopeless(scene: Scene) -> None:
    await pending(scene)
    await change_row(scene.near, scene.target, attempts=1000)


async def failed(scene: Scene) -> None:
    async def fails(run: Run) -> None:
        await run.step("a", Effect())
        raise LookupError

    with suppress(LookupError):
        await scene.near.run("n", fails, workflow_id="w")
    scene.target = (await scene.rows())[0].id
    checkpoint = await scene.near.get_latest_checkpoint(scene.target)
    assert checkpoint is not None
    scene.checkpoint = checkpoint.id


async def family(scene: Scene) -> None:
    """A parent that is asleep over its child, which waits for a signal."""
    await scene.near.start("n", workflow_id="w")
    await scene.near.recover({"n": scene.parent})
    scene.target = (await scene.rows())[0].id


async def owned(scene: Scene) -> None:
    """A parent and its child, at work in the other store."""
    scene.owner = asyncio.create_task(scene.near.run("n", scene.busy_parent, workflow_id="w"))
    await scene.gate.reached.wait()
    scene.target = (await scene.rows())[0].id


async def old(scene: Scene) -> None:
    for number in range(2):
        state = a_state(f"old {number}")
        state.mark_completed()
        await scene.near.save_workflow_state(state)
        for _ in range(2):
            await scene.near.create_checkpoint(a_checkpoint(state))
        await change_row(scene.near, state.id, updated_at=LONG_AGO)


# --- what the call does ---


async def child_of(scene: Scene) -> UUID:
    [child] = [row.id for row in await scene.rows() if row.parent_id is not None]
    assert isinstance(child, UUID)
    return child


async def recover(scene: Scene) -> None:
    await scene.store.recover({"n": scene.handler, "child": scene.child})
    while "running" in await scene.statuses():  # asleep, until it is time
        await scene.store.recover({"n": scene.handler, "child": scene.child})


async def work(scene: Scene) -> None:
    async with Worker(scene.store, {"n": scene.handler}, poll=0.05, handle_signals=False):
        while set(await scene.statuses()) != {"completed"}:  # noqa: ASYNC110 - the worker does it
            await asyncio.sleep(0.05)


async def save(scene: Scene) -> None:
    await scene.store.save_workflow_state(a_state("saved"))


# --- what there is afterwards ---


async def is_done(scene: Scene) -> None:
    assert await scene.statuses() == ["completed"] * 2
    payments = await fetch(scene.near, text("SELECT who FROM payments"))
    assert [row.who for row in payments].count(scene.near.namespace) == 1


def becomes(*wanted: str) -> Callable[[Scene], Awaitable[None]]:
    async def check(scene: Scene) -> None:
        await owner_ends(scene)
        assert await scene.statuses() == [*wanted]

    return check


async def owner_ends(scene: Scene) -> None:
    scene.gate.opened.set()
    if scene.owner is not None:
        await asyncio.gather(scene.owner, return_exceptions=True)


async def parent_is_paused(scene: Scene) -> None:
    await owner_ends(scene)
    assert (await scene.statuses())[0] == "paused"  # its child may have come to its end meanwhile


async def parent_goes_on(scene: Scene) -> None:
    handlers = {"n": scene.parent, "child": scene.waiting_child}
    await scene.near.recover(handlers)
    assert "running" not in await scene.statuses()


async def each_has_one_checkpoint(scene: Scene) -> None:
    ids = [row.id for row in await scene.rows()]
    async with scene.near.begin() as uow:
        assert [len(await uow.checkpoints.list(each)) for each in ids] == [1] * len(ids)


@dataclass(frozen=True)
class Call:
    prepare: Callable[[Scene], Awaitable[None]]
    make: Callable[[Scene], Awaitable[Any]]
    check: Callable[[Scene], Awaitable[None]]


RUNNING = {
    "run, new": Call(nothing, lambda s: s.store.run("n", s.handler, workflow_id="w", wait=30), is_done),
    "run, by key": Call(nothing, lambda s: s.store.run("n", s.handler, idempotency_key="w", wait=30), is_done),
    "run, known": Call(pending, lambda s: s.store.run("n", s.handler, workflow_id="w", wait=30), is_done),
    "run, failed": Call(failed, lambda s: s.store.run("n", s.handler, workflow_id="w", wait=30), is_done),
}
RECOVERING = {
    "recover": Call(pending, recover, is_done),
    "recover, hopeless": Call(hopeless, lambda s: s.store.recover({"n": s.handler}), becomes("failed")),
    "Worker": Call(pending, work, is_done),
}
ASKING = {
    "start": Call(nothing, lambda s: s.store.start("n", workflow_id="w"), becomes("pending")),
    "signal": Call(family, lambda s: _to_child(s.store.signal, s, "go"), parent_goes_on),
    "pause": Call(pending, lambda s: s.store.pause(s.target), becomes("paused")),
    "pause, owned": Call(owned, lambda s: s.store.pause(s.target), parent_is_paused),
    "resume": Call(failed, lambda s: s.store.resume(s.target), becomes("pending")),
    "cancel": Call(family, lambda s: s.store.cancel(s.target), becomes("cancelled", "cancelled")),
    "cancel, owned": Call(owned, lambda s: s.store.cancel(s.target), becomes("cancelled", "cancelled")),
    "cancel, a child": Call(family, lambda s: _to_child(s.store.cancel, s), parent_goes_on),
    "fork": Call(failed, lambda s: s.store.fork(s.checkpoint, workflow_id="f"), becomes("failed", "pending")),
    "rewind": Call(failed, lambda s: s.store.rewind(s.checkpoint), becomes("pending")),
}
KEEPING = {
    "delete": Call(old, lambda s: s.store.delete_old_states(LONG_AGO + seconds(1)), becomes()),
    "prune": Call(old, lambda s: s.store.prune_checkpoints(keep=1), each_has_one_checkpoint),
    "save": Call(nothing, save, nothing),
}
CALLS = RUNNING | RECOVERING | ASKING | KEEPING


async def _to_child(call: Callable[..., Awaitable[None]], scene: Scene, *arguments: str) -> None:
    await call(await child_of(scene), *arguments)


# --- the harness ---


async def wrong_in(scene: Scene) -> list[str]:
    """What no call may leave behind."""
    rows = await scene.rows()
    statuses = {row.id: row.status for row in rows}
    others = scene.near._executor.keeper
    found = []
    for row in rows:
        if row.lease_owner == others.owner.id and others.has(row.id):
            continue
        if row.is_leased:
            found.append(f"{row.workflow_id} is under a lease that nobody renews")
        if row.request is not None:
            found.append(f"nobody heeds the {row.request} of {row.workflow_id}")
        if statuses.get(row.parent_id) == "cancelled" and row.status in ("pending", "running"):
            found.append(f"{row.workflow_id} lives on under a cancelled parent")
    if not await comes_true(lambda: checked_out(scene.store) == 0):
        found.append("a connection is not given back")
    return found


async def cut_short(url: str, name: str, number: int) -> list[str] | int:
    """Cancel the call in its n-th COMMIT, and make it again.

    Returns what is wrong then. If it has not so many, how many it has.
    """
    call, namespace = CALLS[name], f"{name} {number}"
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="late-")))
        proxy = await stack.enter_async_context(LateProxy(url, directory).running())
        near = await stack.enter_async_context(StateStore.open(url, namespace=namespace))
        distant = opened_impatient(proxy.url, namespace=namespace, pool_min=1, pool_max=4)
        store = await stack.enter_async_context(distant)
        scene = Scene(store, near)
        await call.prepare(scene)
        proxy.arm(number)
        reached = asyncio.create_task(proxy.reached.wait())
        calling = asyncio.ensure_future(call.make(scene))
        await asyncio.wait({reached, calling}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        if not proxy.reached.is_set():
            await calling
            commits = proxy.seen
            await call.check(scene)
            return commits
        calling.cancel()
        await proxy.delivered.wait()
        await asyncio.wait({calling})
        found = await wrong_in(scene)
        await call.make(scene)
        await call.check(scene)
        found += await wrong_in(scene)
    return [f"{name}, cancelled in commit {number}: {each}" for each in found]


async def wrong_after(url: str, name: str, at_once: asyncio.Semaphore) -> list[str]:
    """What is wrong after the call was cut short in each of its commits."""

    async def of(number: int) -> list[str] | int:
        async with at_once:
            with case(f"{name}, commit {number}"):
                return await cut_short(url, name, number)

    commits = await of(NEVER)
    assert commits, f"{name} has no commit"
    assert isinstance(commits, int)
    outcomes = await gathered(of(number + 1) for number in range(commits))
    return [wrong for found in outcomes if isinstance(found, list) for wrong in found]


@pytest.mark.parametrize(
    "calls", [RUNNING, RECOVERING, ASKING, KEEPING], ids=["running", "recovering", "asking", "keeping"]
)
async def test_a_call_that_is_cancelled_in_any_of_its_commits_leaves_nothing_undone(
    postgres_url: str, calls: dict[str, Call]
) -> None:
    async with StateStore.open(postgres_url) as store, store.begin() as uow:
        await uow.session.execute(text("CREATE TABLE payments (who TEXT)"))
    at_once = asyncio.Semaphore(SCENES_AT_ONCE)
    found = await gathered(wrong_after(postgres_url, name, at_once) for name in calls)
    assert list(chain.from_iterable(found)) == []
