"""`orchestrator-state prune`: retention from a shell."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from orchestrator_state import StateStore
from tests.support.cases import case
from tests.support.command_line import Command
from tests.support.raw_sql import fetch
from tests.support.workflows import checkpointed, saved


@pytest.fixture
def prune(database_url: str, monkeypatch: pytest.MonkeyPatch, command: Command) -> Command:
    """Runs `prune` on the database; returns its exit status, standard output and standard error."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return partial(command, "prune")


async def _fill(database_url: str, namespace: str) -> None:
    async with StateStore.open(database_url, namespace=namespace) as store:
        for days in (1, 3, 5):
            await saved(store, "load", status="completed", updated_at=datetime.now(UTC) - timedelta(days=days))
        active = await saved(store, "load", updated_at=datetime.now(UTC) - timedelta(days=9))
        for _ in range(4):
            await checkpointed(store, active)


@pytest.fixture
def filled(database_url: str) -> str:
    """A database with three finished workflows, one, three and five days old, and an active one of four checkpoints."""
    asyncio.run(_fill(database_url, "default"))
    return database_url


def test_what_is_older_is_deleted_and_checkpoints_are_pruned(filled: str, prune: Command) -> None:
    assert prune("--older-than", "2d", "--keep-checkpoints", "1") == (
        0,
        "deleted 2 workflows\ndeleted 3 checkpoints\n",
        "",
    )
    assert len(fetch(filled, "SELECT id FROM workflow_states")) == 2
    assert len(fetch(filled, "SELECT id FROM checkpoints")) == 1


@pytest.mark.parametrize(("age", "out"), [("96h", "deleted 1 workflow\n"), ("1m", "deleted 3 workflows\n")])
def test_an_age_may_be_in_hours_or_minutes(filled: str, prune: Command, age: str, out: str) -> None:
    assert prune("--older-than", age) == (0, out, "")
    assert len(fetch(filled, "SELECT id FROM checkpoints")) == 4


def test_one_namespace_is_pruned(filled: str, prune: Command) -> None:
    asyncio.run(_fill(filled, "other"))
    assert prune("--older-than", "1m", "--namespace", "other")[1] == "deleted 3 workflows\n"
    assert len(fetch(filled, "SELECT id FROM workflow_states WHERE namespace = 'default'")) == 4


def test_what_is_not_clear_deletes_nothing(filled: str, prune: Command) -> None:
    for arguments in ("", "--older-than 30", "--older-than -1d", "--older-than 999999999d", "--keep-checkpoints -1"):
        status, out, err = prune(*arguments.split())
        with case(arguments):
            assert (status, out) == (2, "")
            assert "Traceback" not in err
            assert len(fetch(filled, "SELECT id FROM workflow_states")) == 4
            assert len(fetch(filled, "SELECT id FROM checkpoints")) == 4
