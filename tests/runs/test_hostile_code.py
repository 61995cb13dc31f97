"""Code of the application's that raises the worst there is, wherever it is called from."""

import logging
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

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
each = pytest.mark.parametrize("worst", WORST)


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


@each
@pytest.mark.parametrize("place", [validator, serializer, equality, predicate])
async def test_what_belongs_to_a_steps_type_or_retry_fails_the_step_alone(
    store: StateStore, place: Callable[[str], dict[str, Any]], worst: str
) -> None:
    paid = Effect()

    async def handler(run: Run) -> Any:
        return await run.step("paid", paid, 1, **place(worst))

    async def healthy(run: Run) -> Any:
        return await run.step("s", Effect(), "well")

    await store.start("n", workflow_id="w")
    async with Worker(store, {"n": handler, "healthy": healthy}, handle_signals=False, poll=0.05):
        await becomes(lambda row: row.status == "failed", store, "w")
        await store.start("healthy", workflow_id="healthy")
        await becomes(lambda row: row.status == "completed", store, "healthy")
    assert (await steps_of(store, "w"))["paid"].status == "failed"
    assert len(paid.calls) == 1


@each
async def test_a_hook_that_raises_is_logged_and_ignored(
    database_url: str, worst: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Hook:
        def on_event(self, event: Event) -> None:
            raise WORST[worst]

    async with StateStore.open(database_url, hook=Hook()) as store:
        assert await store.run("n", lambda run: run.step("s", Effect(), 1), workflow_id="w") == 1
        assert (await row_of(store, "w")).status == "completed"
    assert "a hook failed on StepCommitted" in caplog.text


@each
@pytest.mark.parametrize("broken", ["encode", "decode"])
async def test_a_codec_that_raises_harms_what_it_was_asked_for(database_url: str, worst: str, broken: str) -> None:
    class Codec:
        tag = "broken"
        is_broken = False

        def encode(self, data: bytes, name: bytes) -> bytes | None:
            return raising(worst)(data) if self.is_broken and broken == "encode" else data

        def decode(self, data: bytes, name: bytes, parameter: str) -> bytes:
            return raising(worst)(data) if self.is_broken and broken == "decode" else data

    codec = Codec()
    async with StateStore.open(database_url, payloads=Payloads(codecs=[codec])) as store:
        await store.start("n", workflow_id="w")
        codec.is_broken = True
        report = await store.recover({"n": lambda run: run.step("s", Effect(), 1)})
        assert [run.outcome for run in report.runs] in (["failed"], ["interrupted"])
        codec.is_broken = False
        assert (await row_of(store, "w")).lease_expires_at is None


@each
async def test_a_type_that_cannot_say_what_it_is_is_refused(store: StateStore, worst: str) -> None:
    class Odd:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
            raise WORST[worst]

    called = Effect()
    with pytest.raises(ConfigurationError, match="Odd"):
        await store.run("n", lambda run: run.step("s", called), returns=Odd)
    with pytest.raises(ConfigurationError, match="Odd"):
        await store.run("n", lambda run: run.step("s", called, returns=Odd), workflow_id="w")
    assert called.calls == []


@each
async def test_a_model_of_the_state_that_raises_fails_its_run(store: StateStore, worst: str) -> None:
    class Model(BaseModel):
        count: Annotated[int, PlainSerializer(lambda count: raising(worst)(count) if count else count)] = 0

    async def handler(run: Run[Model]) -> Any:
        await run.step("first", Effect())
        run.state.count = 1
        await run.step("second", Effect())

    with pytest.raises(InvalidPayload):
        await store.run("n", handler, state=Model, workflow_id="w")
    assert (await row_of(store, "w")).status == "failed"


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
