"""What calls of models have used, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, Literal, TypedDict
from uuid import UUID

from orchestrator_state.arguments import as_name, as_utc, as_uuid
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import text_of
from orchestrator_state.records.changes import dollars_of

UsageBy = Literal["run", "name", "user", "model", "day"]
_USAGE_BY: Final[tuple[UsageBy, ...]] = ("run", "name", "user", "model", "day")


class UsageFilters(TypedDict, total=False):
    """The filters of `store.usage`. What is counted passes all that are given."""

    workflow_state_id: UUID | str | None
    """Of this run."""
    workflow_id: str | None
    name: str | None
    """Of runs of this workflow name."""
    user_id: str | None
    model: str | None
    since: datetime | None
    """Recorded at this time or later, by the database's clock."""
    until: datetime | None
    """Recorded before this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """What calls of models have used: of all that was asked for, or of one group of it.

    Money is in US dollars, tokens are counted. What has failed is apart: it was used by calls of steps' functions that
    did not give the steps' results, because they failed, or were cancelled, and was paid for all the same.
    """

    workflow_state_id: UUID | None
    """By run: which. This and the next ones are None unless it is grouped by them."""
    workflow_id: str | None
    name: str | None
    user_id: str | None
    model: str | None
    day: date | None
    """In UTC."""
    calls: int
    """How often it was recorded."""
    input_tokens: int
    output_tokens: int
    cost: Decimal
    unpriced: int
    """How many of the calls, failed ones too, nobody knows the price of: they are not in the cost."""
    failed_calls: int
    failed_input_tokens: int
    failed_output_tokens: int
    failed_cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """What is asked for, checked."""

    by: tuple[UsageBy, ...]
    wanted: dict[str, str | UUID]
    """By column."""
    since: datetime | None
    until: datetime | None

    @classmethod
    def of(cls, by: object, filters: UsageFilters) -> UsageQuery:
        """Raises `InvalidPayload`, whose `path` names the argument."""
        if unknown := filters.keys() - UsageFilters.__annotations__.keys():
            raise TypeError(f"usage() got an unexpected keyword argument {min(unknown)!r}")
        given: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        since, until = (as_utc(given.pop(name), name) if name in given else None for name in ("since", "until"))
        wanted: dict[str, str | UUID] = {}
        for name, value in given.items():
            column = "workflow_name" if name == "name" else name
            wanted[column] = as_uuid(value, name) if name == "workflow_state_id" else as_name(value, name)
        return cls(by=_groups(by), wanted=wanted, since=since, until=until)


def _groups(by: object) -> tuple[UsageBy, ...]:
    if by is None:
        return ()
    several = list(by) if isinstance(by, Sequence) and not isinstance(by, str | bytes) else [by]
    names = [text_of(each) for each in several]
    if not all(name in _USAGE_BY for name in names):
        raise InvalidPayload(f"by must be one, or several, of {', '.join(_USAGE_BY)}", path="by")
    return tuple(each for each in _USAGE_BY if each in names)


def usage_total_of(row: Any) -> UsageTotal:
    """A row of sums, which the databases give as whole numbers of types of their own."""
    groups: dict[str, Any] = {name: getattr(row, name, None) for name in _GROUPS}
    cost, failed_cost = (dollars_of(int(nano)) or Decimal(0) for nano in (row.cost, row.failed_cost))
    sums: dict[str, Any] = {name: int(getattr(row, name)) for name in _SUMS}
    return UsageTotal(
        **groups,
        day=_day(getattr(row, "day", None)),
        cost=cost,
        failed_cost=failed_cost,
        **sums,
    )


_GROUPS: Final = ("workflow_state_id", "workflow_id", "name", "user_id", "model")
_SUMS: Final = (
    *("calls", "input_tokens", "output_tokens", "unpriced"),
    *("failed_calls", "failed_input_tokens", "failed_output_tokens"),
)


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except (TypeError, ValueError):  # SQLite keeps anything in any column
        return None
