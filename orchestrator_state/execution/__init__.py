"""Who drives a run."""

from orchestrator_state.execution.control import RunControl
from orchestrator_state.execution.executor import Executor
from orchestrator_state.execution.health import Pulse, WorkerHealth
from orchestrator_state.execution.recovery import RecoveredRun, Recovery, RecoveryReport
from orchestrator_state.execution.starting import WantedRun

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
