"""A store, its worker, health, questions and errors in an application of FastAPI's."""

from orchestrator_state.errors import MissingExtra

try:
    from orchestrator_state.integrations.fastapi.dependencies import (
        Session,
        Store,
        Uow,
        get_session,
        get_store,
        get_unit_of_work,
    )
    from orchestrator_state.integrations.fastapi.health import health_router
    from orchestrator_state.integrations.fastapi.lifespan import OrchestratorState, provide
    from orchestrator_state.integrations.fastapi.problems import install_error_handlers
    from orchestrator_state.integrations.fastapi.questions import questions_router
except ModuleNotFoundError as error:
    if error.name not in ("fastapi", "starlette"):
        raise
    message = "routes and dependencies for FastAPI need it: pip install 'orchestrator-state[fastapi]'"
    raise MissingExtra(message, extra="fastapi") from error

__all__ = [
    "OrchestratorState",
    "Session",
    "Store",
    "Uow",
    "get_session",
    "get_store",
    "get_unit_of_work",
    "health_router",
    "install_error_handlers",
    "provide",
    "questions_router",
]
