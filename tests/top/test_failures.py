"""What is recorded of a failure: its causes and the members of groups with it, bounded, whatever it does."""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_state import Run, StateStore
from orchestrator_state.failures import describe
from tests.support.running import row_of, steps_of


def raised(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - any class
        return error
    raise AssertionError("nothing was raised")


def cause_and_context() -> None:
    try:
        try:
            int("x")
        except ValueError as missing:
            raise ConnectionError("refused") from missing
    except ConnectionError:
        raise KeyError("no answer")  # noqa: B904


def hidden_context() -> None:
    try:
        int("secret")
    except ValueError:
        raise KeyError("plain") from None


def cycle() -> NoReturn:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    raise one


def nested_groups() -> NoReturn:
    raise ExceptionGroup("all", [ValueError("a"), ExceptionGroup("some", [TypeError("b"), OSError("c")])])


def noted() -> NoReturn:
    error = ValueError("plain")
    error.add_note("seen before")
    raise error


def from_a_time_limit() -> NoReturn:
    async def wait() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(10)

    asyncio.run(wait())
    raise AssertionError


TOLD: list[tuple[Callable[[], Any], list[str]]] = [
    (
        cause_and_context,
        [
            "KeyError: 'no answer'",
            "raised while handling ConnectionError: refused",
            "  caused by ValueError: invalid literal for int() with base 10: 'x'",
        ],
    ),
    (hidden_context, ["KeyError: 'plain'"]),
    (cycle, ["ValueError: one", "caused by ValueError: other"]),
    (
        nested_groups,
        [
            "ExceptionGroup: all (2 sub-exceptions)",
            "[1] ValueError: a",
            "[2] ExceptionGroup: some (2 sub-exceptions)",
            "  [1] TypeError: b",
            "  [2] OSError: c",
        ],
    ),
    (noted, ["ValueError: plain", "note: seen before"]),
    (from_a_time_limit, ["TimeoutError"]),
]


@pytest.mark.parametrize(("work", "lines"), TOLD)
def test_a_failure_is_told_with_what_led_to_it(work: Callable[[], Any], lines: list[str]) -> None:
    assert describe(raised(work)).splitlines() == lines


def chain_of(length: int, size: int) -> BaseException:
    error = ValueError("x" * size)
    for _ in range(length):
        outer = ValueError("x" * size)
        outer.__cause__, error = error, outer
    return error


@pytest.mark.parametrize("error", [
    chain_of(0, 10_000), chain_of(10_000, 10), chain_of(50, 10_000),
    ExceptionGroup("g" * 10_000, [ValueError("x" * 10_000) for _ in range(1000)]),
    ExceptionGroup("g", [ExceptionGroup("h", [ValueError("x") for _ in range(100)]) for _ in range(100)]),
])  # fmt: skip
def test_a_record_is_bounded(error: BaseException) -> None:
    assert 10 < len(describe(error)) <= 2000
    assert describe(error).count("\n") <= 13


def test_a_long_message_leaves_room_for_its_cause() -> None:
    error = ValueError("x" * 10_000)
    error.__cause__ = KeyError("the cause")
    assert describe(error).endswith("caused by KeyError: 'the cause'")


@given(st.text(), st.text())
def test_a_record_can_be_stored_whatever_the_message_is(message: str, cause: str) -> None:
    error = ValueError(message)
    error.__cause__ = OSError(cause)
    text = describe(error)
    assert "\0" not in text
    text.encode()


class HostileStr(str):
    __slots__ = ()

    def __getitem__(self, _: Any) -> Any:
        raise SystemExit

    __format__ = __str__ = __add__ = __len__ = __getitem__  # type: ignore[assignment]


class OddMessage(Exception):
    def __str__(self) -> str:
        return HostileStr("odd")


class NoMessage(Exception):
    def __str__(self) -> str:
        raise GeneratorExit


class OddRelatives(ExceptionGroup[Exception]):
    """Nothing can be done with it but to describe it: Python's own machinery asks it for its cause."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit


def odd_kind() -> BaseException:
    """Its class cannot stand in the module: pytest asks what it finds there."""

    class HostileKind(type):
        def __getattribute__(cls, name: str) -> Any:
            raise SystemExit

    class OddKindError(BaseException, metaclass=HostileKind):
        pass

    return OddKindError()


class OddDictError(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit


def nested(depth: int) -> Exception:
    error: Exception = ValueError("in the end")
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


def test_relatives_are_found_whatever_the_exception_says_of_them() -> None:
    assert describe(OddRelatives("odd", [ValueError("a")])).splitlines()[1] == "[1] ValueError: a"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("OddMessage", "OddMessage: odd"),
        ("NoMessage", "NoMessage: (its message cannot be printed)"),
        ("odd_kind", "odd_kind.<locals>.OddKindError"),
        ("OddDictError", "OddDictError"),
    ],
)
async def test_a_failure_whose_own_methods_fail_is_recorded(store: StateStore, kind: str, text: str) -> None:
    error: BaseException = globals()[kind]()

    async def fail() -> NoReturn:
        raise error

    async def handler(run: Run) -> None:
        await run.step("paid", fail)

    # Not `pytest.raises`, which asks the class for its name.
    [raised] = await asyncio.gather(store.run("n", handler, workflow_id="w"), return_exceptions=True)
    assert isinstance(raised, BaseException)
    assert error in (raised, raised.__cause__)
    assert (await steps_of(store, "w"))["paid"].error == text
    assert (await row_of(store, "w")).error == text


@pytest.mark.parametrize("depth", [1, 5_000])
async def test_groups_may_be_nested_however_deep(store: StateStore, depth: int) -> None:
    async def handler(run: Run) -> None:
        raise nested(depth)

    with pytest.raises(ExceptionGroup):
        await store.run("n", handler, workflow_id="w")
    assert "ExceptionGroup: g" in (await row_of(store, "w")).error
