"""The calls that changed something: each leaves its id in the transaction of its effect, so that it is done once.

When the answer to a COMMIT is lost, nobody knows whether the call took effect. Its repetition brings the same id: if
that is there, the attempt before took effect, and there is nothing to do. An attempt that is still on its way holds the
id: the repetition waits until it has ended, one way or the other.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Final
from uuid import UUID

from sqlalchemy import Float, Insert, delete, literal, select

from orchestrator_state.database import conflict_aware_insert, database_now, database_time_in
from orchestrator_state.models import RequestRow, requests
from orchestrator_state.repositories.base import Repository, rowcount

KEPT: Final = timedelta(days=1)
"""Far longer than any call repeats itself, or a network holds back what was sent."""
MOST_AT_ONCE: Final = 500
RETENTION_TURN: Final = "retention"
RETENTION_SUCCESS: Final = "retained"
_LASTING: Final = (RETENTION_TURN, RETENTION_SUCCESS)
"""Of these the one row of a namespace is renewed."""
# In a subquery of its own: Postgres looks nothing up in an index for a function that changes while it looks.
_AGO: Final = literal(-KEPT.total_seconds(), Float)


@cache
def _note_call(dialect: str) -> Insert:
    return conflict_aware_insert(dialect, requests).values(made_at=database_now()).on_conflict_do_nothing()


class CallRepository(Repository):
    """The ids of calls, in the transaction of a session."""

    async def note(self, call_id: UUID, kind: str) -> bool:
        """Note that the call of that id takes effect with this transaction; False if an earlier attempt of it has."""
        values = {"id": call_id, "namespace": self._namespace, "kind": kind}
        return rowcount(await self._execute(_note_call(self._dialect), values)) == 1

    async def forget_old(self) -> int:
        """Delete up to 500 ids that are older than a day, whosever they are; returns how many."""
        old = (
            select(RequestRow.id)
            .where(
                RequestRow.made_at < select(database_time_in(_AGO)).scalar_subquery(), RequestRow.kind.not_in(_LASTING)
            )
            .order_by(RequestRow.made_at)
            .limit(MOST_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        return rowcount(await self._execute(delete(RequestRow).where(RequestRow.id.in_(old))))
