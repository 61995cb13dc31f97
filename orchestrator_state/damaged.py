"""Values that no sound cell holds: what an id and a moment read as that no driver can read, and where counts end.

An error of the driver's would hide the other rows of the page, and stop whoever asked for them. Who uses a row finds
out with `records.cells`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

# No clock and no library makes these two.
DAMAGED_TIME: Final = datetime(1, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
DAMAGED_ID: Final = UUID("dada0bad-0bad-0bad-0bad-0bad0bad0bad")
FURTHEST_COUNT: Final = 2**30
"""No run comes so far."""
