"""Questions to people on both databases: asked, listed, answered once, and on record with the step that asked."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, field_validator

from orchestrator_state import (
    AesGcm,
    CorruptPayload,
    InvalidPayload,
    KeyRing,
    Payloads,
    Question,
    QuestionClosed,
    QuestionNotFound,
    QuestionStatus,
    Run,
    StateStore,
    UnknownCodec,
    Worker,
)
from orchestrator_state.encryption import new_key
from orchestrator_state.runs.waiting import questions
from orchestrator_state.runs.waiting.waits import Wait, next_signal
from tests.support.lost_answers import answer_lost
from tests.support.raw_sql import execute
from tests.support.running import LONG_AGO, becomes, change_row, count_rows, steps_of, vanish
from tests.support.running import seconds as in_seconds


class Refund(BaseModel):
    approve: bool
    cents: int = 0


class Careful(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def _is_kind(cls, word: str) -> str:
        if word != "please":
            raise ValueError(word)
        return word


async def refund(run: Run) -> Any:
    decision = await run.ask("refund", {"order": 42, "why": "it came broken"}, returns=Refund)
    return [decision.approve, decision.cents]


async def asked(store: StateStore, handler: Any = refund, **options: Any) -> Question:
    """The question of a run that nobody owns."""
    await store.start("n", workflow_id="w", **options)
    report = await store.recover({"n": handler})
    assert [run.outcome for run in report.runs] == ["suspended"]
    (question,) = await store.list_questions()
    return question


async def the_next_question(store: StateStore) -> Question:
    """Of a run that is under way."""
    while not (found := await store.list_questions()).questions:  # noqa: ASYNC110 - another task asks it
        await asyncio.sleep(0.01)
    return found.questions[0]


async def finished(store: StateStore, handler: Any = refund) -> Any:
    return await store.run("n", handler, workflow_id="w")


# --- asking ---


async def test_a_question_is_listed_with_all_that_is_needed_to_answer_it(store: StateStore) -> None:
    question = await asked(store, user_id="u")
    assert (question.name, question.step_id, question.workflow_id) == ("refund", "question:refund", "w")
    assert (question.workflow_name, question.user_id) == ("n", "u")
    assert question.status is QuestionStatus.OPEN
    assert question.prompt == {"order": 42, "why": "it came broken"}
    assert question.answer_schema is not None
    assert question.answer_schema["properties"].keys() == {"approve", "cents"}
    assert (question.choices, question.expires_at, question.answered_by, question.unreadable) == (None,) * 4
    assert await store.get_question(str(question.id)) == question
    steps = await steps_of(store, "w")
    assert steps["question:refund"].status == "running"
    assert "broken" not in repr(question)


async def test_the_answer_is_what_the_run_goes_on_with(store: StateStore) -> None:
    question = await asked(store)
    await store.answer(question.id, {"approve": True, "cents": 1250}, by="ann@example.org")
    assert await finished(store) == [True, 1250]
    closed = await store.get_question(question.id)
    assert (closed.status, closed.answered_by) == (QuestionStatus.ANSWERED, "ann@example.org")
    assert closed.closed_at is not None
    assert list(await store.list_questions()) == []
    assert [each.id for each in await store.list_questions(status=QuestionStatus.ANSWERED)] == [question.id]
    assert await count_rows(store, "signals") == 0
    assert await finished(store) == [True, 1250]


async def test_an_answer_wakes_a_run_that_waits_here(store: StateStore) -> None:
    running = asyncio.create_task(finished(store))
    question = await the_next_question(store)
    await store.answer(question.id, {"approve": False})
    assert await running == [False, 0]


async def test_an_answer_wakes_a_worker(store: StateStore) -> None:
    async with Worker(store, {"n": refund}, poll=timedelta(minutes=5)):
        await store.start("n", workflow_id="w")
        question = await the_next_question(store)
        await store.answer(question.id, {"approve": True})
        await becomes(lambda row: row.status == "completed", store, "w")


async def test_choices_are_the_answers_that_there_are(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.ask("how", "how shall it go on?", choices=["retry", 1, None])

    question = await asked(store, handler)
    assert (question.prompt, question.choices) == ("how shall it go on?", ("retry", 1, None))
    others: list[Any] = ["Retry", True, 1.0, [1], {}]
    for wrong in others:
        with pytest.raises(InvalidPayload, match="none of the 3 choices"):
            await store.answer(question.id, wrong)
    await store.answer(question.id, None)
    assert await finished(store, handler) is None


async def test_one_question_is_asked_for_each_call(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await asyncio.gather(run.ask("size"), run.ask("size"), run.ask("colour"))

    await store.start("n", workflow_id="w")
    await store.recover({"n": handler})
    questions = {each.step_id: each for each in await store.list_questions()}
    assert questions.keys() == {"question:size", "question:size#2", "question:colour"}
    for step_id, question in questions.items():
        await store.answer(question.id, step_id)
    assert await finished(store, handler) == ["question:size", "question:size#2", "question:colour"]


async def test_a_question_stays_the_same_one_whoever_takes_the_run_over(store: StateStore) -> None:
    question = await asked(store)
    await change_row(store, question.workflow_state_id, wake_at=LONG_AGO)
    report = await store.recover({"n": refund})
    assert [run.outcome for run in report.runs] == ["suspended"]
    assert list(await store.list_questions()) == [question]


async def test_an_answer_survives_a_worker_that_vanishes_right_after_it(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        answer = await run.ask("go")
        if not attempts:
            attempts.append(1)
            vanish()
        return answer

    attempts: list[int] = []
    question = await asked(store, handler)
    await store.answer(question.id, "on")
    with pytest.raises(asyncio.CancelledError):
        await finished(store, handler)
    assert await finished(store, handler) == "on"


# --- answers that are refused ---


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        ({"approve": "perhaps"}, "answer.approve"),
        ({}, "answer"),
        (None, "answer"),
        ({"approve": True, "cents": [1]}, "answer.cents"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused_without_quoting_it(
    store: StateStore, answer: Any, path: str
) -> None:
    question = await asked(store)
    with pytest.raises(InvalidPayload) as refused:
        await store.answer(question.id, answer)
    assert refused.value.path == path
    assert "perhaps" not in str(refused.value)
    assert list(await store.list_questions()) == [question]
    assert await count_rows(store, "signals") == 0


async def test_an_answer_counts_once(store: StateStore) -> None:
    question = await asked(store)
    await store.answer(question.id, {"approve": True}, by="ann")
    with pytest.raises(QuestionClosed, match="the first answer counts") as refused:
        await store.answer(question.id, {"approve": False}, by="bob")
    assert (refused.value.found, refused.value.answered_by) == ("answered", "ann")
    assert await finished(store) == [True, 0]
    with pytest.raises(QuestionClosed):
        await store.answer(question.id, {"approve": False})


async def test_of_several_answers_at_once_one_is_accepted(database_url: str, store: StateStore) -> None:
    question = await asked(store)
    async with StateStore.open(database_url) as other:
        answers = [
            (store if cents % 2 else other).answer(question.id, {"approve": True, "cents": cents}, by=str(cents))
            for cents in range(10)
        ]
        refused = [each for each in await asyncio.gather(*answers, return_exceptions=True) if each is not None]
    assert len(refused) == 9
    assert {type(each) for each in refused} == {QuestionClosed}
    assert await count_rows(store, "signals") == 1
    by = (await store.get_question(question.id)).answered_by
    assert await finished(store) == [True, int(by or "")]


async def test_an_answer_whose_acknowledgement_was_lost_is_given_once(store: StateStore) -> None:
    question = await asked(store)
    with answer_lost(store):
        await store.answer(question.id, {"approve": True})
    assert await count_rows(store, "signals") == 1
    assert await finished(store) == [True, 0]


@pytest.mark.parametrize("commit", range(2, 8))
async def test_a_run_asks_once_whichever_acknowledgement_is_lost(store: StateStore, commit: int) -> None:
    async def handler(run: Run) -> Any:
        await run.step("before", lambda: None)
        return await run.ask("go", timeout=in_seconds(600))

    await store.start("n", workflow_id="w")
    try:
        with answer_lost(store, commit=commit):
            await store.recover({"n": handler})
    except AssertionError:
        pass  # there are fewer commits, on one of the databases
    (question,) = await store.list_questions()
    await store.answer(question.id, "on")
    assert await finished(store, handler) == "on"


async def test_what_only_the_type_refuses_is_asked_for_again(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return (await run.ask("word", returns=Careful)).word

    question = await asked(store, handler)
    await store.answer(question.id, {"word": "now"}, by="ann")
    report = await store.recover({"n": handler})
    assert [run.outcome for run in report.runs] == ["suspended"]
    (again,) = await store.list_questions()
    assert (again.id, again.answered_by, again.refused) == (question.id, None, "question:word.word (value_error)")
    assert await count_rows(store, "signals") == 0
    await store.answer(again.id, {"word": "please"}, by="bob")
    assert await finished(store, handler) == "please"
    assert (await store.get_question(again.id)).answered_by == "bob"


async def test_a_rewound_run_asks_anew(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        await run.step("before", lambda: None)
        answer = await run.ask("go")
        await run.step("after", lambda: None)
        return answer

    question = await asked(store, handler)
    first = await store.get_latest_checkpoint(question.workflow_state_id)
    assert first is not None
    await store.answer(question.id, "on")
    assert await finished(store, handler) == "on"
    await store.rewind(first.id)
    await store.recover({"n": handler})
    (again,) = await store.list_questions()
    await store.answer(again.id, "back")
    assert await finished(store, handler) == "back"


# --- questions that nobody answers ---


async def test_the_time_for_an_answer_ends(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        try:
            return str(await run.ask("go", timeout=0.3))
        except TimeoutError as late:
            return str(late)

    assert await finished(store, handler) == "nobody answered the question 'go' in time"
    (question,) = await store.list_questions(status="expired")
    assert question.expires_at is not None
    with pytest.raises(QuestionClosed, match="its time is over") as refused:
        await store.answer(question.id, "on")
    assert refused.value.found in ("expired", "withdrawn")
    assert await finished(store, handler) == "nobody answered the question 'go' in time"


async def test_an_answer_after_the_time_is_refused_also_if_the_run_has_not_looked_yet(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        return str(await run.ask("go", timeout=0.2))

    await store.start("n", workflow_id="w")
    await store.recover({"n": handler})
    (question,) = await store.list_questions(status=None)
    assert question.expires_at is not None
    while list(await store.list_questions()):  # noqa: ASYNC110 - a time ends
        await asyncio.sleep(0.02)
    with pytest.raises(QuestionClosed) as refused:
        await store.answer(question.id, "on")
    assert refused.value.found == "expired"
    assert await count_rows(store, "signals") == 0


async def test_an_answer_in_the_last_moment_is_what_the_run_gets(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is accepted after the run has looked for one, and before the run says that the time is over."""

    async def handler(run: Run) -> Any:
        return await run.ask("go", timeout=in_seconds(600))

    async def answered(self: Wait, name: str) -> None:
        (question,) = await store.list_questions()
        await store.answer(question.id, "just in time")
        monkeypatch.setattr(Wait, "is_over", property(lambda _: True))

    async def none_at_the_second_look(wait: Wait, name: str) -> Any:
        looks.append(1)
        return None if len(looks) == 2 else await next_signal(wait, name)

    looks: list[int] = []
    monkeypatch.setattr(Wait, "for_signal", answered)
    monkeypatch.setattr(questions, "next_signal", none_at_the_second_look)
    assert await finished(store, handler) == "just in time"
    assert len(looks) == 3


