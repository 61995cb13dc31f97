"""`orchestrator-state runs questions|answer`: the inbox of what runs ask people."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.options import MOST_AT_ONCE, Json, Limit, as_id, as_json
from orchestrator_state.cli.output import note, write
from orchestrator_state.cli.runs.finding import find_run
from orchestrator_state.cli.tables import Table
from orchestrator_state.cli.target import Target, on_store
from orchestrator_state.errors import UnknownCodec

if TYPE_CHECKING:
    from orchestrator_state import Question, StateStore

QuestionId = Annotated[str, typer.Argument(metavar="QUESTION", help="The question's id: see `runs questions`.")]


@on_store
def questions(
    target: Target,
    run: Annotated[str | None, typer.Option("--run", help="Of this run: its id, or its workflow id.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of this name.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Of runs of this user.")] = None,
    limit: Limit = 50,
    *,
    every: Annotated[bool, typer.Option("--all", help="Those too of which no answer is wanted any more.")] = False,
    json: Json = False,
) -> None:
    """List what runs ask people, the oldest first.

    What is encrypted is shown with --app, and without it as unreadable.
    """
    found, are_all = target.open(lambda store: _chosen(store, limit, run, every=every, name=name, user_id=user))
    if json:
        show_json(found)
    else:
        _show(found)
    if not are_all:
        note("there are more: a larger --limit")


@on_store
def answer(
    target: Target,
    question: QuestionId,
    value: Annotated[str, typer.Argument(help="The answer, as JSON.")],
    by: Annotated[str | None, typer.Option("--by", help="Who answers.")] = None,
) -> None:
    """Answer a question of a run. Of several answers the first counts."""
    found, given = as_id(question), as_json(value, "answer")

    async def work(store: StateStore) -> None:
        asked = await store.get_question(found)
        if asked.unreadable is not None and target.app is None:
            raise UnknownCodec(asked.unreadable, path="question", tag="")
        await store.answer(found, given, by=by)

    target.open(work)
    write(f"question {found} is answered")


async def _chosen(
    store: StateStore, limit: int, run: str | None, *, every: bool, **filters: Any
) -> tuple[list[Question], bool]:
    if run is not None:
        filters["workflow_state_id"] = await find_run(store, run)
    found, cursor = list[Any](), None
    while True:
        most = min(limit - len(found), MOST_AT_ONCE)
        page = await store.list_questions(status=None if every else "open", limit=most, cursor=cursor, **filters)
        found += page.questions
        cursor = page.next
        if cursor is None or len(found) == limit:
            return found, cursor is None


def _show(found: list[Question]) -> None:
    table = Table("id", "workflow id", "name", "status", "asked", "until", "prompt")
    for each in found:
        status = "withdrawn" if each.is_withdrawn else each.status
        prompt = f"unreadable: {each.unreadable}" if each.unreadable else _text(each.prompt)
        table.add(each.id, each.workflow_id, each.name, status, each.asked_at, each.expires_at, prompt)
    table.show()


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json_module.dumps(prompt)
