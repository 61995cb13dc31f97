"""Python's cyclic garbage collector, out of the way while a great many objects are built at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For a block without `await` that builds thousands of objects, all of which it returns.

    The collector looks through the young objects again and again as they become more, and finds nothing: half the time
    of building 10,000 states. It is switched off for the whole process, so the block has to be short. One that the
    application has switched off stays off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
