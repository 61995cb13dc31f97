"""Whether the process lives, whether it can serve, and how its worker is."""

from datetime import datetime, timedelta
from typing import Final

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration
from orchestrator_state.errors import StoreUnavailable
from orchestrator_state.execution import WorkerState
from orchestrator_state.integrations.fastapi.dependencies import Store
from orchestrator_state.integrations.fastapi.lifespan import provided_in
from orchestrator_state.runs import Duration

_LIMIT: Final = timedelta(seconds=2)
_WELL: Final = 200
_NOT_WELL: Final = 503


class Probe(BaseModel):
    """What `/live` and `/ready` say."""

    status: str
    error: str | None = None


class WorkerProbe(BaseModel):
    """What `Worker.health` says."""

    model_config = ConfigDict(from_attributes=True)

    is_well: bool
    state: WorkerState
    runs_under_way: int
    looked_at: datetime | None
    faults: int
    failing_since: datetime | None
    last_error: str | None


def health_router(*, timeout: Duration = _LIMIT) -> APIRouter:
    """Routes for probes: `/live`, `/ready` and `/worker`. None says what a stranger may not know.

    `/live` answers 200 as long as the process does, and asks nobody: restart it if not. `/ready` is 200 if the database
    answers within `timeout` (a duration, or seconds) and has the tables that this version works with, else 503: send
    requests elsewhere. `/worker` is `Worker.health()`: 200 if it is well, else 503, or 404 if the process has none.
    """
    limit = as_duration(timeout, "timeout")
    router = APIRouter(tags=["health"])

    @router.get("/live")
    async def live(response: Response) -> Probe:
        """Whether this process answers."""
        return Probe(status=_told(response, is_well=True))

    @router.get("/ready", responses={_NOT_WELL: {"model": Probe}})
    async def ready(response: Response, store: Store) -> Probe:
        """Whether its database answers in time, and has the right tables."""
        try:
            await store.health_check(limit)
        except StoreUnavailable as error:
            hooks.logger.warning("not ready (%s: %s)", type(error).__qualname__, error)
            return Probe(status=_told(response, is_well=False), error=type(error).__name__)
        return Probe(status=_told(response, is_well=True))

    @router.get("/worker", responses={_NOT_WELL: {"model": WorkerProbe}})
    async def worker(request: Request, response: Response) -> WorkerProbe:
        """Whether its worker works, and could look for work."""
        found = provided_in(request.app).worker
        if found is None:
            raise HTTPException(404, "this process has no worker")
        health = WorkerProbe.model_validate(found.health())
        _told(response, is_well=health.is_well)
        return health

    return router


def _told(response: Response, *, is_well: bool) -> str:
    response.headers["Cache-Control"] = "no-store"
    response.status_code = _WELL if is_well else _NOT_WELL
    return "ok" if is_well else "unavailable"
