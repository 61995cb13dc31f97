"""Whatever is damaged, a command shows the others, says in a line what it cannot read, and ends with a status."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import pytest

from orchestrator_state import Run, StateStore
from tests.support.cases import case
from tests.support.command_line import Command
from tests.support.raw_sql import execute

Shell = Callable[..., tuple[int, str]]
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


async def waiting_runs(url: str, names: Iterable[str]) -> dict[str, UUID]:
    async with StateStore.open(url) as store:
        ids = {name: (await store.start("n", workflow_id=name, user_id="u", context={})).id for name in names}
        await store.recover({"n": waits})
        return ids


@pytest.mark.slow
def test_commands_go_on_beside_damage(
    monkeypatch: pytest.MonkeyPatch, shell: Shell, backend: str, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    damages = {f"damaged {number}": damage for number, damage in enumerate(DAMAGES[backend])}
    ids = asyncio.run(waiting_runs(database_url, ["before", *damages, "after"]))
    unchecked = ["PRAGMA foreign_keys = OFF"] if backend == "sqlite" else []
    updates = [f"UPDATE workflow_states SET {damage} WHERE id = '{ids[name]}'" for name, damage in damages.items()]
    execute(database_url, *unchecked, *updates)

    status, shown = shell("runs", "list")
    assert status == 0
    assert "before" in shown
    assert "after" in shown
    assert "\x1b" not in shown

    for name, damage in damages.items():
        run_id = str(ids[name])
        for command, run in (("show", run_id), ("show", name), ("pause", run_id), ("resume", name), ("cancel", run_id)):
            with case(f"{command} {run}, {damage}"):
                status, shown = shell("runs", command, run)
                assert status in {0, 1, 3, 4, 5, 6}, shown
                assert ("error: " in shown) == (status != 0), shown
                assert "\x1b" not in shown
    assert shell("runs", "signal", str(ids["before"]), "go")[0] == 0
    status, shown = shell("verify")
    assert status in {0, 1}
    assert shell("prune", "--older-than", "30d", "--keep-checkpoints", "1")[0] == 0
    assert shell("runs", "cancel", "after")[0] == 0
