"""Questions whose wording changes under them: a run that is taken back, a new version; and hostile answers."""

import asyncio
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import update

from orchestrator_state import Checkpoint, InvalidPayload, Question, QuestionNotFound, QuestionStatus, Run, StateStore
from orchestrator_state.models import questions
from orchestrator_state.payloads import require_schema
from tests.support.running import count_rows


async def suspended(store: StateStore, handler: Any) -> Question:
    """The question that a run is left with after a round of recovery."""
    report = await store.recover({"n": handler})
    assert [run.outcome for run in report.runs] == ["suspended"]
    (question,) = await store.list_questions()
    return question


async def asked(store: StateStore, handler: Any) -> Question:
    await store.start("n", workflow_id="w")
    return await suspended(store, handler)


# --- a run that is taken back ---


@pytest.mark.parametrize("become", ["open", "answered", "consumed"])
async def test_what_was_asked_of_a_draft_is_not_asked_of_the_next_one(store: StateStore, become: str) -> None:
    drafts = iter("AB")
    checkpoints: list[Checkpoint | None] = []

    async def letter(run: Run) -> Any:
        await run.step("before", lambda: None)
        checkpoints.append(await store.get_latest_checkpoint(run.id))
        text = await run.step("draft", next, drafts)
        return [text, await run.ask("approve", text, timeout=1000)]

    question = await asked(store, letter)
    assert question.prompt == "A"
    if become != "open":
        await store.answer(question.id, "send A")
    if become == "consumed":
        assert await store.run("n", letter, workflow_id="w") == ["A", "send A"]
    assert checkpoints[0] is not None
    await store.rewind(checkpoints[0].id)

    assert list(await store.list_questions(status=None)) == []
    assert await count_rows(store, "signals") == 0
    with pytest.raises(QuestionNotFound):
        await store.answer(question.id, "send A, once more")

    again = await suspended(store, letter)
    assert again.prompt == "B"
    assert again.expires_at is not None
    assert question.expires_at is not None
    assert again.expires_at > question.expires_at
    await store.answer(again.id, "send B")
    assert await store.run("n", letter, workflow_id="w") == ["B", "send B"]


# --- a handler that is changed ---


async def test_a_new_version_asks_for_what_it_wants_now(store: StateStore) -> None:
    class Old(BaseModel):
        ok: bool

    class New(BaseModel):
        ok: bool
        why: str

    kind: Any = Old

    async def handler(run: Run) -> Any:
        return (await run.ask("approve", kind.__name__, returns=kind)).model_dump()

    question = await asked(store, handler)
    kind = New
    await store.answer(question.id, {"ok": True})  # fits what was asked, and not what is wanted
    again = await suspended(store, handler)
    assert again.refused == "question:approve.why (missing)"
    assert (again.id, again.prompt) == (question.id, "New")
    with pytest.raises(InvalidPayload):
        await store.answer(again.id, {"ok": True})
    await store.answer(again.id, {"ok": True, "why": "it is good"})
    assert await store.run("n", handler, workflow_id="w") == {"ok": True, "why": "it is good"}


async def test_a_new_version_that_waits_for_ever_can_be_answered_for_ever(store: StateStore) -> None:
    limits: list[float | None] = [1000, None]

    async def handler(run: Run) -> Any:
        return await run.ask("approve", timeout=limits[0])

    question = await asked(store, handler)
    assert question.expires_at is not None
    del limits[0]
    task = asyncio.create_task(store.run("n", handler, workflow_id="w"))
    while (found := await store.get_question(question.id)).expires_at is not None:  # noqa: ASYNC110 - the run asks
        await asyncio.sleep(0.01)
    assert (found.status, found.asked_at) == (QuestionStatus.OPEN, question.asked_at)
    await store.answer(question.id, "on")
    assert await task == "on"


# --- answers and schemas that are hostile, or only odd ---


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        (r"^(a+)+$", "a" * 1000, "a" * 1000 + "!"),  # Python's re would need longer than there is
        (r"^\p{L}+$", "Zoë", "12"),  # which it does not know
        (r"^(?<word>[a-z&&[^b]]+)$", "aca", "abc"),
    ],
)
async def test_a_pattern_means_what_it_means_to_the_type(
    store: StateStore, pattern: str, fits: str, fits_not: str
) -> None:
    async def handler(run: Run) -> Any:
        return await run.ask("word", returns=dict[str, Annotated[str, Field(pattern=pattern)]])

    question = await asked(store, handler)
    with pytest.raises(InvalidPayload) as refused:
        await store.answer(question.id, {"word": fits_not})
    assert refused.value.path == "answer.word"
    await store.answer(question.id, {"word": fits})
    assert await store.run("n", handler, workflow_id="w") == {"word": fits}


async def test_names_are_looked_for_by_pattern_too(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.ask("words", returns=dict[Annotated[str, Field(pattern=r"^\p{L}+$")], int])

    question = await asked(store, handler)
    with pytest.raises(InvalidPayload):
        await store.answer(question.id, {"one": "1!"})
    await store.answer(question.id, {"one": 1})
    assert await store.run("n", handler, workflow_id="w") == {"one": 1}


def test_many_items_are_told_apart_in_time() -> None:
    odd = [value for number in range(20_000) for value in (number, str(number))]
    require_schema(odd, {"uniqueItems": True})
    with pytest.raises(InvalidPayload):
        require_schema([*odd, 7], {"uniqueItems": True})


@pytest.mark.parametrize("answer", [{"x1": 1}, {"a": 1}])
def test_further_names_are_those_that_no_pattern_fits(answer: dict[str, int]) -> None:
    schema = {"properties": {"a": {}}, "patternProperties": {r"^x\d$": {}}, "additionalProperties": False}
    require_schema(answer, schema)
    with pytest.raises(InvalidPayload):
        require_schema(answer | {"b": 1}, schema)


def test_of_patterns_that_look_around_only_that_of_a_decimal_is_asked() -> None:
    decimal = {"pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    require_schema("1.25", decimal)
    with pytest.raises(InvalidPayload):
        require_schema("b", decimal)
    require_schema("1" * 10_000 + "b", decimal)  # the type will say


def test_a_pattern_that_looks_around_for_ever_does_not_with_a_short_answer() -> None:
    require_schema("a" * 60 + "!", {"pattern": "^(?=(a+)+$)a"})  # the type will say


async def test_a_default_that_json_has_no_number_for_is_none_of_the_form(store: StateStore) -> None:
    class Budget(BaseModel):
        cents: float = float("inf")

    async def handler(run: Run) -> Any:
        return (await run.ask("budget", returns=Budget)).cents > 5

    question = await asked(store, handler)
    assert question.answer_schema is not None
    assert question.answer_schema["properties"]["cents"] == {"title": "Cents", "type": "number"}
    await store.answer(question.id, {})
    assert await store.run("n", handler, workflow_id="w") is True


@pytest.mark.parametrize(
    "stored", ['"choices":5,"schema":null', '"choices":null,"schema":5', '"choices":{},"schema":""']
)
async def test_a_question_that_somebody_has_written_by_hand_hides_no_other(store: StateStore, stored: str) -> None:
    async def handler(run: Run) -> Any:
        return await run.ask("word")

    question = await asked(store, handler)
    async with store.begin() as uow:
        values = {"question": f'{{"prompt":1,{stored}}}', "question_digest": None}
        await uow.session.execute(update(questions).where(questions.c.id == question.id).values(values))
    (found,) = await store.list_questions()
    assert found.unreadable is not None
