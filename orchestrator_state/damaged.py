"""What a damaged id or time is read as, and from where on a count is taken for damage.

The driver would raise an error for such a cell, which would hide the other rows of the page. Whoever uses the row finds
the damage with `records.cells`.
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
