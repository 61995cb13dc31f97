"""Code of the application's that raises the worst there is, wherever it is called from."""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NoReturn

import pytest
from pydantic import AfterValidator, BaseModel, GetCoreSchemaHandler, PlainSerializer

from orchestrator_state import (
    ConfigurationError,
    Event,
    InvalidPayload,
    Payloads,
    Retry,
    Run,
    StateStore,
    StoreUnavailable,
    Worker,
)
from tests.runs.test_abnormal_exits import HostileError, LyingError
from tests.support.cases import case
from tests.support.running import Effect, becomes, row_of, steps_of


class BeyondError(BaseException):
    """Neither an `Exception` nor anything that asyncio knows."""


class LyingUnavailable(StoreUnavailable):
    """One of ours that must not be printed."""

    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit


WORST: dict[str, type[BaseException]] = {
    "beyond": BeyondError,
    "hostile": HostileError,
    "lying": LyingError,
    "SystemExit": SystemExit,
    "GeneratorExit": GeneratorExit,
}


def raising(worst: str) -> Callable[..., Any]:
    def fail(_value: Any) -> Any:
        raise WORST[worst]

    return fail


def validator(worst: str) -> dict[str, Any]:
    return {"returns": Annotated[int, AfterValidator(raising(worst))]}


def serializer(worst: str) -> dict[str, Any]:
    return {"returns": Annotated[int, PlainSerializer(raising(worst))]}


def equality(worst: str) -> dict[str, Any]:
    class Odd(int):
        __eq__ = lambda self, other: raising(worst)(other)  # noqa: E731
        __hash__ = int.__hash__

    return {"returns": Annotated[Any, AfterValidator(Odd)]}


def predicate(worst: str) -> dict[str, Any]:
    return {"retry": Retry(attempts=3, wait_initial=0, on=raising(worst)), "returns": validator("lying")["returns"]}


PLACES = [validator, serializer, equality, predicate]


async def test_what_belongs_to_a_steps_type_or_retry_fails_the_step_alone(store: StateStore) -> None:
    paid: dict[str, Effect] = defaultdict(Effect)
    cases = {f"{place.__name__}, {worst}": (place, worst) for place in PLACES for worst in WORST}

    async def handler(run: Run) -> Any:
        place, worst = cases[run.workflow_id]
        return await run.step("paid", paid[run.workflow_id], 1, **place(worst))

    async def healthy(run: Run) -> Any:
        return await run.step("s", Effect(), "well")

    async with Worker(store, {"n": handler, "healthy": healthy}, handle_signals=False, poll=0.05):
        for name in cases:
            with case(name):
                await store.start("n", workflow_id=name)
                await becomes(lambda row: row.status == "failed", store, name)
                await store.start("healthy", workflow_id=f"after {name}")
                await becomes(lambda row: row.status == "completed", store, f"after {name}")
                assert (await steps_of(store, name))["paid"].status == "failed"
                assert paid[name].calls == [1]


async def test_a_hook_that_raises_is_logged_and_ignored(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    class Hook:
        def on_event(self, event: Event) -> None:
            raise WORST[worst]

    worst = ""
    async with StateStore.open(database_url, hook=Hook()) as store:
        for worst in WORST:
            with case(worst):
                caplog.clear()
                assert await store.run("n", lambda run: run.step("s", Effect(), 1), workflow_id=worst) == 1
                assert (await row_of(store, worst)).status == "completed"
                assert "a hook failed on StepCommitted" in caplog.text


@pytest.mark.parametrize("broken", ["encode", "decode"])
async def test_a_codec_that_raises_harms_what_it_was_asked_for(database_url: str, broken: str) -> None:
    class Codec:
        tag = "broken"
        worst = ""

        def encode(self, data: bytes, name: bytes) -> bytes | None:
            return raising(self.worst)(data) if self.worst and broken == "encode" else data

        def decode(self, data: bytes, name: bytes, parameter: str) -> bytes:
            return raising(self.worst)(data) if self.worst and broken == "decode" else data

    codec = Codec()
    async with StateStore.open(database_url, payloads=Payloads(codecs=[codec])) as store:
        for worst in WORST:
            with case(worst):
                await store.start(worst, workflow_id=worst)
                codec.worst = worst
                report = await store.recover({worst: lambda run: run.step("s", Effect(), 1)})
                assert [run.outcome for run in report.runs] in (["failed"], ["interrupted"])
                codec.worst = ""
                assert (await row_of(store, worst)).lease_expires_at is None


async def test_a_type_that_cannot_say_what_it_is_is_refused(store: StateStore) -> None:
    called = Effect()
    for name, error in WORST.items():

        class Odd:
            worst: ClassVar = error

            @classmethod
            def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
                raise cls.worst

        async def handler(run: Run, odd: type[Odd] = Odd) -> Any:
            return await run.step("s", called, returns=odd)

        with case(name):
            with pytest.raises(ConfigurationError, match="Odd"):
                await store.run("n", lambda run: run.step("s", called), returns=Odd)
            with pytest.raises(ConfigurationError, match="Odd"):
                await store.run("n", handler, workflow_id=name)
    assert called.calls == []


async def test_a_model_of_the_state_that_raises_fails_its_run(store: StateStore) -> None:
    class Model(BaseModel):
        worst: Annotated[str, PlainSerializer(lambda worst: raising(worst)(worst) if worst else worst)] = ""

    async def handler(run: Run[Model]) -> Any:
        await run.step("first", Effect())
        run.state.worst = run.workflow_id
        await run.step("second", Effect())

    for worst in WORST:
        with case(worst):
            with pytest.raises(InvalidPayload):
                await store.run("n", handler, state=Model, workflow_id=worst)
            assert (await row_of(store, worst)).status == "failed"


async def test_a_fault_that_cannot_be_printed_leaves_the_run_like_any_other(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def handler(run: Run) -> NoReturn:
        raise LyingUnavailable("away")

    await store.start("n", workflow_id="w")
    report = await store.recover({"n": handler})
    outcomes = [run.outcome for run in report.runs]
    del report  # which pytest would print
    assert outcomes == ["interrupted"]
    assert (await row_of(store, "w")).status == "running"
    assert "is left to whoever comes next" in caplog.text
