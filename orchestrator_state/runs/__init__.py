"""What a handler holds."""

from orchestrator_state.runs.faults import NOT_THE_RUNS, fault_behind, pause_after
from orchestrator_state.runs.journal import CheckpointPolicy, Journal, RunRow
from orchestrator_state.runs.lookout import Lookout
from orchestrator_state.runs.retry import Retry
from orchestrator_state.runs.run import Duration, Handler, Happened, Run, child_run_id
from orchestrator_state.runs.stopping import StopSwitch, stopped_as
from orchestrator_state.runs.tasks import HANDLER, mark
from orchestrator_state.runs.types import RunTypes, as_of_today, bring_up_to_date
from orchestrator_state.runs.waiting import Exits, WaitingRoom
from orchestrator_state.runs.writer import Writer

__all__ = [
    "HANDLER",
    "NOT_THE_RUNS",
    "CheckpointPolicy",
    "Duration",
    "Exits",
    "Handler",
    "Happened",
    "Journal",
    "Lookout",
    "Retry",
    "Run",
    "RunRow",
    "RunTypes",
    "StopSwitch",
    "WaitingRoom",
    "Writer",
    "as_of_today",
    "bring_up_to_date",
    "child_run_id",
    "fault_behind",
    "mark",
    "pause_after",
    "stopped_as",
]
