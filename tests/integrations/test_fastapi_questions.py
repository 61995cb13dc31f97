"""The inbox of questions over HTTP: who may look, what is listed, and which answer counts."""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import uuid4

import pytest
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from orchestrator_state import ConfigurationError, Run, StateStore
from orchestrator_state.integrations.fastapi import install_error_handlers, provide, questions_router
from tests.integrations.test_fastapi import clients_of
from tests.support.raw_sql import execute

ADA = {"X-User": "Ada"}


class Approval(BaseModel):
    ok: bool


async def letter(run: Run) -> Any:
    return (await run.ask("approve", {"text": "Dear Sir"}, returns=Approval)).ok


async def user(x_user: Annotated[str | None, Header()] = None) -> str:
    if x_user is None:
        raise HTTPException(401, "who are you?")
    return x_user


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StateStore]:
    async with StateStore.open(database_url) as store:
        yield store


async def asked(store: StateStore, *names: str) -> list[str]:
    for name in names:
        await store.start("letter", workflow_id=name, user_id=name)
        await store.recover({"letter": letter})
    return [str(question.id) for question in await store.list_questions()]


def inbox(store: StateStore, by: Any = user) -> FastAPI:
    app = FastAPI()
    app.include_router(questions_router(by=by), prefix="/questions")
    install_error_handlers(app)
    provide(app, store)
    return app


async def test_a_question_is_found_answered_once_and_signed(store: StateStore) -> None:
    await asked(store, "letter-1")
    async with clients_of(inbox(store)) as client:
        (question,) = (await client.get("/questions", headers=ADA)).json()["questions"]
        assert question["prompt"] == {"text": "Dear Sir"}
        assert question["answer_schema"]["required"] == ["ok"]
        place = f"/questions/{question['id']}"

        refused = await client.post(f"{place}/answer", json={"value": {"ok": "canary"}}, headers=ADA)
        assert (refused.status_code, refused.json()["path"]) == (422, "answer.ok")
        assert "canary" not in refused.text
        accepted = await client.post(f"{place}/answer", json={"value": {"ok": True}}, headers=ADA)
        assert (accepted.status_code, accepted.content) == (204, b"")
        late = await client.post(f"{place}/answer", json={"value": {"ok": False}}, headers={"X-User": "Bob"})
        assert (late.status_code, late.json()["error"], late.json()["found"]) == (409, "QuestionClosed", "answered")

        shown = (await client.get(place, headers=ADA)).json()
        assert (shown["status"], shown["answered_by"]) == ("answered", "Ada")
    await store.recover({"letter": letter})
    assert await store.run("letter", letter, workflow_id="letter-1") is True


async def test_a_stranger_sees_and_answers_nothing(store: StateStore) -> None:
    (question,) = await asked(store, "letter-1")
    async with clients_of(inbox(store)) as client:
        answers = [
            await client.get("/questions"),
            await client.get(f"/questions/{question}"),
            await client.post(f"/questions/{question}/answer", json={"value": {"ok": True}}),
        ]
        assert [answer.status_code for answer in answers] == [401, 401, 401]
        assert all("Dear Sir" not in answer.text for answer in answers)
    assert len(await store.list_questions()) == 1


async def test_who_answers_is_not_for_the_body_to_say(store: StateStore) -> None:
    (question,) = await asked(store, "letter-1")
    forged = {"value": {"ok": True}, "by": "the boss"}
    async with clients_of(inbox(store, by=None)) as client:
        assert (await client.post(f"/questions/{question}/answer", json=forged)).status_code == 422
        del forged["by"]
        assert (await client.post(f"/questions/{question}/answer", json=forged)).status_code == 204
    assert (await store.get_question(question)).answered_by is None


async def test_a_long_inbox_has_pages_and_filters(store: StateStore) -> None:
    ids = await asked(store, "a", "b", "c")
    async with clients_of(inbox(store, by=None)) as client:
        first = (await client.get("/questions", params={"limit": 2})).json()
        second = (await client.get("/questions", params={"limit": 2, "cursor": first["next"]})).json()
        assert [question["id"] for page in (first, second) for question in page["questions"]] == ids
        assert second["next"] is None
        await client.post(f"/questions/{ids[0]}/answer", json={"value": {"ok": True}})
        found = [
            (await client.get("/questions", params=params)).json()["questions"]
            for params in ({"user_id": "b"}, {"status": "answered"}, {"status": "any"}, {"workflow_name": "other"})
        ]
        assert [[question["user_id"] for question in page] for page in found] == [["b"], ["a"], ["a", "b", "c"], []]
        foreign = await client.get("/questions", params={"cursor": first["next"], "user_id": "b"})
        assert (foreign.status_code, foreign.json()["path"]) == (422, "cursor")


@pytest.mark.parametrize(
    "body",
    ['{"value": NaN}', '{"value": "\\ud800"}', '{"value": {"\\ud800": 1}}', '{"value": 1e400}', "{}", "[", "[" * 99999],
)
async def test_a_body_that_is_no_answer_is_refused(store: StateStore, body: str) -> None:
    (question,) = await asked(store, "letter-1")
    async with clients_of(inbox(store, by=None)) as client:
        answer = await client.post(
            f"/questions/{question}/answer", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422), answer.text
    assert len(await store.list_questions()) == 1


async def test_unknown_questions_are_not_found_and_damaged_filters_are_refused(store: StateStore) -> None:
    async with clients_of(inbox(store, by=None)) as client:
        found = await client.get(f"/questions/{uuid4()}")
        assert (found.status_code, found.json()["error"]) == (404, "QuestionNotFound")
        assert (await client.post(f"/questions/{uuid4()}/answer", json={"value": 1})).status_code == 404
        for params in ({"cursor": "\x00"}, {"limit": 0}, {"status": "odd"}, {"name": "\x00"}):
            assert (await client.get("/questions", params=params)).status_code == 422, params
        assert (await client.get("/questions/odd")).status_code == 422


async def test_an_unreadable_question_does_not_hide_the_others(store: StateStore, database_url: str) -> None:
    first, second = await asked(store, "a", "b")
    execute(database_url, f"UPDATE questions SET question = '[' WHERE id = '{first}'")
    async with clients_of(inbox(store, by=None)) as client:
        listed = (await client.get("/questions")).json()["questions"]
        assert [(question["id"], question["unreadable"] is None) for question in listed] == [
            (first, False),
            (second, True),
        ]
        answer = await client.post(f"/questions/{first}/answer", json={"value": {"ok": True}})
        assert (answer.status_code, answer.json()["error"]) == (500, "CorruptPayload")


async def test_a_sender_that_is_no_text_is_the_applications_mistake(store: StateStore) -> None:
    async def odd() -> int:
        return 7

    (question,) = await asked(store, "letter-1")
    async with clients_of(inbox(store, odd)) as client:
        answer = await client.post(f"/questions/{question}/answer", json={"value": {"ok": True}})
        assert (answer.status_code, answer.json()["error"]) == (500, "ConfigurationError")
    with pytest.raises(ConfigurationError, match="by is a str"):
        questions_router(by="Ada")  # type: ignore[arg-type]
