"""Tokens and money, checked before any SQL. Money is stored in whole billionths of a US dollar."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from orchestrator_state.errors import InvalidPayload

MOST_TOKENS: Final = 10**12
MOST_DOLLARS: Final = 10**6
_NANO: Final = Decimal(10**9)


def as_tokens(value: object, path: str) -> int:
    """Return a number of tokens. Raises `InvalidPayload`."""
    number = int.__int__(value) if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= number <= MOST_TOKENS:
        raise InvalidPayload(f"{path} must be a whole number from 0 to {MOST_TOKENS}", path=path)
    return number


def as_nano(value: object, path: str) -> int:
    """Return an amount of US dollars, a `Decimal`, an int or a float, in billionths. Raises `InvalidPayload`."""
    if isinstance(value, float):
        amount = Decimal(float.__repr__(value))  # the digits that it shows, and not those of its binary form
    elif isinstance(value, Decimal | int) and not isinstance(value, bool):
        amount = Decimal(value)
    else:
        raise InvalidPayload(
            f"{path} must be US dollars, as a Decimal, an int or a float, not a {type(value).__name__}", path=path
        )
    if not amount.is_finite() or not 0 <= amount <= MOST_DOLLARS:
        raise InvalidPayload(f"{path} must be US dollars from 0 to {MOST_DOLLARS}", path=path)
    return int((amount * _NANO).to_integral_value(ROUND_HALF_EVEN))
