"""The clock of this machine, set wrong for the package alone."""

import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator_state import domain


def set_wall_clock(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Move what the package takes for the present by so much, wherever it reads it. Not the monotonic clock.

    `datetime.now` cannot be replaced: so `utc_now` is, in each module that has it. May be called again.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("orchestrator_state.")]
    readers = [module for module in modules if hasattr(module, "utc_now")]
    assert domain in readers
    assert len(readers) > 1, "the package reads the clock elsewhere"
    for module in readers:
        monkeypatch.setattr(module, "utc_now", lambda: datetime.now(UTC) + by)
    monkeypatch.setattr(time, "time", lambda: datetime.now(UTC).timestamp() + by.total_seconds())
