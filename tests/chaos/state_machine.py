"""Any sequence of calls, with crashes, lost answers and refusals among them, is to do what a simple model says."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule, run_state_machine_as_test

from orchestrator_state import Event, InvalidTransition, Run, StateStore, StepStatus, WorkflowNotFound
from orchestrator_state.hooks import StepCommitted, StepCommitting, StepStarted
from tests.chaos.report import Report
from tests.chaos.witness import book, create_ledger, entries
from tests.support.fated_commits import Fate, FatedCommits
from tests.support.running import LONG_AGO, change_row

_T = TypeVar("_T")
_SIGNALS = 2
_PATIENCE = 30


def compare_with_model(url: str, *, examples: int, seed: int) -> Report:
    """Try so many sequences on the database at `url`. Blocks; each has an event loop of its own."""
    report = Report(name="any sequence of calls against a model", seed=seed)

    class Example(Machine):
        def __init__(self) -> None:
            self.url, self.report = url, report
            report.figures["sequences"] += 1
            super().__init__()

    hypothesis.seed(seed)(Example)
    many = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # A sequence that fails is short enough to be read; making it shorter takes minutes.
        phases=(Phase.generate,),
    )
    try:
        run_state_machine_as_test(Example, settings=many)
    except Exception as error:  # noqa: BLE001 - with the sequence in its notes
        report.find("other", "".join(traceback.format_exception(error)))
    return report


@dataclass(eq=False)
class Known:
    """A run, as the model knows it."""

    id: UUID
    status: str = "open"
    """open, paused, cancelled, or completed."""
    sent: list[int] = field(default_factory=list)
    """Signals that were acknowledged and not yet consumed."""
    consumed: list[int] = field(default_factory=list)
    payments: int = 0
    has_paid: bool = False


class _Crashes:
    """A hook that ends a worker, wherever it is, at one of its next events."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.worker: asyncio.Task[Any] | None = None
        self.made = 0

    def on_event(self, event: Event) -> None:
        if self.left is None or not isinstance(event, StepStarted | StepCommitting | StepCommitted):
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            self.made += 1
            assert self.worker is not None
            self.worker.cancel()


