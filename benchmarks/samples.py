"""The workflows that are measured: what a pipeline of language model calls leaves behind."""

from __future__ import annotations

from base64 import b64encode
from random import Random
from typing import Any

from orchestrator_state import StepState, WorkflowState

_SENTENCE = "The quarterly report names three risks, and the second of them is new. "


def output(size: int, seed: int = 0) -> dict[str, Any]:
    """A step's output of about `size` bytes as JSON: an answer, and what the model says about it."""
    about = {
        "model": "small-1",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 512 + seed, "completion_tokens": size // 4, "cost": 0.00125},
        "scores": [0.25, 0.5, seed],
    }
    room = max(0, size - 160)
    return about | {"text": (_SENTENCE * (room // len(_SENTENCE) + 1))[:room]}


def records(size: int) -> dict[str, Any]:
    """A step's output of about `size` bytes as JSON: what a search found, many small values in many containers."""
    found = [
        {
            "id": f"document-{index}",
            "score": 0.9 - index / 64,
            "tags": ["finance", "risk"],
            "source": {"page": index, "language": "en", "is_cited": index % 2 == 0, "next": None},
            "excerpt": _SENTENCE,
        }
        for index in range(size // 215)
    ]
    return {"query": "risks of the quarter", "found": found, "usage": {"tokens": 512, "cost": 0.00125}}


def incompressible(size: int, seed: int) -> str:
    """Text that no database makes smaller, for where bytes are counted; the same for the same seed."""
    return b64encode(Random(seed).randbytes(size)).decode()[:size]


def workflow(number: int, *, steps: int, output_size: int) -> WorkflowState:
    """A running workflow, all of whose steps but the last are completed."""
    state = WorkflowState(
        workflow_id=f"report-{number}",
        workflow_name="Quarterly report",
        user_id=f"user-{number % 100}",
        context={"inputs": {"document": f"reports/{number}.txt", "language": "en"}, "results": {}},
    )
    state.mark_running()
    for index in range(steps):
        step = state.steps[f"step-{index}"] = StepState(step_id=f"step-{index}")
        step.mark_running()
        if index < steps - 1:
            step.mark_completed(output(output_size, index))
    return state
