"""How a command ends: its exit code, and what it says of an error."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from orchestrator_state.cli.tables import escaped
from orchestrator_state.errors import (
    Conflict,
    DecryptionFailed,
    InvalidPayload,
    NotFound,
    OrchestratorStateError,
    PayloadError,
    StoreUnavailable,
    UnknownCodec,
)


class ExitCode(IntEnum):
    """`docs/reference/command-line.md` says the same."""

    DONE = 0
    NO = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    PAYLOAD = 6
    OUTPUT = 7
    INTERRUPTED = 130
    CLOSED_PIPE = 141


_CODES: Final = (
    (StoreUnavailable, ExitCode.UNAVAILABLE),
    (NotFound, ExitCode.NOT_FOUND),
    (Conflict, ExitCode.CONFLICT),
    (InvalidPayload, ExitCode.USAGE),
    (PayloadError, ExitCode.PAYLOAD),
)
_MAY_HAVE_ACTED: Final = "; the command may have taken effect, or a part of it: look before you repeat it"
_NEEDS_APP: Final = (
    "; --app names how your application opens its store, with the keys, codecs and blobs that this takes"
)


def code_of(error: OrchestratorStateError) -> ExitCode:
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.NO)


def line_of(error: OrchestratorStateError) -> str:
    """What is said of an error, in one line that moves no cursor."""
    hint = ""
    if isinstance(error, StoreUnavailable) and error.outcome_unknown:
        hint = _MAY_HAVE_ACTED
    elif isinstance(error, UnknownCodec | DecryptionFailed):
        hint = _NEEDS_APP
    return escaped(f"error: {error}{hint}")
