"""The demo: two workers share a document pipeline; one is killed in the middle of a step, and the other finishes it."""

from orchestrator_state.demo.runner import run_demo

__all__ = ["run_demo"]
