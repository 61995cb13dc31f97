"""Who drives a run."""

from orchestrator_state.execution.control import RunControl
from orchestrator_state.execution.executor import Executor, WantedRun
from orchestrator_state.execution.health import Pulse, WorkerHealth
from orchestrator_state.execution.recovery import RecoveredRun, Recovery, RecoveryReport

__all__ = [
    "Executor",
    "Pulse",
    "RecoveredRun",
    "Recovery",
    "RecoveryReport",
    "RunControl",
    "WantedRun",
    "WorkerHealth",
]
