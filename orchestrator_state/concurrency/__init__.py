"""Tasks, threads and processes: what asyncio leaves to its users."""

from orchestrator_state.concurrency.aside import LONG, Aside
from orchestrator_state.concurrency.event_loops import require_own_loop, running_loop
from orchestrator_state.concurrency.locks import ProcessLock
from orchestrator_state.concurrency.processes import ProcessIdentity
from orchestrator_state.concurrency.signals import on_signals
from orchestrator_state.concurrency.task_contexts import context_of
from orchestrator_state.concurrency.threads import Threads
from orchestrator_state.concurrency.turns import Turns
from orchestrator_state.concurrency.uninterrupted import Unstoppable, outlasting, settled, uninterrupted
from orchestrator_state.concurrency.user_code import Outcome, Returned, awaitable, call_apart, outcome_of

__all__ = [
    "LONG",
    "Aside",
    "Outcome",
    "ProcessIdentity",
    "ProcessLock",
    "Returned",
    "Threads",
    "Turns",
    "Unstoppable",
    "awaitable",
    "call_apart",
    "context_of",
    "on_signals",
    "outcome_of",
    "outlasting",
    "require_own_loop",
    "running_loop",
    "settled",
    "uninterrupted",
]
