"""Values that no argument is meant to have, some of which fail whatever is done with them."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from orchestrator_state import ConfigurationError, InvalidPayload, OrchestratorStateError
from tests.support.workflows import nested


def fails(*_: Any) -> Any:
    raise ZeroDivisionError


class Odder:
    """It must not be compared, nor printed."""

    __hash__ = None  # type: ignore[assignment]
    __eq__ = __bool__ = fails

    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


class OddInt(int):
    __str__ = __repr__ = __eq__ = __hash__ = __index__ = __int__ = __bool__ = __lt__ = __gt__ = fails


class OddText(str):  # noqa: SLOT000
    __str__ = __repr__ = __eq__ = __hash__ = __len__ = __contains__ = __format__ = isascii = fails
    encode = fails  # type: ignore[assignment]


class OddId(UUID):
    __str__ = __repr__ = __eq__ = __hash__ = __int__ = __lt__ = fails


class OddDate(datetime):
    astimezone = fails  # type: ignore[assignment]


class Array:
    """Compared and looked at as numpy's are."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise ValueError

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        return [1.0][place]


ODD: list[Any] = [
    *(None, -1, 0, 1.5, 10**30, math.nan, math.inf, True, b"bytes", "", "x" * 300, "a\0b", "\ud800"),
    *(object(), [], {}, (), datetime(2020, 1, 1), timedelta(-1), timedelta.max, int),  # noqa: DTZ001
    *(Decimal(1), Decimal("sNaN"), [[]], nested(2000), Array(), OddDate(2020, 1, 1, tzinfo=UTC), iter([[]])),
]


def but(*allowed: Any) -> list[Any]:
    """Odd values, but those of these types."""
    kept = [value for value in ODD if type(value) not in allowed]
    return kept if float in allowed else [*kept, OddInt(3), Odder()]


async def refused(call: Callable[[], Any], about: str) -> OrchestratorStateError:
    try:
        made = call()
        if isinstance(made, Awaitable):
            await asyncio.wait_for(made, 10)
    except (ConfigurationError, InvalidPayload) as error:
        return error
    raise AssertionError(f"{about} was taken")
