"""Which failures of a step are worth another call, and what a policy may say."""

import math
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_state import AbnormalExit, ConfigurationError, Retry, Run, StateStore
from tests.support.running import Effect, Failing, count_rows, steps_of

AT_ONCE: dict[str, Any] = {"wait_initial": 0, "wait_max": 0, "wait_jitter": 0}


def running(step: Any, retry: Any) -> Any:
    async def handler(run: Run) -> Any:
        return await run.step("paid", step, retry=retry)

    return handler


# --- a predicate ---


async def test_a_predicate_says_what_is_worth_another_call(store: StateStore) -> None:
    failing = Failing(OSError(11, "again"), OSError(2, "gone"), OSError(11, "again"))
    seen: list[BaseException] = []

    def is_worth_it(error: BaseException) -> bool:
        seen.append(error)
        return isinstance(error, OSError) and error.errno == 11

    with pytest.raises(OSError, match="gone"):
        await store.run("n", running(failing, Retry(attempts=5, on=is_worth_it, **AT_ONCE)), workflow_id="w")
    assert failing.calls == 2
    assert len(seen) == 2
    assert (await steps_of(store, "w"))["paid"].retry_count == 2


async def test_a_predicate_is_given_what_the_function_raised_of_whatever_class(store: StateStore) -> None:
    seen: list[BaseException] = []
    failing = Failing(SystemExit(1), KeyboardInterrupt())  # type: ignore[arg-type]

    def is_worth_it(error: BaseException) -> bool:
        seen.append(error)
        return True

    assert await store.run("n", running(failing, Retry(on=is_worth_it, **AT_ONCE))) == "done"
    assert [type(error) for error in seen] == [SystemExit, KeyboardInterrupt]


@pytest.mark.parametrize("on", [SystemExit, (ValueError, SystemExit), BaseException, Exception, AbnormalExit])
async def test_classes_match_what_was_raised_and_what_the_handler_sees(store: StateStore, on: Any) -> None:
    assert await store.run("n", running(Failing(SystemExit(1)), Retry(on=on, **AT_ONCE))) == "done"  # type: ignore[arg-type]


async def test_a_predicate_that_fails_says_no_and_the_step_fails_with_its_own_error(store: StateStore) -> None:
    failing = Failing(ValueError("the step's"), ValueError("never"))

    def broken(_error: BaseException) -> bool:
        raise SystemExit

    with pytest.raises(ValueError, match="the step's") as caught:
        await store.run("n", running(failing, Retry(on=broken, **AT_ONCE)), workflow_id="w")
    assert failing.calls == 1
    assert "SystemExit" in caught.value.__notes__[0]
    assert "SystemExit" in (await steps_of(store, "w"))["paid"].error


# --- what makes no sense ---


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0}, {"attempts": -1}, {"attempts": True}, {"attempts": "3"}, {"attempts": 2.0}, {"attempts": None},
        {"wait_initial": -1}, {"wait_max": timedelta(seconds=-1)}, {"wait_jitter": -0.1}, {"wait_initial": "1"},
        {"wait_max": math.nan}, {"wait_max": math.inf}, {"wait_jitter": None}, {"wait_initial": True},
        {"wait_initial": 2, "wait_max": 1}, {"wait_initial": 31},
        {"on": None}, {"on": "ValueError"}, {"on": int}, {"on": (ValueError, int)}, {"on": [ValueError]},
        {"on": ValueError("x")}, {"on": (ValueError, lambda error: True)}, {"on": Effect()},
    ],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Retry(**options)


@pytest.mark.parametrize("retry", [0, -1, "3", True, False, 2.5, [3], Retry])
async def test_a_number_of_calls_that_makes_no_sense_is_refused_before_anything_runs(
    store: StateStore, retry: Any
) -> None:
    effect = Effect()
    with pytest.raises(ConfigurationError, match=r"retry|attempts"):
        await store.run("n", running(effect, retry))
    assert effect.calls == []
    assert await count_rows(store, "step_states") == 0


def test_pauses_may_be_numbers_of_seconds() -> None:
    policy = Retry(wait_initial=0.5, wait_max=2, wait_jitter=0)
    assert (policy.wait_initial, policy.wait_max) == (timedelta(seconds=0.5), timedelta(seconds=2))
    assert policy == Retry(wait_initial=timedelta(seconds=0.5), wait_max=timedelta(seconds=2), wait_jitter=timedelta())
