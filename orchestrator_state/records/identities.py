"""Which columns hold payloads, and what each of them is called.

A payload's identity names its row and column. It is part of the digest and of what encryption authenticates, so that
a value that was moved to another place does not open there.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

Columns = dict[str, Any]
"""Values by the name of their column."""

# The first context is kept by copying `context` inside the database, so both columns have one identity.
WORKFLOW_PAYLOADS: Final = {"context": "context", "initial_context": "context", "result": "result", "error": "error"}
STEP_PAYLOADS: Final = ("outputs", "error", "context_patch")
PAYLOAD_COLUMNS: Final = {
    "workflow_states": tuple(WORKFLOW_PAYLOADS),
    "step_states": STEP_PAYLOADS,
    "checkpoints": ("snapshot",),
    "signals": ("payload",),
    "questions": ("question",),
}
NO_ERROR: Final[Columns] = {"error": None, "error_type": None}
"""Of a run that goes on, or has completed."""
# Error messages. The other columns hold JSON.
FREE_TEXTS: Final = frozenset({"error"})


def workflow_identity(workflow_state_id: UUID | str, column: str) -> str:
    return f"workflow_states/{workflow_state_id}/{WORKFLOW_PAYLOADS[column]}"


def step_identity(workflow_state_id: UUID | str, step_id: str, column: str) -> str:
    return f"step_states/{workflow_state_id}/{step_id}/{column}"


def question_identity(workflow_state_id: UUID | str, question_id: UUID | str) -> str:
    return f"questions/{workflow_state_id}/{question_id}/question"


def checkpoint_identity(workflow_state_id: UUID | str, checkpoint_id: UUID | str) -> str:
    return f"checkpoints/{workflow_state_id}/{checkpoint_id}/snapshot"