async def test_nobody_is_asked_for_a_run_that_is_over(store: StateStore) -> None:
    question = await asked(store)
    await store.cancel(question.workflow_state_id)
    assert list(await store.list_questions()) == []
    (withdrawn,) = await store.list_questions(status=None)
    assert withdrawn.is_withdrawn
    with pytest.raises(QuestionClosed, match="its run is over") as refused:
        await store.answer(question.id, {"approve": True})
    assert refused.value.found == "withdrawn"


async def test_questions_go_with_their_run(store: StateStore) -> None:
    question = await asked(store)
    await store.cancel(question.workflow_state_id)
    assert await store.delete_old_states(timedelta()) == 1
    assert await count_rows(store, "questions") == 0
    with pytest.raises(QuestionNotFound):
        await store.answer(question.id, {"approve": True})


# --- the inbox ---


async def test_the_inbox_is_listed_page_by_page_and_by_what_is_wanted(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.ask("odd" if int(run.workflow_id) % 2 else "even")

    for n in range(7):
        await store.start("n", workflow_id=str(n), user_id=f"u{n % 3}")
    await store.recover({"n": handler})
    seen: list[UUID] = []
    page = await store.list_questions(limit=3)
    while True:
        seen += [each.id for each in page]
        if page.next is None:
            break
        page = await store.list_questions(limit=3, cursor=page.next)
    assert len(seen) == len(set(seen)) == 7
    times = [(await store.get_question(each)).asked_at for each in seen]
    assert times == sorted(times)
    assert {each.workflow_id for each in await store.list_questions(name="odd")} == {"1", "3", "5"}
    assert {each.workflow_id for each in await store.list_questions(user_id="u1")} == {"1", "4"}
    assert {each.workflow_id for each in await store.list_questions(workflow_name="m")} == set()
    one = (await store.load_workflow_state_by_workflow_id("4")).id
    assert [each.name for each in await store.list_questions(workflow_state_id=str(one))] == ["even"]


async def test_a_namespace_sees_its_own_questions(database_url: str, store: StateStore) -> None:
    question = await asked(store)
    async with StateStore.open(database_url, namespace="other") as other:
        assert list(await other.list_questions(status=None)) == []
        with pytest.raises(QuestionNotFound):
            await other.answer(question.id, {"approve": True})


async def test_what_cannot_be_a_filter_is_refused(store: StateStore) -> None:
    await asked(store)
    page = await store.list_questions(status=None, limit=1)
    for wrong in (
        {"status": "unheard of"},
        {"status": 1},
        {"name": 3},
        {"name": "\0"},
        {"workflow_state_id": "no id"},
        {"limit": 0},
        {"limit": 501},
        {"cursor": "nonsense"},
        {"cursor": 3},
        {"cursor": page.next or "bm8="},
    ):
        with pytest.raises(InvalidPayload):
            await store.list_questions(**cast("dict[str, Any]", wrong))
    with pytest.raises(TypeError, match="user"):
        await store.list_questions(user="u")  # type: ignore[call-arg]


@pytest.mark.parametrize("by", ["", "x" * 256, 3, "\0", "\ud800"])
async def test_whoever_answers_has_a_name_that_can_be_stored(store: StateStore, by: Any) -> None:
    question = await asked(store)
    with pytest.raises(InvalidPayload):
        await store.answer(question.id, {"approve": True}, by=by)


async def test_bad_questions_are_refused_before_anything_is_asked(store: StateStore) -> None:
    bad: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "x" * 247},
        {"name": "q", "prompt": {1}},
        {"name": "q", "prompt": float("nan")},
        {"name": "q", "choices": []},
        {"name": "q", "choices": "yes"},
        {"name": "q", "choices": [object()]},
        {"name": "q", "timeout": "soon"},
    ]

    async def handler(run: Run) -> int:
        for options in bad:
            with pytest.raises(InvalidPayload):
                await run.ask(**options)
        return len(bad)

    assert await finished(store, handler) == len(bad)
    assert await count_rows(store, "questions") == 0


