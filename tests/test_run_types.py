"""What a type checker makes of the calls of a run: this module is a test also to mypy."""

from typing import assert_type

from orchestrator_state import Run, StateStore


def length(text: str) -> int:
    return len(text)


async def shout(text: str) -> str:
    return text.upper()


async def handler(run: Run) -> list[object]:
    return [
        assert_type(await run.step("sync", length, "abc"), int),
        assert_type(await run.step("async", shout, "abc"), str),
        assert_type(await run.step("method", "abc".upper), str),
        assert_type(await run.step("retried", shout, "abc", retry=2, timeout=5), str),
    ]


async def test_a_step_has_the_type_of_its_functions_result_sync_or_async(store: StateStore) -> None:
    assert await store.run("typed", handler) == [3, "ABC", "ABC", "ABC"]
