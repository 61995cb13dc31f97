"""Whatever is damaged, a command shows the others, says in a line what it cannot read, and ends with a status."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from orchestrator_state import Run, StateStore
from tests.support.command_line import Command
from tests.support.raw_sql import execute

Shell = Callable[..., tuple[int, str]]
NAMES = ("before", "damaged", "after")
DAMAGES = {
    "sqlite": [
        *(f"{column} = 'zzz'" for column in ("started_at", "updated_at", "wake_at", "lease_expires_at", "version")),
        *(f"{column} = x'ff00'" for column in ("updated_at", "workflow_id", "user_id", "context", "namespace")),
        "id = 'zzz'",
        "workflow_id = CAST(x'61ff' AS TEXT)",
        "workflow_name = 'red' || char(27) || '[31m' || char(10)",
        "context = '{'",
    ],
    "postgres": [
        *(f"{column} = 'infinity'" for column in ("started_at", "updated_at", "wake_at", "lease_expires_at")),
        *(f"{column} = '-infinity'" for column in ("started_at", "updated_at", "completed_at")),
        "updated_at = '294276-01-01'",
        "version = 2147483647",
        "workflow_name = 'red' || chr(27) || '[31m' || chr(10)",
        "context = '{'",
    ],
}
CASES = [(backend, damage) for backend, damages in DAMAGES.items() for damage in damages]


@pytest.fixture
def shell(command: Command) -> Shell:
    """Runs a command; returns its exit status, and all that it showed."""

    def run(*arguments: str) -> tuple[int, str]:
        status, out, err = command(*arguments)
        return status, out + err

    return run


async def waits(run: Run) -> Any:
    await run.step("a", lambda: "a")
    return await run.wait_for("go")


async def three_runs(url: str) -> list[UUID]:
    async with StateStore.open(url) as store:
        ids = [(await store.start("n", workflow_id=name, user_id="u", context={})).id for name in NAMES]
        await store.recover({"n": waits})
        return ids


@pytest.mark.parametrize(("backend", "damage"), CASES, ids=str)
def test_commands_go_on_beside_damage(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, shell: Shell, backend: str, damage: str
) -> None:
    url = str(request.getfixturevalue(f"{backend}_url"))
    monkeypatch.setenv("DATABASE_URL", url)
    ids = asyncio.run(three_runs(url))
    unchecked = ["PRAGMA foreign_keys = OFF"] if backend == "sqlite" else []
    execute(url, *unchecked, f"UPDATE workflow_states SET {damage} WHERE id = '{ids[1]}'")

    status, shown = shell("runs", "list")
    assert status == 0
    assert "before" in shown
    assert "after" in shown

    for command in ("show", "pause", "resume", "cancel"):
        for run_id in (str(ids[1]), "damaged"):
            status, shown = shell("runs", command, run_id)
            assert (status, "error: " in shown) in {(0, False), (1, True)}, (command, shown)
            assert "\x1b" not in shown
    assert shell("runs", "signal", str(ids[0]), "go")[0] == 0
    status, shown = shell("verify")
    assert status in {0, 1}
    assert shell("prune", "--older-than", "30d", "--keep-checkpoints", "1")[0] == 0
    assert shell("runs", "cancel", "after")[0] == 0
