"""Many cases in one test, where to open a store for each of them would take far longer than the case itself."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(name: object) -> Iterator[None]:
    """What fails in this block is reported with the name of its case."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case: {name}")
        raise
