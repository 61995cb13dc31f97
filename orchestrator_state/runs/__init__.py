"""What a handler holds."""

from orchestrator_state.runs.calls import Retry, is_async
from orchestrator_state.runs.faults import Faults
from orchestrator_state.runs.journal.checkpoints import CheckpointPolicy
from orchestrator_state.runs.journal.current_steps import CurrentSteps
from orchestrator_state.runs.journal.group_commit import GroupCommit
from orchestrator_state.runs.journal.journal import Journal
from orchestrator_state.runs.run import ChildOptions, Handler, Run, State, call_handler
from orchestrator_state.runs.spending.budgets import Budget
from orchestrator_state.runs.step_calls import Duration, StepOptions
from orchestrator_state.runs.steps import Happened, Steps
from orchestrator_state.runs.stopping import NOT_THE_RUNS, StopSwitch, fault_behind, pause_after, stopped_as
from orchestrator_state.runs.telling import Telling
from orchestrator_state.runs.types import RunTypes
from orchestrator_state.runs.versions import as_of_today, bring_up_to_date
from orchestrator_state.runs.waiting.budgets import BudgetGuard
from orchestrator_state.runs.waiting.exits import Exits
from orchestrator_state.runs.waiting.lookout import Lookout
from orchestrator_state.runs.waiting.room import WaitingRoom
from orchestrator_state.runs.waiting.waits import StartChild, child_run_id

__all__ = [
    "NOT_THE_RUNS",
    "Budget",
    "BudgetGuard",
    "CheckpointPolicy",
    "ChildOptions",
    "CurrentSteps",
    "Duration",
    "Exits",
    "Faults",
    "GroupCommit",
    "Handler",
    "Happened",
    "Journal",
    "Lookout",
    "Retry",
    "Run",
    "RunTypes",
    "StartChild",
    "State",
    "StepOptions",
    "Steps",
    "StopSwitch",
    "Telling",
    "WaitingRoom",
    "as_of_today",
    "bring_up_to_date",
    "call_handler",
    "child_run_id",
    "fault_behind",
    "is_async",
    "pause_after",
    "stopped_as",
]
