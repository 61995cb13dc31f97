"""A run that has spent its budget asks whether it may spend more, before its next new step calls anything.

Each limit is asked about once, whichever of the run's branches come to it: the id of the step that asks is made of the
limit. What was answered is on record, so that a resumed run has it before it begins.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field

from orchestrator_state.errors import BudgetSpent
from orchestrator_state.payloads import NotAccepted, decode_value
from orchestrator_state.records import FINAL, QUESTION, AskedQuestion, OpenStep, answer_signal, question_id_of
from orchestrator_state.runs.spending.amounts import MOST_DOLLARS, MOST_TOKENS, as_nano
from orchestrator_state.runs.steps import Steps
from orchestrator_state.runs.waiting.questions import Wording, ask_once, refuse_answer, wording_of
from orchestrator_state.runs.waiting.waits import Wait, next_signal

_NAME: Final = "budget"
_STOP: Final = "stop"


class _Kind(NamedTuple):
    """One of the two things that a budget limits; `scale` is what one of the unit is stored as."""

    prefix: str
    unit: str
    scale: int


_COST: Final = _Kind("budget:cost:", "US dollars", 10**9)
_TOKENS: Final = _Kind("budget:tokens:", "tokens", 1)


class BudgetGuard:
    """Stands before each new step of a run that has a budget."""

    def __init__(self, steps: Steps, cost: int | None, tokens: int | None) -> None:
        self._steps = steps
        self._spending = steps.journal.spending
        self._limits: dict[_Kind, int] = {}
        self._to_replay: list[OpenStep] = []
        self._stopped: set[str] = set()
        for kind, limit in ((_COST, cost), (_TOKENS, tokens)):
            if limit is not None:
                self._limits[kind] = limit
        recorded = sorted(steps.journal.steps.values(), key=lambda step: step.position)
        for step in recorded:
            of_limit = next((each for each in self._limits if step.step_id.startswith(each.prefix)), None)
            if of_limit is not None and step.kind == QUESTION and step.status in FINAL:
                steps.asked_by_us(step.step_id)
                self._to_replay.append(step)
                self._raise(of_limit, decode_value(None, step.outputs, step.step_id))

    async def __call__(self) -> None:
        """Raises `BudgetSpent` if the answer was to stop."""
        while self._to_replay:  # what their commits did to the context belongs before that of the next one
            await self._steps.journal.replay(self._to_replay.pop(0).step_id)
        while (spent := self._first_spent()) is not None:
            await self._ask(*spent)

    def _first_spent(self) -> tuple[_Kind, int] | None:
        found = {_COST: self._spending.cost, _TOKENS: self._spending.tokens}
        return next(((kind, limit) for kind, limit in self._limits.items() if found[kind] >= limit), None)

    def _raise(self, kind: _Kind, answer: Any) -> None:
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            limit = as_nano(answer, _NAME) if kind is _COST else int(answer)
            self._limits[kind] = max(self._limits[kind], limit)

    async def _ask(self, kind: _Kind, limit: int) -> None:
        """Ask, or wait with the branch that has asked, until the question about this limit is answered."""
        steps = self._steps
        step_id = f"{kind.prefix}{_in_units(kind, limit)}"
        steps.asked_by_us(step_id)
        asked_id = question_id_of(steps.id, step_id)
        returns, wording = self._wording(kind, limit)
        wait, is_asked = Wait.of(steps, step_id, QUESTION, None), False
        while not self._is_answered(step_id):
            if await self._take_answer(wait, kind, returns):
                continue
            if not is_asked:
                await wait.begin()
                await ask_once(steps, AskedQuestion(asked_id, step_id, wording.name, wording.text, None))
                is_asked = True
            if not self._is_answered(step_id):  # asked now, or else we would sleep through what wakes us
                await wait.for_signal(answer_signal(asked_id))
        if step_id in self._stopped:
            raise self._stop()

    async def _take_answer(self, wait: Wait, kind: _Kind, returns: Any) -> bool:
        """Whether there was one, which another branch may have consumed before."""
        steps, step_id = self._steps, wait.step_id
        asked_id = question_id_of(steps.id, step_id)
        signal = await next_signal(wait, answer_signal(asked_id))
        if signal is None:
            return False
        try:
            answer = await steps.transactions.payloads.decode_aside(returns, signal.payload, step_id)
        except NotAccepted as refused:
            await refuse_answer(wait, asked_id, signal, str(refused))
            return False
        if answer == _STOP:
            error = self._stop()
            if await steps.journal.fail_step(wait.step, error, calls=1, consumed_signal=signal.id):
                self._stopped.add(step_id)
        elif await steps.journal.finish_step(wait.step, signal.payload, consumed_signal=signal.id):
            self._raise(kind, answer)
        steps.room.wake_all()  # the branches that wait for the same answer
        return True

    def _is_answered(self, step_id: str) -> bool:
        """Perhaps to another branch of this attempt."""
        step = self._steps.journal.recorded(step_id)
        return step_id in self._stopped or (step is not None and step.status in FINAL)

    def _stop(self) -> BudgetSpent:
        message = f"run {self._steps.id} has spent its budget, and was told to stop; to resume it asks again"
        return BudgetSpent(message, workflow_state_id=self._steps.id)

    def _wording(self, kind: _Kind, limit: int) -> tuple[Any, Wording]:
        """What is asked, and the type of the answer: a new limit, which is more than what is spent by now."""
        spent = self._spending.cost if kind is _COST else self._spending.tokens
        known = {"limit": _in_units(kind, limit), "spent": _in_units(kind, spent), "unit": kind.unit}
        if kind is _COST:
            more: Any = Annotated[float, Field(gt=float(Decimal(spent).scaleb(-9)), le=MOST_DOLLARS)]
        else:
            more = Annotated[int, Field(gt=spent, le=MOST_TOKENS)]
        returns = more | Literal["stop"]
        text = f"The run has spent its budget: {known['spent']} of {known['limit']} {kind.unit}. "
        prompt = {"text": f'{text}Answer with a larger limit, or with "stop".', **known}
        return returns, wording_of(_NAME, prompt, returns, None, None)


def _in_units(kind: _Kind, amount: int) -> str:
    """As text, since a step's id is made of it: 5, 0.25, 10000."""
    return f"{(Decimal(amount) / kind.scale).normalize():f}"
