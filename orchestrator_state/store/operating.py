"""What an operator sees of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack
from uuid import UUID

from orchestrator_state.arguments import as_duration, as_uuid
from orchestrator_state.records.overview import (
    STUCK_FOR,
    Attribute,
    CheckpointPage,
    RunDetails,
    RunFilters,
    RunPage,
    RunQuery,
    RunStats,
    UsageBy,
    UsageFilters,
    UsageQuery,
    UsageTotal,
    as_attributes,
    as_limit,
)
from orchestrator_state.runs import Duration
from orchestrator_state.store.base import StoreCalls


class OperatingCalls(StoreCalls):
    """See what a database holds, without a key, a blob store or a handler."""

    async def list_runs(self, *, limit: int = 50, cursor: str | None = None, **filters: Unpack[RunFilters]) -> RunPage:
        """Return up to `limit` (1 to 500) runs that pass all filters, the newest first, payloads left out.

        The filters are `status`, `condition`, `name`, `workflow_id`, `user_id`, `parent`, the times `started`,
        `updated` and `finished`, each as `(from, before)`, `attributes` and `error_contains`; see `RunFilters`. A run
        counts as stuck if no step of it has ended for longer than `stuck_for`. `page.next` is the `cursor` of the next
        page, for the same filters: what is started meanwhile is on no later page, and a run that moves is neither
        listed twice nor passed over.

        It opens no payload, so it works on an encrypted or damaged database too, and takes no lock. Raises
        `InvalidPayload` for a filter or a cursor that cannot be one.
        """
        query, most = RunQuery.of(filters), as_limit(limit)
        return await self._transactions.read(lambda uow: uow.overview.page(query, cursor, most))

    async def get_run(
        self,
        workflow_state_id: UUID | str,
        *,
        steps_limit: int = 100,
        steps_cursor: str | None = None,
        stuck_for: Duration = STUCK_FOR,
    ) -> RunDetails:
        """Return one run as `list_runs` does, and its last `steps_limit` (1 to 500) steps.

        `details.earlier` is the `steps_cursor` of the steps before these. It opens no payload either. A run is found by
        its id; `list_runs(workflow_id=...)` finds it by the application's name for it. Raises `WorkflowNotFound`, or
        `InvalidPayload` for an argument that cannot be one.
        """
        run, most = as_uuid(workflow_state_id, "workflow_state_id"), as_limit(steps_limit, "steps_limit")
        longest = as_duration(stuck_for, "stuck_for")
        return await self._transactions.read(lambda uow: uow.overview.get(run, longest, steps_cursor, most))

    async def set_attributes(self, workflow_state_id: UUID | str, /, **attributes: Attribute) -> None:
        """Set what a run, of any status, is to be found by; None takes an attribute away, and others stay.

        A run has at most 64 attributes and 4 KiB of them: texts, whole numbers of 64 bits, finite numbers up to 2**53,
        True and False. They are not encrypted. A worker that has the run is not disturbed. Raises `WorkflowNotFound`,
        `InvalidPayload` or `PayloadTooLarge`.
        """
        run, changes = as_uuid(workflow_state_id, "workflow_state_id"), as_attributes(attributes, "attributes")
        await self._transactions.write_once("attributes", lambda uow: uow.overview.set_attributes(run, changes))

    async def stats(self, *, stuck_for: Duration = STUCK_FOR) -> RunStats:
        """Count the unfinished runs of each status and condition, and the runs that ended within an hour and a day.

        It opens no payload, and takes as long however many runs ended before. `stuck_for` is as in `list_runs`.
        """
        longest = as_duration(stuck_for, "stuck_for")
        return await self._transactions.read(lambda uow: uow.overview.stats(longest))

    async def usage(
        self,
        by: UsageBy | Sequence[UsageBy] | None = None,
        *,
        limit: int = 100,
        **filters: Unpack[UsageFilters],
    ) -> tuple[UsageTotal, ...]:
        """Add up what `run.record_usage` has recorded: all of it in one total, or one for each group.

        `by` is `run`, `name`, `user`, `model` or `day` (in UTC), or a list of several. The groups that cost most come
        first, up to `limit` (1 to 500) of them; by day, the latest days. The filters are `workflow_state_id`,
        `workflow_id`, `name`, `user_id`, `model`, and the times `since` and `until`; see `UsageFilters`.

        Runs that were deleted still count, until their user is erased. Raises `InvalidPayload` for an argument that
        cannot be one.
        """
        query, most = UsageQuery.of(by, filters), as_limit(limit)
        return tuple(await self._transactions.read(lambda uow: uow.usage.totals(query, most)))

    async def list_checkpoints(
        self, workflow_state_id: UUID | str, *, limit: int = 50, cursor: str | None = None
    ) -> CheckpointPage:
        """Return up to `limit` (1 to 500) checkpoints of a workflow, the newest first, without their snapshots.

        `page.next` is the `cursor` of the next page. It opens no payload; `get_checkpoint` does. Raises
        `WorkflowNotFound`, or `InvalidPayload` for an argument that cannot be one.
        """
        run, most = as_uuid(workflow_state_id, "workflow_state_id"), as_limit(limit)
        return await self._transactions.read(lambda uow: uow.overview.checkpoints(run, cursor, most))
