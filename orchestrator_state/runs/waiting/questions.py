"""What a handler asks people with `run.ask`.

The answer comes as a signal, so that it wakes the run as one does, and is consumed with the step that asked.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator_state import hooks
from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import NotAccepted, ValueType, encode
from orchestrator_state.records import QUESTION, AskedQuestion, OpenStep, Signal, answer_signal, question_id_of
from orchestrator_state.runs.steps import Steps
from orchestrator_state.runs.waiting.waits import Taken, Wait, next_signal, take


class Wording(NamedTuple):
    """What is asked, before it is on record."""

    name: str
    text: str
    """Prompt, schema and choices, as JSON."""
    limit: timedelta | None


def wording_of(name: str, prompt: Any, kind: Any, choices: object, limit: timedelta | None) -> Wording:
    """What is asked for an answer of the type `kind`. Raises `InvalidPayload` for what cannot be stored."""
    if choices is not None and (isinstance(choices, str | bytes) or not isinstance(choices, Sequence) or not choices):
        raise InvalidPayload("choices must be a list of the answers that there are", path="choices")
    question = {
        "prompt": prompt,
        "schema": None if kind is None else ValueType.of(kind).json_schema(),
        "choices": None if choices is None else list(choices),
    }
    return Wording(name, encode(question, "question"), limit)


async def ask(steps: Steps, step_id: str, wording: Wording, returns: Any) -> Any:
    """The work of `run.ask`."""
    wait = Wait.of(steps, step_id, QUESTION, wording.limit)
    asked_id = question_id_of(steps.id, step_id)
    signal = answer_signal(asked_id)
    is_asked = False
    while not (taken := await _taken_answer(wait, asked_id, returns)):
        if not is_asked:
            await wait.begin()  # first: who is asked is told until when
            await ask_once(steps, AskedQuestion(asked_id, step_id, wording.name, wording.text, wait.until))
            is_asked = True
        if not wait.is_over:
            await wait.for_signal(signal)
        elif await _expires(steps, asked_id):
            await wait.give_up()
            raise _late(wording.name)
    return taken.payload


async def _taken_answer(wait: Wait, asked_id: UUID, returns: Any) -> Taken | None:
    """The answer, consumed with the step. None if there is none; one that the type refuses is asked for again."""
    signal = await next_signal(wait, answer_signal(asked_id))
    if signal is None:
        return None
    try:
        return await take(wait, signal, returns)
    except NotAccepted as refused:
        reason = str(refused)
    await refuse_answer(wait, asked_id, signal, reason)
    return None


async def refuse_answer(wait: Wait, asked_id: UUID, signal: Signal, reason: str) -> None:
    """Open the question again, which then says why."""
    steps = wait.steps
    hooks.logger.warning("run %s: an answer to %r is not accepted, and asked for again", steps.id, wait.step_id)
    with steps.switch.on_fault():
        await steps.transactions.write(
            lambda uow: uow.questions.refuse(steps.journal.lease, asked_id, signal.id, reason)
        )


def recorded_answer(steps: Steps, name: str, returns: Any, step: OpenStep) -> Coroutine[Any, Any, Any]:
    """The answer on record. Raises `TimeoutError` if what is on record is that none came."""
    if step.status == StepStatus.SKIPPED:
        raise _late(name)
    return steps.recorded(returns, step)


async def ask_once(steps: Steps, asked: AskedQuestion) -> None:
    """Let the inbox show it, unless it does."""
    with steps.switch.on_fault():
        await steps.transactions.write(lambda uow: uow.questions.ask(steps.journal.lease, asked))


async def _expires(steps: Steps, asked_id: UUID) -> bool:
    """Whether it does: not, if an answer was accepted in the last moment."""
    with steps.switch.on_fault():
        return await steps.transactions.write(lambda uow: uow.questions.expire(steps.journal.lease, asked_id))


def _late(name: str) -> TimeoutError:
    return TimeoutError(f"nobody answered the question {name!r} in time")
