"""The database's time, as a process knows it: what the database said last, and how long ago that was.

Not by the wall clock, which somebody may set.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

FAR_FUTURE: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""When a run that waits without a limit is to be woken by the clock."""
LATEST_WAKING: Final = datetime(2300, 1, 1, tzinfo=UTC)
"""A run that is to sleep longer looks at the clock then. What is stored of a later time, but that one, is damage."""


class DatabaseClock:
    """Set with each claim and renewal, so that it is right to some milliseconds."""

    def __init__(self, database_now: datetime) -> None:
        self.set(database_now)

    def set(self, database_now: datetime) -> None:
        """The database has said just now that it is `database_now`."""
        self._said, self._heard_at = database_now, _elapsed()

    def now(self) -> datetime:
        return self._said + timedelta(seconds=_elapsed() - self._heard_at)

    def deadline(self, duration: timedelta) -> datetime:
        """When `duration` is over."""
        try:
            return min(self.now() + duration, FAR_FUTURE)
        except OverflowError:
            return FAR_FUTURE


def _elapsed() -> float:
    """Seconds since some moment; also those in which the machine slept, if the system counts them."""
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)
