"""What has come for runs that wait: one query for many of them, which locks and writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Select,
    SQLColumnExpression,
    and_,
    cast,
    literal_column,
    null,
    or_,
    select,
    union_all,
)

from orchestrator_state.models import SignalRow, WorkflowRow, workflow_states
from orchestrator_state.repositories.base import Repository, chunks
from orchestrator_state.repositories.claimable import IS_AWAKE, IS_FINISHED, IS_LEASED, IS_UNDER_WAY, LEASE_IS_FREE

_PARTS: Final = 8  # in one statement, with up to 500 ids each; both databases take 32,766 parameters
_NO_ID: Final = cast(null(), workflow_states.c.id.type)
_NO_TEXT: Final = cast(null(), workflow_states.c.request.type)
_IS_CLAIMABLE: Final = and_(IS_UNDER_WAY, LEASE_IS_FREE, IS_AWAKE)


@dataclass(slots=True)
class News:
    """What a look found."""

    signals: set[tuple[UUID, str]] = field(default_factory=set)
    """Run and name."""
    requests: dict[UUID, str] = field(default_factory=dict)
    ready: set[UUID] = field(default_factory=set)
    """Child runs that are finished, or wait for somebody to go on with them."""
    known: set[UUID] = field(default_factory=set)
    """Those child runs that there are: others have not been started yet, or were deleted."""
    owners: set[str] = field(default_factory=set)
    """The processes that have child runs under way."""
    claimed: set[UUID] = field(default_factory=set)
    """Those of the idle child runs that are leased to the owner who asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """What a process waits for."""

    runs: Collection[UUID]
    """All that wait: somebody may leave a request for them."""
    signalled: Collection[UUID]
    """Those that wait for a signal of one of `names`."""
    names: Collection[str]
    children: Collection[UUID]
    idle: Collection[UUID]
    """Child runs that are not under way with `owner`."""
    owner: UUID


class WaitRepository(Repository):
    """Looks on behalf of runs that wait."""

    async def look(self, awaited: Awaited) -> News:
        """What has come by now. One statement for up to 500 runs, each of which sees one snapshot."""
        news = News()
        parts = [
            *(self._signals(ids, awaited.names) for ids in chunks(list(awaited.signalled))),
            *(self._requests(ids) for ids in chunks(list(awaited.runs))),
            *(part for ids in chunks(list(awaited.children)) for part in self._children(ids)),
            *(self._claimed(ids, awaited.owner) for ids in chunks(list(awaited.idle))),
        ]
        for some in (parts[at : at + _PARTS] for at in range(0, len(parts), _PARTS)):
            for kind, run, text in await self._rows(union_all(*some)):
                _note(news, kind, run, text)
        return news

    async def list_statuses(self, ids: Collection[UUID]) -> dict[UUID, str]:
        """The statuses of those of these runs that there are: one statement for up to 500."""
        statuses: dict[UUID, str] = {}
        for some in chunks(list(ids)):
            query = select(WorkflowRow.id, WorkflowRow.status).where(
                WorkflowRow.namespace == self._namespace, WorkflowRow.id.in_(some)
            )
            statuses |= {row.id: row.status for row in await self._rows(query)}
        return statuses

    def _signals(self, ids: Sequence[UUID], names: Collection[str]) -> Select[Any]:
        query = _row("signal", SignalRow.workflow_state_id, SignalRow.name)
        return query.where(SignalRow.workflow_state_id.in_(ids), SignalRow.name.in_(sorted(names))).distinct()

    def _requests(self, ids: Sequence[UUID]) -> Select[Any]:
        query = _row("request", WorkflowRow.id, WorkflowRow.request)
        return query.where(WorkflowRow.id.in_(ids), WorkflowRow.request.is_not(None))

    def _children(self, ids: Sequence[UUID]) -> Sequence[Select[Any]]:
        return self._ready(ids), self._owners(ids), self._known(ids)

    def _ready(self, ids: Sequence[UUID]) -> Select[Any]:
        is_ready = or_(IS_FINISHED, _IS_CLAIMABLE)
        return _row("ready", WorkflowRow.id, _NO_TEXT).where(WorkflowRow.id.in_(ids), is_ready)

    def _owners(self, ids: Sequence[UUID]) -> Select[Any]:
        query = _row("owner", _NO_ID, WorkflowRow.lease_process)
        return query.where(WorkflowRow.id.in_(ids), IS_LEASED, WorkflowRow.lease_process.is_not(None)).distinct()

    def _claimed(self, ids: Sequence[UUID], owner: UUID) -> Select[Any]:
        query = _row("claimed", WorkflowRow.id, _NO_TEXT)
        return query.where(WorkflowRow.id.in_(ids), WorkflowRow.lease_owner == owner, IS_LEASED)

    def _known(self, ids: Sequence[UUID]) -> Select[Any]:
        return _row("known", WorkflowRow.id, _NO_TEXT).where(WorkflowRow.id.in_(ids))


def _row(kind: str, run: SQLColumnExpression[Any], text: SQLColumnExpression[Any]) -> Select[Any]:
    columns: Sequence[Any] = (literal_column(f"'{kind}'").label("kind"), run.label("run"), text.label("text"))
    return select(*columns)


def _note(news: News, kind: str, run: UUID, text: str) -> None:
    """`text` is something in a signal, a request and an owner alone."""
    if kind == "signal":
        news.signals.add((run, text))
    elif kind == "request":
        news.requests[run] = text
    elif kind == "ready":
        news.ready.add(run)
    elif kind == "known":
        news.known.add(run)
    elif kind == "claimed":
        news.claimed.add(run)
    else:
        news.owners.add(text)
