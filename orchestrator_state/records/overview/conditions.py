"""How a run is, which its status does not tell: what hangs, what sleeps and what was killed is all `running`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from orchestrator_state.domain import ACTIVE, FINISHED, WorkflowStatus


class RunCondition(StrEnum):
    """How a run is, as far as the database can tell."""

    OWNED = "owned"
    """A worker has it, and one of its steps ended not long ago."""
    STUCK = "stuck"
    """A worker has it, renews its lease, and no step has ended for longer than `stuck_for`."""
    WAITING = "waiting"
    """It waits for a signal, an answer or a child run. A worker may have it; nothing else of it is under way."""
    ASLEEP = "asleep"
    """It is due at a time that is to come: it sleeps, or it was let go because of a fault."""
    ABANDONED = "abandoned"
    """Its worker vanished: the lease is over, and nobody has taken it since."""
    RUNNABLE = "runnable"
    """It may go on now, as soon as a worker takes it."""
    PAUSED = "paused"
    FINISHED = "finished"
    """Completed, failed or cancelled."""


_UNDER_WAY: Final = frozenset({WorkflowStatus.RUNNING})
STATUSES: Final[Mapping[RunCondition, frozenset[WorkflowStatus]]] = {
    # By hand a lease may be put on any run, and a sleep too.
    **dict.fromkeys(RunCondition, ACTIVE - {WorkflowStatus.PAUSED}),
    RunCondition.ABANDONED: _UNDER_WAY,
    RunCondition.PAUSED: frozenset({WorkflowStatus.PAUSED}),
    RunCondition.FINISHED: FINISHED,
}
"""The statuses that go with each condition."""
