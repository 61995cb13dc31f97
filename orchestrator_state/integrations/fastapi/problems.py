"""Our errors as answers to who sent the request."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import UUID

from fastapi import FastAPI, Request, Response

from orchestrator_state import hooks
from orchestrator_state.errors import (
    Conflict,
    InvalidPayload,
    NotFound,
    OrchestratorStateError,
    PayloadTooLarge,
    RunFailed,
    StoreUnavailable,
)

# The first that fits: an `AccessLost` is a `ConfigurationError` too.
_STATUS: Final[tuple[tuple[type[OrchestratorStateError], int], ...]] = (
    (StoreUnavailable, 503),
    (NotFound, 404),
    (Conflict, 409),
    (InvalidPayload, 422),
    (PayloadTooLarge, 413),
)
_RETRY_AFTER: Final = "2"  # seconds; the store has tried for `retry_timeout` by then
_IDS: Final = ("workflow_state_id", "workflow_id", "step_id", "checkpoint_id", "question_id")
_SAID: Final = (*_IDS, "path", "expected", "found")
# What is not the sender's to mend is for the log. And what a run failed of is quoted from it.
_INSTEAD: Final = {
    500: "the server cannot do this; its log says why",
    503: "the database is not available; try again later",
}
_RUN_FAILED: Final = "the run failed"


def install_error_handlers(app: FastAPI) -> None:
    """Answer with a status, and a body of JSON, where a route or a dependency lets one of our errors through.

    | error | status |
    | --- | --- |
    | `NotFound` | 404 |
    | `Conflict` | 409 |
    | `PayloadTooLarge` | 413 |
    | `InvalidPayload` | 422 |
    | `StoreUnavailable` | 503, with `Retry-After` |
    | any other: `ConfigurationError`, a stored payload that cannot be read | 500 |

    The body has the class as `error`, the message as `detail`, and the ids that the error is about. What is behind a
    500 or a 503 is written to the log, with the logger `orchestrator_state`, and not told. A handler that the
    application adds for one of these classes goes before.
    """
    app.add_exception_handler(OrchestratorStateError, _respond)


async def _respond(_: Request, error: Exception) -> Response:
    if not isinstance(error, OrchestratorStateError):
        raise error
    status = _status(error)
    if status == 500:
        hooks.logger.error("a request failed (%s)", type(error).__qualname__, exc_info=error)
    elif status == 503:
        hooks.logger.warning("a request failed (%s: %s)", type(error).__qualname__, error)
    body = {"error": type(error).__name__, "detail": _detail(error, status)} | _about(error, status)
    headers = {"Retry-After": _RETRY_AFTER} if status == 503 else None
    # Escaped, since an id may hold what no answer can be encoded with.
    return Response(json.dumps(body), status, headers, "application/json")


def _status(error: OrchestratorStateError) -> int:
    if isinstance(error, PayloadTooLarge) and error.is_stored:
        return 500
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def _detail(error: OrchestratorStateError, status: int) -> str:
    return _INSTEAD.get(status) or (_RUN_FAILED if isinstance(error, RunFailed) else str(error))


def _about(error: OrchestratorStateError, status: int) -> dict[str, Any]:
    said: dict[str, Any] = {
        name: str(value) if isinstance(value, UUID) else value
        for name in (_SAID if status < 500 else _IDS)
        if isinstance(value := error.about.get(name), UUID | str | int)
    }
    if isinstance(error, StoreUnavailable) and error.outcome_unknown:
        said["outcome_unknown"] = True
    return said
