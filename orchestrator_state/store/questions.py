"""What runs ask people, and the answers."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack
from uuid import UUID, uuid4

from orchestrator_state.arguments import as_stored_name, as_uuid
from orchestrator_state.domain import ACTIVE, QuestionStatus
from orchestrator_state.errors import QuestionClosed, QuestionNotFound, concerning
from orchestrator_state.records import (
    Question,
    QuestionFilters,
    QuestionPage,
    QuestionQuery,
    SignalPlace,
    answer_signal,
    cursor_of,
    place_of,
    require_fit,
)
from orchestrator_state.records.overview import as_limit
from orchestrator_state.store.base import StoreCalls
from orchestrator_state.transactions import StoreUnit


class QuestionCalls(StoreCalls):
    """The inbox of what runs ask people with `run.ask`."""

    async def list_questions(
        self,
        *,
        status: QuestionStatus | str | None = QuestionStatus.OPEN,
        limit: int = 50,
        cursor: str | None = None,
        **filters: Unpack[QuestionFilters],
    ) -> QuestionPage:
        """Return up to `limit` (1 to 500) questions that pass all filters, the oldest first.

        Open are those that an answer is wanted of: their time is not over, nor is their run. `status=None` lists all.
        The filters are `name`, `workflow_name`, `workflow_state_id` and `user_id`; see `QuestionFilters`. `page.next`
        is the `cursor` of the next page, for the same filters.

        A question that cannot be read, because it is damaged or this store has no key for it, is listed with the reason
        as `unreadable`. Raises `InvalidPayload` for a filter or a cursor that cannot be one.
        """
        query = QuestionQuery.of(status, filters)
        return await self._transactions.read(partial(_page, query=query, cursor=cursor, limit=as_limit(limit)))

    async def get_question(self, question_id: UUID | str) -> Question:
        """Return a question, whatever became of it. Raises `QuestionNotFound`."""
        return await self._found(question_id)

    async def answer(self, question_id: UUID | str, value: Any, *, by: str | None = None) -> None:
        """Answer a question of a run, which goes on with it. Of several answers one is accepted, the first.

        `value` is any JSON value that fits the question's schema and is one of its choices, if it has them. `by` says
        who answers, in up to 255 characters of your own: the question shows it from then on.

        One transaction. Raises `InvalidPayload` for an answer that does not fit, and then the question stays open;
        `QuestionClosed` if it was answered before, if its time is over or its run is; `QuestionNotFound`; and another
        `PayloadError`, such as `DecryptionFailed`, if the question cannot be read.
        """
        who = None if by is None else as_stored_name(by, "by")
        question = await self._found(question_id, to_be_answered=True)
        payloads = self._transactions.payloads
        encoded = await payloads.encode_aside(value, "answer")
        asked = {"schema": question.answer_schema, "choices": question.choices}
        await payloads.aside.call(partial(require_fit, encoded, asked), len(encoded))
        signal_id, run_id = uuid4(), question.workflow_state_id
        place = SignalPlace(run_id, signal_id, self.namespace, answer_signal(question.id))
        prepared = await place.prepared(payloads, encoded)

        async def answer(uow: StoreUnit) -> None:
            status = await uow.signals.send(run_id, signal_id, place.name, prepared)
            if status is None:
                raise _not_found(question.id)
            if status not in ACTIVE or not await uow.questions.note_answer(question.id, who):
                raise await _closed(uow, question.id)

        with concerning(question_id=question.id):
            await self._transactions.write_once("answer", answer)
        self._executor.lookout.look_now()

    async def _found(self, question_id: UUID | str, *, to_be_answered: bool = False) -> Question:
        target = as_uuid(question_id, "question_id")
        find = partial(_find, question_id=target, to_be_answered=to_be_answered)
        question = await self._transactions.read(find)
        if question is None:
            raise _not_found(target)
        return question


async def _find(uow: StoreUnit, *, question_id: UUID, to_be_answered: bool) -> Question | None:
    return await uow.questions.find(question_id, to_be_answered=to_be_answered)


async def _page(uow: StoreUnit, *, query: QuestionQuery, cursor: str | None, limit: int) -> QuestionPage:
    fingerprint = query.fingerprint(uow.namespace)
    after = None if cursor is None else place_of(cursor, fingerprint)
    found = await uow.questions.list(query, after, limit + 1)
    page = tuple(found[:limit])
    last = page[-1] if len(found) > limit else None
    return QuestionPage(questions=page, next=None if last is None else cursor_of(last, fingerprint))


async def _closed(uow: StoreUnit, question_id: UUID) -> QuestionClosed | QuestionNotFound:
    question = await uow.questions.find(question_id)
    if question is None:
        return _not_found(question_id)
    if question.status == QuestionStatus.ANSWERED:
        why, found = "was answered before; the first answer counts", "answered"
    elif question.is_withdrawn:
        why, found = "is not asked any more: its run is over", "withdrawn"
    else:
        why, found = "is not asked any more: its time is over", "expired"
    return QuestionClosed(
        f"question {question_id} {why}",
        question_id=question_id,
        workflow_state_id=question.workflow_state_id,
        found=found,
        answered_by=question.answered_by,
    )


def _not_found(question_id: UUID) -> QuestionNotFound:
    return QuestionNotFound(f"there is no question {question_id}", question_id=question_id)
