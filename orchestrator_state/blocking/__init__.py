"""The store for code that blocks, in Flask, Celery, scripts and threads: `BlockingStore`."""

from orchestrator_state.blocking.runs import BlockingRun
from orchestrator_state.blocking.store import BlockingStore
from orchestrator_state.blocking.units import (
    BlockingCheckpoints,
    BlockingSteps,
    BlockingUnitOfWork,
    BlockingWorkflows,
)
from orchestrator_state.blocking.workers import BlockingWorker

__all__ = [
    "BlockingCheckpoints",
    "BlockingRun",
    "BlockingSteps",
    "BlockingStore",
    "BlockingUnitOfWork",
    "BlockingWorker",
    "BlockingWorkflows",
]