async def test_unknown_questions_are_not_found(store: StateStore) -> None:
    for act in (store.get_question(uuid4()), store.answer(uuid4(), 1)):
        with pytest.raises(QuestionNotFound):
            await act
    for act in (store.get_question("no id"), store.answer("no id", 1)):
        with pytest.raises(InvalidPayload):
            await act


async def test_answers_come_by_the_front_door(store: StateStore) -> None:
    """As a signal it would pass schema, choices, deadline and who answered."""
    question = await asked(store)
    with pytest.raises(InvalidPayload, match=r"store\.answer"):
        await store.signal(question.workflow_state_id, f"question:{question.id}", {"approve": True})
    await store.signal(question.workflow_state_id, "question:of another kind", 1)


async def test_an_encrypted_question_is_listed_without_its_key_and_answered_with_it(database_url: str) -> None:
    keys = Payloads([AesGcm(KeyRing({"k": new_key()}, "k"))])
    async with StateStore.open(database_url, payloads=keys) as store:
        question = await asked(store)
        async with StateStore.open(database_url) as blind:
            (seen,) = await blind.list_questions()
            assert (seen.id, seen.prompt, seen.answer_schema, seen.choices) == (question.id, None, None, None)
            assert seen.unreadable
            with pytest.raises(UnknownCodec) as refused:
                await blind.answer(question.id, {"approve": True})
            assert refused.value.about["question_id"] == question.id
        await store.answer(question.id, {"approve": True})
        assert await finished(store) == [True, 0]
        report = await store.verify()
        assert report.damage == []


async def test_the_deadline_is_seen_by_whoever_is_asked(store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await run.ask("go", timeout=timedelta(days=3))

    question = await asked(store, handler)
    assert isinstance(question.expires_at, datetime)
    assert timedelta(days=2) < question.expires_at - question.asked_at < timedelta(days=4)


async def test_a_damaged_question_hides_no_other_and_is_not_answered(database_url: str, store: StateStore) -> None:
    async def handler(run: Run) -> Any:
        return await asyncio.gather(run.ask("sound"), run.ask("damaged"))

    await store.start("n", workflow_id="w")
    await store.recover({"n": handler})
    execute(database_url, "UPDATE questions SET question = '{\"prompt\": 1}' WHERE name = 'damaged'")
    listed = {each.name: each for each in await store.list_questions()}
    assert listed.keys() == {"sound", "damaged"}
    assert (listed["sound"].unreadable, listed["damaged"].prompt) == (None, None)
    assert "digest" in (listed["damaged"].unreadable or "")
    with pytest.raises(CorruptPayload):
        await store.answer(listed["damaged"].id, 1)
    await store.answer(listed["sound"].id, 1)
