"""What an operator sees of runs. It reads no payload, and locks nothing; what it writes are attributes.

A page is a few statements, each of which sees one snapshot: a run that is deleted between two of them is shown as the
first one saw it, without its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BindParameter, Select, bindparam, case, func, select, type_coerce, update
from sqlalchemy.orm import aliased

from orchestrator_state.column_types import StoredIdentifier
from orchestrator_state.database import moment_key
from orchestrator_state.domain import ACTIVE
from orchestrator_state.models import (
    CheckpointRow,
    CurrentStepRow,
    SignalRow,
    StepRow,
    WorkflowRow,
    checkpoints,
    signals,
    step_states,
    workflow_states,
)
from orchestrator_state.records import CELLS, FINAL, is_id
from orchestrator_state.records.overview import (
    MOST_BESIDE,
    NOTHING_BESIDE,
    Attribute,
    CheckpointPage,
    RunDetails,
    RunPage,
    RunQuery,
    RunStats,
    RunSummary,
    SurroundingRows,
    Surroundings,
    checkpoint_summary_of,
    cursor_after,
    details_of,
    fingerprint_of_checkpoints,
    fingerprint_of_steps,
    finished_count_of,
    merged,
    place_after,
    require_small,
    step_summary_of,
    summary_of,
    unfinished_count_of,
)
from orchestrator_state.repositories.base import Repository
from orchestrator_state.repositories.claimable import IS_LEASED
from orchestrator_state.repositories.overview.checkpoints import checkpoints_of
from orchestrator_state.repositories.overview.condition import HAS_ENDED, IS_RUNNING, WAKES_AT, condition
from orchestrator_state.repositories.overview.counting import FINISHED_LATELY, unfinished
from orchestrator_state.repositories.overview.pages import Place, page_of
from orchestrator_state.repositories.overview.timelines import bytes_in, timeline

_child: Final = aliased(WorkflowRow, name="child")


_OF_CHECKPOINTS: Final = (
    select(func.coalesce(func.sum(bytes_in(checkpoints)), 0))
    .where(CheckpointRow.workflow_state_id == WorkflowRow.id)
    .correlate(WorkflowRow)
    .scalar_subquery()
)
_CELLS: Final = tuple(getattr(WorkflowRow, name) for name in CELLS["workflow_states"])


def _summaries(stuck_for: timedelta) -> Select[Any]:
    return select(
        *_CELLS,
        condition(stuck_for).label("condition"),
        WAKES_AT.label("wakes_at"),
        (bytes_in(workflow_states) + _OF_CHECKPOINTS).label("own_bytes"),
        moment_key(WorkflowRow.started_at).label("started_key"),
        type_coerce(WorkflowRow.id, StoredIdentifier).label("id_key"),
    )


_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)


def _numbered(run: Any, order: Sequence[Any], rows: Any) -> Any:
    """At most 100 of the rows of each run."""
    number = func.row_number().over(partition_by=run, order_by=order).label("number")
    numbered = rows.add_columns(number).where(run.in_(_IDS)).subquery()
    return select(numbered).where(numbered.c.number <= MOST_BESIDE)


_BESIDE: Final[Mapping[str, Any]] = {
    "current": _numbered(
        CurrentStepRow.workflow_state_id,
        (CurrentStepRow.started_at, CurrentStepRow.step_id),
        select(CurrentStepRow.workflow_state_id, CurrentStepRow.step_id, CurrentStepRow.started_at)
        .join(WorkflowRow, WorkflowRow.id == CurrentStepRow.workflow_state_id)
        .where(WorkflowRow.lease_token == CurrentStepRow.lease_token, IS_LEASED, ~HAS_ENDED),
    ),
    "running": _numbered(
        StepRow.workflow_state_id,
        (StepRow.started_at, StepRow.step_id),
        select(StepRow.workflow_state_id, StepRow.step_id, StepRow.started_at, StepRow.kind, StepRow.waits_until).where(
            IS_RUNNING
        ),
    ),
    "children": _numbered(
        _child.parent_id,
        (_child.started_at, _child.id),
        select(_child.parent_id.label("workflow_state_id"), _child.id.label("child"))
        .join(WorkflowRow, WorkflowRow.id == _child.parent_id)
        .where(_child.namespace == WorkflowRow.namespace, _child.status.in_(sorted(ACTIVE))),
    ),
    "signals": select(
        SignalRow.workflow_state_id,
        SignalRow.name,
        func.count().label("number"),
        func.sum(bytes_in(signals)).label("stored_bytes"),
    )
    .where(SignalRow.workflow_state_id.in_(_IDS))
    .group_by(SignalRow.workflow_state_id, SignalRow.name)
    .order_by(SignalRow.workflow_state_id, SignalRow.name),
    "steps": select(
        StepRow.workflow_state_id,
        func.count().label("number"),
        func.sum(case((StepRow.status.in_(sorted(FINAL)), 1), else_=0)).label("finished"),
        func.sum(bytes_in(step_states)).label("stored_bytes"),
    )
    .where(StepRow.workflow_state_id.in_(_IDS))
    .group_by(StepRow.workflow_state_id),
}
"""By kind, what `SurroundingRows` is made of."""


class OverviewRepository(Repository):
    """Runs as an operator sees them."""

    async def page(self, query: RunQuery, cursor: str | None, limit: int) -> RunPage:
        """The next runs. Raises `InvalidPayload` for a cursor of another query."""
        fingerprint = query.fingerprint(self._namespace)
        after = None if cursor is None else self._place(place_after(cursor, fingerprint))
        page = page_of(query, self._namespace, after, limit + 1)
        statement = (
            _summaries(query.stuck_for)
            .join_from(page, WorkflowRow, WorkflowRow.id == page.c.id)
            .order_by(page.c.started_at.desc(), page.c.id.desc())
        )
        rows = await self._rows(statement)
        shown = rows[:limit]
        last = cursor_after((shown[-1].started_key, shown[-1].id_key), fingerprint) if len(rows) > limit else None
        return RunPage(runs=tuple(await self._summaries_of(shown)), next=last)

    async def get(self, run: UUID, stuck_for: timedelta, cursor: str | None, steps: int) -> RunDetails:
        """One run, with its last `steps` steps, or those before a cursor of its timeline."""
        fingerprint = fingerprint_of_steps(self._namespace, run)
        before = None if cursor is None else place_after(cursor, fingerprint, "steps_cursor")
        of_id = (WorkflowRow.id == run, WorkflowRow.namespace == self._namespace)
        found = await self._summaries_of(await self._rows(_summaries(stuck_for).where(*of_id)))
        if not found:
            raise self._workflow_not_found(run)
        rows = await self._rows(timeline(run, before, steps + 1, on_sqlite=self._dialect == "sqlite"))
        shown = rows[:steps]
        earlier = cursor_after((shown[-1].position, shown[-1].step_id), fingerprint) if len(rows) > steps else None
        return details_of(found[0], [step_summary_of(row) for row in reversed(shown)], earlier)

    async def set_attributes(self, run: UUID, changes: Mapping[str, Attribute]) -> None:
        """Merge `changes` into a run's attributes, of which None takes one away.

        Nothing else of the row changes: neither its version, by which its owner knows it, nor when it was last updated.
        """
        of_id = (WorkflowRow.id == run, WorkflowRow.namespace == self._namespace)
        row = await self._row(select(WorkflowRow.attributes).where(*of_id).with_for_update(key_share=True))
        if row is None:
            raise self._workflow_not_found(run)
        attributes = merged(row.attributes if isinstance(row.attributes, dict) else {}, changes)
        require_small(attributes, "attributes")
        await self._execute(update(WorkflowRow).where(*of_id).values(attributes=attributes or None))

    async def checkpoints(self, run: UUID, cursor: str | None, limit: int) -> CheckpointPage:
        """The next checkpoints of one workflow. Raises `WorkflowNotFound`."""
        fingerprint = fingerprint_of_checkpoints(self._namespace, run)
        after = None if cursor is None else place_after(cursor, fingerprint)
        of_id = (WorkflowRow.id == run, WorkflowRow.namespace == self._namespace)
        if await self._row(select(WorkflowRow.id).where(*of_id)) is None:
            raise self._workflow_not_found(run)
        rows = await self._rows(checkpoints_of(run, after, limit + 1, on_sqlite=self._dialect == "sqlite"))
        shown = rows[:limit]
        last = cursor_after((shown[-1].number, shown[-1].id_key), fingerprint) if len(rows) > limit else None
        return CheckpointPage(checkpoints=tuple(map(checkpoint_summary_of, shown)), next=last)

    async def stats(self, stuck_for: timedelta) -> RunStats:
        """How many unfinished runs there are, and how many ended lately."""
        of_namespace = {"namespace": self._namespace}
        under_way = await self._rows(unfinished(stuck_for), of_namespace)
        over = await self._rows(FINISHED_LATELY, of_namespace)
        return RunStats(
            unfinished=tuple(map(unfinished_count_of, under_way)), finished=tuple(map(finished_count_of, over))
        )

    def _place(self, cells: tuple[Any, ...]) -> Place:
        started_at, run = cells
        return (started_at, run) if self._dialect == "sqlite" else (started_at, UUID(run))

    async def _summaries_of(self, rows: Sequence[Any]) -> list[RunSummary]:
        around = await self._around([row.id for row in rows if is_id(row.id)])
        return [summary_of(row, around.get(row.id, NOTHING_BESIDE)) for row in rows]

    async def _around(self, ids: Sequence[UUID]) -> dict[UUID, Surroundings]:
        """What other rows say of these runs."""
        if not ids:
            return {}
        found = SurroundingRows()
        for kind, statement in _BESIDE.items():
            for row in await self._rows(statement, {"ids": ids}):
                found.add(kind, row)
        return found.of_runs()
