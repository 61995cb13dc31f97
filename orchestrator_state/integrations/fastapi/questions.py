"""The inbox of questions to people, over HTTP."""

from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict

from orchestrator_state.domain import QuestionStatus
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.integrations.fastapi.dependencies import Store
from orchestrator_state.records import Question, QuestionPage


class Answer(BaseModel):
    """An answer. Who gives it is not for the body to say."""

    model_config = ConfigDict(extra="forbid")

    value: Any


def questions_router(*, by: Callable[..., Any] | None) -> APIRouter:
    """Routes for the inbox: `GET /` lists questions, `GET /{id}` shows one, and `POST /{id}/answer` answers it.

    `by` is a dependency of the application's that says who sends the request, as a str, or refuses the request; each
    route has it. With None everybody may read and answer all questions, and no answer says who gave it: for a network
    that keeps strangers out by itself. Who may see which question is for the application to say, by a dependency in
    `include_router(…, dependencies=[…])`, or by routes of its own that call `store.list_questions` and `store.answer`.

    What goes wrong becomes an answer by `install_error_handlers`: 404 for a question that is not there, 409 for one
    that was answered before or is over, 422 for an answer that does not fit.
    """
    if by is not None and not callable(by):
        raise ConfigurationError(f"by is a {type(by).__name__}; give a dependency, or None for no authentication")
    sender = Depends(_nobody if by is None else by)
    router = APIRouter(tags=["questions"], dependencies=[sender])

    @router.get("")
    async def list_questions(
        store: Store,
        status: QuestionStatus | Literal["any"] = QuestionStatus.OPEN,
        name: str | None = None,
        workflow_name: str | None = None,
        workflow_state_id: UUID | None = None,
        user_id: str | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: str | None = None,
    ) -> QuestionPage:
        """The questions that pass all filters, the oldest first; `next` is the cursor of the next page."""
        return await store.list_questions(
            status=None if status == "any" else status,
            name=name,
            workflow_name=workflow_name,
            workflow_state_id=workflow_state_id,
            user_id=user_id,
            limit=limit,
            cursor=cursor,
        )

    @router.get("/{question_id}")
    async def get_question(store: Store, question_id: UUID) -> Question:
        """One question, whatever became of it."""
        return await store.get_question(question_id)

    @router.post("/{question_id}/answer", status_code=204)
    async def answer(store: Store, question_id: UUID, body: Answer, by: Any = sender) -> None:
        """Answer a question. The first answer that fits counts."""
        if by is not None and not isinstance(by, str):
            raise ConfigurationError(f"the dependency `by` returned a {type(by).__name__}; let it return a str")
        await store.answer(question_id, body.value, by=by)

    return router


async def _nobody() -> None:
    """Nobody asks who it is."""
