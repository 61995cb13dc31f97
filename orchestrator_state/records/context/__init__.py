"""The context of a run: what handlers change in it, and how that is recorded."""

from orchestrator_state.records.context.changes.encoded import Decoded, Encoded, decoded, join, split
from orchestrator_state.records.context.conversion import converted
from orchestrator_state.records.context.held import LongValues, PlainContext, TypedContext
from orchestrator_state.records.context.history import ContextHistory
from orchestrator_state.records.context.looks import ContextChange, Look
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
