"""What users of the package test their own workflows with: fixtures for pytest, a clock, and faults.

In the `conftest.py` of the tests:

    pytest_plugins = ["orchestrator_state.testing"]

PYTEST_DONT_REWRITE: the conftest may have imported it before, of which pytest would warn.
"""

from orchestrator_state.testing.clock import Clock
from orchestrator_state.testing.faults import Crashed, FaultNotMet, Faults
from orchestrator_state.testing.workers import RunsLeft, Workers

__all__ = [
    "Clock",
    "Crashed",
    "FaultNotMet",
    "Faults",
    "RunsLeft",
    "Workers",
]

pytest_plugins = ["orchestrator_state.testing.plugin"]
