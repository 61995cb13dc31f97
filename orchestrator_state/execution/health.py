"""How a worker is doing: what it tells those who ask, and how long it rests after a look for work that failed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from orchestrator_state.domain import utc_now

_FIRST_REST: Final = 0.25  # seconds; they double
_LONGEST_REST: Final = 5.0

WorkerState = Literal["new", "working", "stopping", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealth:
    """What `Worker.health` returns. Times are aware UTC, of this machine's clock."""

    state: WorkerState
    runs_under_way: int
    looked_at: datetime | None
    """When it last looked for work and could; None if it never could."""
    faults: int
    """How many looks have failed in a row, since `failing_since`."""
    failing_since: datetime | None
    last_error: str | None
    """The type of the last error that a look ended in, also if it works again."""

    retained_at: datetime | None = None
    """Of a worker with a `Retention`: when that was last done, by any worker or call, as far as this one knows."""
    retention_error: str | None = None
    """The type of the error that its last attempt at that ended in; None if that succeeded."""

    @property
    def is_well(self) -> bool:
        """Whether it works, and its last look for work did not fail."""
        return self.state == "working" and self.faults == 0


class Pulse:
    """Keeps account of a worker's looks for work."""

    def __init__(self) -> None:
        self.state: WorkerState = "new"
        self._looked_at: datetime | None = None
        self._failing_since: datetime | None = None
        self._last_error: str | None = None
        self._faults = 0

    def could_look(self) -> None:
        self._looked_at, self._failing_since, self._faults = utc_now(), None, 0

    def failed(self, error: Exception) -> float:
        """Returns how many seconds to rest before the next look: longer and longer, jittered."""
        self._faults += 1
        self._failing_since = self._failing_since or utc_now()
        self._last_error = type(error).__qualname__
        longest = min(_FIRST_REST * 2.0 ** min(self._faults - 1, 30), _LONGEST_REST)
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing

    def health(
        self, runs_under_way: int, *, retained_at: datetime | None = None, retention_error: str | None = None
    ) -> WorkerHealth:
        return WorkerHealth(
            state=self.state,
            runs_under_way=runs_under_way,
            looked_at=self._looked_at,
            faults=self._faults,
            failing_since=self._failing_since,
            last_error=self._last_error,
            retained_at=retained_at,
            retention_error=retention_error,
        )
