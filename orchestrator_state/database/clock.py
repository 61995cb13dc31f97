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
    """Set with each claim and renewal, so that it is right to some milliseconds.

    Or to as long as the answer was on its way: the database waits for locks, and a process may stand still before it
    hears. It spoke at some moment between, and no time limit is to end early whichever that was. So the present is
    never later than it is, and what begins now is taken to begin as late as that may be.
    """

    def __init__(self, database_now: datetime, asked_at: float) -> None:
        self.set(database_now, asked_at)

    def set(self, database_now: datetime, asked_at: float) -> None:
        """The database has said that it is `database_now`, since it was asked at `asked_at` by `elapsed`."""
        self._said, self._heard_at = database_now, elapsed()
        self._took = self._heard_at - asked_at

    def now(self) -> datetime:
        """At least."""
        return self._said + timedelta(seconds=elapsed() - self._heard_at)

    def deadline(self, duration: timedelta) -> datetime:
        """When `duration` is over, at the latest."""
        try:
            return min(self.now() + timedelta(seconds=self._took) + duration, FAR_FUTURE)
        except OverflowError:
            return FAR_FUTURE


def elapsed() -> float:
    """Seconds since some moment; also those in which the machine slept, if the system counts them."""
    boot_time: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)