class Machine(RuleBasedStateMachine):
    """One store. A run that nobody owns between two rules obeys at once, any other when it is next worked on."""

    url: str
    report: Report

    runs: Bundle[Known] = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.Runner()
        self._crashes = _Crashes()
        self._store = self._await(self._open())
        self._commits = FatedCommits(self._store)
        self._known: list[Known] = []
        self._serial = 0

    async def _open(self) -> StateStore:
        # In a namespace of its own each example finds an empty store.
        options: dict[str, Any] = {"namespace": uuid4().hex, "hook": self._crashes}
        store = await StateStore.open(self.url, migrate=False, pool_min=1, **options)
        await create_ledger(store)
        return store

    def _await(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run(asyncio.wait_for(work, _PATIENCE))

    def teardown(self) -> None:
        self._commits.fates.clear()
        self._crashes.left = None
        try:
            self._work()
            for known in self._known:
                self._await(self._compare(known))
        finally:
            self._await(self._store.close())
            self._loop.close()
            self.report.rounds += self._commits.faults + self._crashes.made

    # --- what the world does -------------------------------------------------------------------------------------

    @rule(fates=st.lists(st.sampled_from(["sound", "refused", "answer lost"]), min_size=1, max_size=4))
    def bad_weather(self, fates: list[Fate]) -> None:
        self._commits.fates.extend(fates)

    @rule(after=st.integers(0, 12))
    def a_worker_will_crash(self, after: int) -> None:
        self._crashes.left = after

    # --- runs and requests ---------------------------------------------------------------------------------------

    @rule(target=runs)
    def start(self) -> Known:
        self._serial += 1
        state = self._await(self._store.start("order", workflow_id=f"w-{self._serial}"))
        known = Known(state.id)
        self._known.append(known)
        self.report.acknowledged += 1
        return known

    @rule(known=runs, again=st.booleans())
    def signal(self, known: Known, again: bool) -> None:
        for _ in range(1 + again):
            self._serial += 1
            serial = self._serial
            if self._ask(known, lambda: self._store.signal(known.id, "go", serial), {"open", "paused"}):  # noqa: B023
                known.sent.append(serial)

    @rule(known=runs)
    def pause(self, known: Known) -> None:
        if self._ask(known, lambda: self._store.pause(known.id), {"open", "paused"}):
            known.status = "paused"

    @rule(known=runs)
    def resume(self, known: Known) -> None:
        if self._ask(known, lambda: self._store.resume(known.id), {"open", "paused"}):
            known.status = "open"

    @rule(known=runs)
    def cancel(self, known: Known) -> None:
        if self._ask(known, lambda: self._store.cancel(known.id), {"open", "paused", "cancelled"}):
            known.status = "cancelled"

    @rule(target=runs, known=runs)
    def fork(self, known: Known) -> Any:
        self._work()
        checkpoint = self._await(self._newest_checkpoint(known))
        if checkpoint is None:
            return multiple()
        fork = self._await(self._store.fork(checkpoint.id))
        known_fork = Known(fork.id)
        _take_back(known_fork, checkpoint.snapshot)
        self._known.append(known_fork)
        self.report.acknowledged += 1
        return known_fork

    @rule(known=runs, newest=st.booleans())
    def rewind(self, known: Known, newest: bool) -> None:
        self._work()
        checkpoint = self._await(self._newest_checkpoint(known, oldest=not newest))
        if checkpoint is None:
            return
        self._await(self._store.rewind(checkpoint.id))
        known.status = "open"
        self.report.acknowledged += 1
        _take_back(known, checkpoint.snapshot)

    async def _newest_checkpoint(self, known: Known, *, oldest: bool = False) -> Any:
        with self._commits.in_good_weather():
            async with self._store.begin() as uow:
                found = await uow.checkpoints.list(known.id)
        return (found[-1] if oldest else found[0]) if found else None

    def _ask(self, known: Known, call: Callable[[], Coroutine[Any, Any, None]], allowed: set[str]) -> bool:
        """Whether the request was taken; one that is not allowed is refused, and one of a deleted run finds none."""
        try:
            self._await(call())
        except InvalidTransition:
            assert known.status not in allowed
            return False
        except WorkflowNotFound:
            assert known.status == "deleted"
            return False
        assert known.status in allowed
        self.report.acknowledged += 1
        return True

    # --- work, and housekeeping ----------------------------------------------------------------------------------

    @rule()
    def work(self) -> None:
        self._work()

    def _work(self) -> None:
        """Recover until a worker comes to its end without a crash, then let the model do the same."""
        while self._await(self._crashes_in(self._recover())):
            pass
        for known in self._known:
            _go_on(known)

    async def _crashes_in(self, work: Coroutine[Any, Any, None]) -> bool:
        worker = self._crashes.worker = asyncio.create_task(work)
        await asyncio.wait({worker})
        return worker.cancelled() or worker.result() is not None

    async def _recover(self) -> None:
        report = await self._store.recover({"order": self._handler})
        for run in report.runs:
            assert run.outcome in ("completed", "suspended", "interrupted", "paused", "cancelled"), run
            if run.outcome == "interrupted":
                with self._commits.in_good_weather():
                    await change_row(self._store, run.workflow_state_id, wake_at=None, lease_expires_at=LONG_AGO)

    @rule(keep=st.integers(1, 3))
    def prune(self, keep: int) -> None:
        self._await(self._store.prune_checkpoints(keep=keep))

    @rule()
    def delete_finished(self) -> None:
        self._work()
        self._await(self._store.delete_old_states(datetime.now(UTC) + timedelta(days=1)))
        for known in self._known:
            if known.status in ("completed", "cancelled"):
                known.status = "deleted"

    @rule(known=runs)
    def compare(self, known: Known) -> None:
        self._work()
        self._await(self._compare(known))

    async def _compare(self, known: Known) -> None:
        with self._commits.in_good_weather():
            await self._compare_in_good_weather(known)

    async def _compare_in_good_weather(self, known: Known) -> None:
        if known.status == "deleted":
            try:
                await self._store.load_workflow_state(known.id)
            except WorkflowNotFound:
                return
            raise AssertionError("it was deleted, and is there")
        state = await self._store.load_workflow_state(known.id)
        shown = {"pending": "open", "running": "open"}.get(state.status, str(state.status))
        over = {key: step for key, step in state.steps.items() if step.status == StepStatus.COMPLETED}
        consumed = [step.outputs for key, step in over.items() if key.startswith("signal:go")]
        booked = await entries(self._store, str(known.id))
        assert (shown, consumed, len(booked)) == (known.status, known.consumed, known.payments)
        if known.status == "completed":
            assert state.context == {"n": 1 + _SIGNALS, "log": known.consumed}

    async def _handler(self, run: Run) -> list[int]:
        run.context["n"] = 1
        await run.step("a", asyncio.sleep, 0)
        run.context["log"] = []
        for _ in range(_SIGNALS):
            run.append("log", await run.wait_for("go"))
            run.context["n"] += 1
        await run.child("part", self._part)
        await run.transact("pay", book, str(run.id), "pay")
        return list(run.context["log"])

    async def _part(self, run: Run) -> str:
        return await run.transact("part", book, f"{run.parent_id} part", "part")


def _go_on(known: Known) -> None:
    """What a worker does with a run."""
    if known.status != "open":
        return
    while known.sent and len(known.consumed) < _SIGNALS:
        known.consumed.append(known.sent.pop(0))
    if len(known.consumed) == _SIGNALS:
        known.payments += not known.has_paid
        known.has_paid = True
        known.status = "completed"


def _take_back(known: Known, snapshot: Any) -> None:
    """The run stands where the snapshot stands."""
    steps = snapshot["steps"]
    known.consumed = [step["outputs"] for key, step in steps.items() if key.startswith("signal:go")]
    known.has_paid = "pay" in steps
