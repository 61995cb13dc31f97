"""What stops a run without being its failure, and how long the run is left alone then."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Final, cast

from orchestrator_state.errors import OrchestratorStateError, SchemaMismatch, StoreUnavailable
from orchestrator_state.failures import is_a, leaves
from orchestrator_state.records import UNREADABLE

UNREADABLE_HERE: Final = (SchemaMismatch, *UNREADABLE)
"""Other code, or a store with other keys, may well be able to read it."""

NOT_THE_RUNS: Final = (StoreUnavailable, *UNREADABLE_HERE)
"""What the handler never sees, if it happens to a call of its run."""

_FIRST_PAUSE: Final = 1.0  # seconds; they double
_FIRST_UNREADABLE: Final = 2.0
_LONGEST_UNREADABLE: Final = timedelta(minutes=5)


def fault_behind(error: BaseException) -> OrchestratorStateError | None:
    """What a handler raised although it is not its failure, in whatever group it came out; None if all is its own.

    It met that by calls of its own, as to the store: what its run's calls meet never reaches it.
    """
    found = (leaf for leaf in leaves(error) if is_a(leaf, NOT_THE_RUNS))
    return cast("OrchestratorStateError | None", next(found, None))


def pause_after(error: BaseException, faults: int, lease_term: timedelta) -> timedelta:
    """How long a run is left alone after the last of so many faults in a row: it would be met again at once, for ever.

    After a fault of the database no longer than a lease is good for, as if the worker had vanished.
    """
    unreadable = is_a(error, UNREADABLE_HERE)
    first, longest = (_FIRST_UNREADABLE, _LONGEST_UNREADABLE) if unreadable else (_FIRST_PAUSE, lease_term)
    seconds = min(first * 2.0 ** min(faults - 1, 30), longest.total_seconds())
    return timedelta(seconds=seconds * random.uniform(0.75, 1))  # noqa: S311 - spreads load, guards nothing
