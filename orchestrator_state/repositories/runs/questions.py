"""Questions of runs to people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Insert, String, Text, bindparam, case, delete, exists, literal, or_, select, tuple_, update

from orchestrator_state.column_types import UtcTimestamp
from orchestrator_state.database import conflict_aware_insert, database_now, is_moment
from orchestrator_state.domain import QuestionStatus
from orchestrator_state.errors import CorruptPayload, PayloadError
from orchestrator_state.models import QuestionRow, SignalRow, WorkflowRow, questions, workflow_states
from orchestrator_state.payloads import LONGEST_NAME, decode
from orchestrator_state.records import (
    AskedQuestion,
    Lease,
    Question,
    QuestionQuery,
    answer_signal,
    question_identity,
)
from orchestrator_state.repositories.base import Repository, rowcount
from orchestrator_state.repositories.claimable import IS_ACTIVE
from orchestrator_state.repositories.runs.fence import FENCE, fence, lease_lost

_OPEN: Final = QuestionStatus.OPEN.value
_ANSWERED: Final = QuestionStatus.ANSWERED.value

_LOCK_RUN: Final = select(workflow_states.c.id).where(*FENCE).with_for_update(key_share=True)
_OF_ID: Final = (QuestionRow.id == bindparam("of_id"), QuestionRow.namespace == bindparam("of_namespace"))
_IS_OPEN: Final = QuestionRow.status == _OPEN
_IS_IN_TIME: Final = or_(QuestionRow.expires_at.is_(None), QuestionRow.expires_at > database_now())
_HAS_ANSWER: Final = exists().where(
    SignalRow.workflow_state_id == QuestionRow.workflow_state_id,
    SignalRow.name == bindparam("signal_name", type_=String()),
)
_OPENED: Final = {"status": _OPEN, "closed_at": None, "answered_by": None}
_ASK_ANEW: Final = (
    update(QuestionRow)
    .where(*_OF_ID, ~_HAS_ANSWER)
    .values(
        _OPENED
        | {
            "asked_at": case((_IS_OPEN, QuestionRow.asked_at), else_=database_now()),
            "refused": case((_IS_OPEN, QuestionRow.refused)),
            "question": bindparam("new_question", type_=Text()),
            "question_digest": bindparam("new_digest", type_=questions.c.question_digest.type),
            "expires_at": bindparam("new_end", type_=UtcTimestamp),
        }
    )
)
_REFUSE: Final = (
    update(QuestionRow)
    .where(*_OF_ID, QuestionRow.status == _ANSWERED)
    .values(_OPENED | {"asked_at": database_now(), "refused": bindparam("reason", type_=String())})
)
_DELETE_SIGNAL: Final = delete(SignalRow).where(SignalRow.id == bindparam("signal_id"))
_CLOSE: Final = update(QuestionRow).where(*_OF_ID, _IS_OPEN).values(closed_at=database_now())
_EXPIRE: Final = _CLOSE.values(status=QuestionStatus.EXPIRED.value).returning(QuestionRow.id)
_ANSWER: Final = (
    _CLOSE.where(_IS_IN_TIME)
    .values(status=_ANSWERED, answered_by=bindparam("by", type_=String()))
    .returning(QuestionRow.id)
)
_STATUS: Final = select(QuestionRow.status).where(*_OF_ID)
_JOINED: Final = select(
    QuestionRow,
    WorkflowRow.workflow_id,
    WorkflowRow.workflow_name,
    WorkflowRow.user_id,
    IS_ACTIVE.label("is_active"),
).join(WorkflowRow, WorkflowRow.id == QuestionRow.workflow_state_id)
_BY_ID: Final = _JOINED.where(*_OF_ID)
_FILTERS: Final = {
    "name": QuestionRow.name,
    "workflow_state_id": QuestionRow.workflow_state_id,
    "workflow_name": WorkflowRow.workflow_name,
    "user_id": WorkflowRow.user_id,
}


@cache
def _insert_question(dialect: str) -> Insert:
    insert = conflict_aware_insert(dialect, questions).values(status=_OPEN, asked_at=database_now())
    return insert.on_conflict_do_nothing(index_elements=["id"])


class QuestionRepository(Repository):
    """What runs ask, and whether it was answered.

    Whoever changes one locks its run first, so that nobody answers while it is asked anew, or expires.
    """

    async def ask(self, lease: Lease, asked: AskedQuestion) -> None:
        """Store the question, unless it is there and has an answer. Raises `LeaseLost`.

        One that is there is told as it is asked now: a new version of the handler may have another type or time limit.
        One whose answer is gone, because the run was taken back, is open again.
        """
        await self._lock_run(lease)
        sealed = self._payloads.seal(asked.text, question_identity(lease.workflow_state_id, asked.id))
        values = {
            "id": asked.id,
            "workflow_state_id": lease.workflow_state_id,
            "namespace": self._namespace,
            "step_id": asked.step_id,
            "name": asked.name,
            "question": sealed.text,
            "question_digest": sealed.digest,
            "expires_at": asked.expires_at,
        }
        if rowcount(await self._execute(_insert_question(self._dialect), values)) == 1:
            return
        of_question = {"of_id": asked.id, "of_namespace": self._namespace, "signal_name": answer_signal(asked.id)}
        wording = {"new_question": sealed.text, "new_digest": sealed.digest, "new_end": asked.expires_at}
        await self._execute(_ASK_ANEW, of_question | wording)

    async def refuse(self, lease: Lease, question_id: UUID, signal_id: UUID, reason: str) -> None:
        """Forget the answer that the signal brought, and open the question again. Raises `LeaseLost`."""
        await self._lock_run(lease)
        if await self._delete(_DELETE_SIGNAL, {"signal_id": signal_id}):
            of_question = {"of_id": question_id, "of_namespace": self._namespace}
            await self._execute(_REFUSE, of_question | {"reason": reason[:LONGEST_NAME]})

    async def expire(self, lease: Lease, question_id: UUID) -> bool:
        """Accept no answer any more. False if there is one. Raises `LeaseLost`."""
        await self._lock_run(lease)
        of_question = {"of_id": question_id, "of_namespace": self._namespace}
        if await self._row(_EXPIRE, of_question) is not None:
            return True
        row = await self._row(_STATUS, of_question)
        return row is None or row.status != _ANSWERED

    async def note_answer(self, question_id: UUID, by: str | None) -> bool:
        """Note that it is answered. False if it is not open any more. Its run is locked, by the signal."""
        of_question = {"of_id": question_id, "of_namespace": self._namespace, "by": by}
        return await self._row(_ANSWER, of_question) is not None

    async def find(self, question_id: UUID, *, to_be_answered: bool = False) -> Question | None:
        """The question. Raises `PayloadError` if it is `to_be_answered` and cannot be read."""
        rows = await self._rows_with_blobs(_BY_ID, {"of_id": question_id, "of_namespace": self._namespace})
        return await self._question(rows[0], to_be_answered=to_be_answered) if rows else None

    async def list(self, asked: QuestionQuery, after: tuple[datetime, UUID] | None, limit: int) -> Sequence[Question]:
        """Those that pass the filters, the oldest first, from the place on where a page before ended.

        Open are those that an answer is wanted of: their runs are not over, nor is their time.
        """
        # One that was asked at no time, or is in no state that there is, has no place in the list.
        query = _JOINED.where(QuestionRow.namespace == self._namespace, is_moment(questions.c.asked_at))
        wanted = QuestionStatus if asked.status is None else (asked.status,)
        query = query.where(QuestionRow.status.in_([status.value for status in wanted]))
        if asked.status is QuestionStatus.OPEN:
            query = query.where(IS_ACTIVE, _IS_IN_TIME)
        for name, value in asked.wanted.items():
            query = query.where(_FILTERS[name] == value)
        if after is not None:
            at, last = after
            place = tuple_(literal(at, UtcTimestamp), literal(last, questions.c.id.type))
            query = query.where(tuple_(questions.c.asked_at, questions.c.id) > place)
        query = query.order_by(questions.c.asked_at, questions.c.id).limit(limit)
        return [await self._question(row) for row in await self._rows_with_blobs(query, for_many=True)]

    async def _lock_run(self, lease: Lease) -> None:
        if await self._row(_LOCK_RUN, fence(lease)) is None:
            raise lease_lost(lease)

    async def _question(self, row: Any, *, to_be_answered: bool = False) -> Question:
        asked: dict[str, Any] = {"prompt": None, "schema": None, "choices": None}
        unreadable = None
        try:
            asked |= await self._opened(row)
        except PayloadError as error:
            if to_be_answered:
                raise error.concerning(question_id=row.id) from None
            unreadable = str(error)
        return Question(
            id=row.id,
            workflow_state_id=row.workflow_state_id,
            workflow_id=row.workflow_id,
            workflow_name=row.workflow_name,
            user_id=row.user_id,
            step_id=row.step_id,
            name=row.name,
            prompt=asked["prompt"],
            answer_schema=asked["schema"],
            choices=None if asked["choices"] is None else tuple(asked["choices"]),
            status=_status(row),
            is_withdrawn=not row.is_active and row.status == _OPEN,
            asked_at=row.asked_at,
            expires_at=row.expires_at,
            closed_at=row.closed_at,
            answered_by=row.answered_by,
            refused=row.refused,
            unreadable=unreadable,
        )

    async def _opened(self, row: Any) -> dict[str, Any]:
        """What is asked. Raises `PayloadError`."""
        identity, payloads = question_identity(row.workflow_state_id, row.id), self._payloads
        opening = partial(payloads.open, row.question, row.question_digest, identity, "question")
        asked = decode(await payloads.aside.call(opening, payloads.length([row.question])), "question")
        if not isinstance(asked, dict) or asked.keys() != {"prompt", "schema", "choices"}:
            raise CorruptPayload("the stored question is none", path="question")
        if not isinstance(asked["choices"], list | None) or not isinstance(asked["schema"], dict | None):
            raise CorruptPayload("the stored question is none", path="question")
        return asked


def _status(row: Any) -> QuestionStatus:
    """Raises `CorruptPayload` for none that there is."""
    try:
        return QuestionStatus(row.status)
    except ValueError:
        raise CorruptPayload("the stored status of the question is none", path="status", question_id=row.id) from None
