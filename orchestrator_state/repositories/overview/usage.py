"""The SQL of what calls of models have used: added up, and deleted with all else that is known of a user."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, case, delete, exists, func, select

from orchestrator_state.database import utc_day
from orchestrator_state.models import UsageRow, WorkflowRow, run_usage
from orchestrator_state.records.overview import UsageQuery, UsageTotal, usage_total_of
from orchestrator_state.repositories.base import Repository, chunks, rowcount

_DELETED_AT_ONCE: Final = 5000
_u = run_usage.c
_GROUPS: Final[dict[str, tuple[ColumnElement[Any], ...]]] = {
    "run": (_u.workflow_state_id, _u.workflow_id),
    "name": (_u.workflow_name.label("name"),),
    "user": (_u.user_id,),
    "model": (_u.model,),
    "day": (utc_day(_u.recorded_at).label("day"),),
}


def _sum(column: ColumnElement[Any], *, failed: bool) -> ColumnElement[Any]:
    counted = _u.failed if failed else ~_u.failed
    return func.coalesce(func.sum(case((counted, column), else_=0)), 0)


def _sums() -> list[ColumnElement[Any]]:
    one = func.sum(case((_u.cost.is_(None), 1), else_=0))
    return [
        func.coalesce(func.sum(case((_u.failed, 0), else_=1)), 0).label("calls"),
        func.coalesce(func.sum(case((_u.failed, 1), else_=0)), 0).label("failed_calls"),
        func.coalesce(one, 0).label("unpriced"),
        *(
            _sum(column, failed=failed).label(f"failed_{column.name}" if failed else column.name)
            for column in (_u.input_tokens, _u.output_tokens, _u.cost)
            for failed in (False, True)
        ),
    ]


_SUMS: Final = _sums()


class UsageRepository(Repository):
    """What is recorded in the namespace."""

    async def totals(self, query: UsageQuery, limit: int) -> Sequence[UsageTotal]:
        """The groups that cost most come first; days come in their order, the latest first."""
        groups = [column for each in query.by for column in _GROUPS[each]]
        statement = select(*groups, *_SUMS).where(*self._conditions(query))
        if groups:
            day_first = [column.desc() for column in _GROUPS["day"]] if "day" in query.by else []
            spent = [func.coalesce(func.sum(_u.cost), 0).desc(), func.sum(_u.input_tokens + _u.output_tokens).desc()]
            plain = [column.element if hasattr(column, "element") else column for column in groups]
            statement = statement.group_by(*plain).order_by(*day_first, *spent, *plain).limit(limit)
        return [usage_total_of(row) for row in await self._rows(statement)]

    async def spent(self, run_id: UUID) -> tuple[int, int]:
        """What a run has spent, failed calls too: in billionths of a US dollar, and in tokens."""
        statement = select(
            func.coalesce(func.sum(_u.cost), 0), func.coalesce(func.sum(_u.input_tokens + _u.output_tokens), 0)
        ).where(_u.namespace == self._namespace, _u.workflow_state_id == run_id)
        cost, tokens = await self._row(statement)
        return int(cost), int(tokens)

    def _conditions(self, query: UsageQuery) -> list[ColumnElement[bool]]:
        found = [_u.namespace == self._namespace, *(_u[name] == value for name, value in query.wanted.items())]
        if query.since is not None:
            found.append(_u.recorded_at >= query.since)
        if query.until is not None:
            found.append(_u.recorded_at < query.until)
        return found

    async def count_of_user(self, user_id: str, besides: Collection[UUID]) -> int:
        """How many records there are of a user's runs, but for those of the runs `besides`."""
        of_user: Select[Any] = select(func.count()).where(_u.namespace == self._namespace, _u.user_id == user_id)
        [count] = await self._row(of_user)
        for chunk in chunks(sorted(besides)):
            [kept] = await self._row(of_user.where(_u.workflow_state_id.in_(chunk)))
            count -= kept
        return int(count)

    async def delete_of_user(self, user_id: str) -> int:
        """Delete records of a user's runs that are gone, up to some thousands of them; returns how many."""
        is_there = exists().where(
            WorkflowRow.id == UsageRow.workflow_state_id, WorkflowRow.namespace == UsageRow.namespace
        )
        ids = (
            select(UsageRow.id)
            .where(UsageRow.namespace == self._namespace, UsageRow.user_id == user_id, ~is_there)
            .limit(_DELETED_AT_ONCE)
        )
        return rowcount(await self._execute(delete(UsageRow).where(UsageRow.id.in_(ids))))


__all__ = ["UsageRepository"]
