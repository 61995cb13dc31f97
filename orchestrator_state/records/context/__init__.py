"""The context of a run: what handlers change in it, and how that is recorded."""

from orchestrator_state.records.context.held import (
    Decoded,
    Encoded,
    LongValues,
    PlainContext,
    TypedContext,
    decoded,
    join,
    split,
)
from orchestrator_state.records.context.history import ContextChange, ContextHistory, Look, converted
from orchestrator_state.records.context.patches import Patch, applicable

__all__ = [
    "ContextChange",
    "ContextHistory",
    "Decoded",
    "Encoded",
    "LongValues",
    "Look",
    "Patch",
    "PlainContext",
    "TypedContext",
    "applicable",
    "converted",
    "decoded",
    "join",
    "split",
]
