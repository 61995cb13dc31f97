"""Who drives a run."""

from orchestrator_state.execution.control import RunControl, cancel_run, send_signal
from orchestrator_state.execution.executor import Executor
from orchestrator_state.execution.health import Pulse, WorkerHealth, WorkerState
from orchestrator_state.execution.leases import Leaseholder, LeaseKeeper
from orchestrator_state.execution.recovery import RecoveredRun, Recovery, RecoveryReport
from orchestrator_state.execution.starting import WantedRun, start_pending, wanted_run

__all__ = [
    "Executor",
    "LeaseKeeper",
    "Leaseholder",
    "Pulse",
    "RecoveredRun",
    "Recovery",
    "RecoveryReport",
    "RunControl",
    "WantedRun",
    "WorkerHealth",
    "WorkerState",
    "cancel_run",
    "send_signal",
    "start_pending",
    "wanted_run",
]
