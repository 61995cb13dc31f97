"""Questions of runs to people: what is asked, and whether an answer fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, TypedDict
from uuid import UUID, uuid5

from orchestrator_state.arguments import as_name, as_uuid
from orchestrator_state.domain import QuestionStatus
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import decode, encode, require_schema
from orchestrator_state.records.overview import cursor_after, place_after

ASKS: Final = "question:"
"""What the id of a step that asks begins with."""
_ANSWER: Final = "question:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question of a run to people, as `store.list_questions` and `store.get_question` return it."""

    id: UUID
    """What `store.answer` takes."""
    workflow_state_id: UUID
    workflow_id: str
    workflow_name: str
    user_id: str | None
    """Whose run it is that asks."""
    step_id: str
    """The step that waits for the answer, and will have it as its outputs."""
    name: str
    """As `run.ask` was given it."""
    prompt: Any = field(repr=False)
    """What is asked: any JSON value."""
    answer_schema: dict[str, Any] | None = field(repr=False)
    """The JSON schema that an answer has to fit. None: any JSON value does."""
    choices: tuple[Any, ...] | None = field(repr=False)
    """The answers that there are. None: they are not listed."""
    status: QuestionStatus
    is_withdrawn: bool
    """Whether its run is over, so that no answer is wanted any more."""
    asked_at: datetime
    expires_at: datetime | None
    closed_at: datetime | None
    """When it was answered, or found to have expired."""
    answered_by: str | None
    refused: str | None
    """Of one that is open again: why its run did not accept the last answer, which the schema had let pass."""
    unreadable: str | None
    """Why prompt, schema and choices are missing here: they are damaged, or this store has no key for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPage:
    """Some of the questions that were asked for."""

    questions: tuple[Question, ...]
    next: str | None
    """The `cursor` of the next page; None if this is the last."""

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    def __len__(self) -> int:
        return len(self.questions)


class QuestionFilters(TypedDict, total=False):
    """The filters of `store.list_questions`. A question that is listed passes all that are given."""

    name: str | None
    workflow_name: str | None
    """The name of the runs that ask."""
    workflow_state_id: UUID | str | None
    """The run that asks."""
    user_id: str | None
    """Whose runs ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionQuery:
    """The filters, checked."""

    status: QuestionStatus | None
    wanted: Mapping[str, str | UUID]
    """By filter."""

    @classmethod
    def of(cls, status: object, filters: QuestionFilters) -> QuestionQuery:
        """Raises `InvalidPayload`, whose `path` names the filter."""
        if unknown := filters.keys() - QuestionFilters.__annotations__.keys():
            raise TypeError(f"list_questions() got an unexpected keyword argument {min(unknown)!r}")
        wanted: dict[str, str | UUID] = {}
        for name, value in filters.items():
            if value is not None:
                wanted[name] = as_uuid(value, name) if name == "workflow_state_id" else as_name(value, name)
        if status is not None and status not in list(QuestionStatus):
            raise InvalidPayload(f"status must be one of {', '.join(QuestionStatus)}, or None", path="status")
        return cls(status=None if status is None else QuestionStatus(str(status)), wanted=wanted)

    def fingerprint(self, namespace: str) -> str:
        """The same for equal queries alone."""
        return repr(["questions", namespace, self.status and self.status.value, sorted(self.wanted.items(), key=str)])


def cursor_of(last: Question, fingerprint: str) -> str:
    """The cursor of the page after this question."""
    return cursor_after((last.asked_at.isoformat(), str(last.id)), fingerprint)


def place_of(cursor: str, fingerprint: str) -> tuple[datetime, UUID]:
    """When the last question of the page before was asked, and its id. Raises `InvalidPayload`."""
    asked_at, question_id = place_after(cursor, fingerprint)
    return datetime.fromisoformat(asked_at), UUID(question_id)


class AskedQuestion(NamedTuple):
    """What a run asks, as it is to be stored."""

    id: UUID
    step_id: str
    name: str
    text: str
    """What is asked, the schema and the choices, as JSON."""
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"AskedQuestion(id={self.id})"  # without the payload


def question_id_of(workflow_state_id: UUID, step_id: str) -> UUID:
    """The same for a step that asks, whichever worker has it."""
    return uuid5(workflow_state_id, f"question\0{step_id}")


def answer_signal(question_id: UUID) -> str:
    """The name of the signal that brings the answer."""
    return f"{_ANSWER}{question_id}"


def require_fit(text: str, asked: Mapping[str, Any]) -> None:
    """Raise `InvalidPayload`, which names the place, unless an answer fits what is asked; `text` is its JSON."""
    choices = asked["choices"]
    if choices is not None and text not in {encode(choice, "choices") for choice in choices}:
        raise InvalidPayload(f"the answer is none of the {len(choices)} choices of the question", path="answer")
    if asked["schema"] is not None:
        require_schema(decode(text, "answer"), asked["schema"])
