"""Many cases in one test, where to open a store for each of them would take far longer than the case itself."""

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

_Result = TypeVar("_Result")


@contextmanager
def case(name: object) -> Iterator[None]:
    """What fails in this block is reported with the name of its case."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case: {name}")
        raise


async def gathered(cases: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Run cases that mostly wait side by side; one that fails ends the others, before it fails the test."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in cases]
    return [task.result() for task in tasks]
