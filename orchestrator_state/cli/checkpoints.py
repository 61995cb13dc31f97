"""`orchestrator-state checkpoints list|show|diff`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.options import MOST_AT_ONCE, CheckpointId, Json, Limit, RunId, as_id
from orchestrator_state.cli.output import note, write
from orchestrator_state.cli.runs.finding import find_run
from orchestrator_state.cli.tables import Table, escaped
from orchestrator_state.cli.target import Target, on_store

if TYPE_CHECKING:
    from orchestrator_state import Checkpoint, CheckpointSummary, StateStore

checkpoints = typer.Typer(no_args_is_help=True, help="Look at the checkpoints of runs.")


@checkpoints.command("list")
@on_store
def list_checkpoints(target: Target, run_id: RunId, limit: Limit = 50, *, json: Json = False) -> None:
    """List the checkpoints of a run, the newest first. No payload is opened."""
    found, are_all = target.open(lambda store: _chosen(store, run_id, limit))
    if json:
        show_json(found)
    else:
        table = Table("id", "seq", "step", "created", "bytes")
        for each in found:
            table.add(each.id, each.seq, each.step_id, each.created_at, each.stored_bytes)
        table.show()
    if not are_all:
        note("there are older ones: a larger --limit")


@checkpoints.command()
@on_store
def show(target: Target, checkpoint: CheckpointId) -> None:
    """Print a checkpoint, with its snapshot, as JSON."""
    show_json(_document(target.open(lambda store: store.get_checkpoint(as_id(checkpoint)))))


@checkpoints.command()
@on_store
def diff(target: Target, before: CheckpointId, after: CheckpointId, *, json: Json = False) -> None:
    """Print what differs between the snapshots of two checkpoints, by its place in them."""
    first, second = as_id(before), as_id(after)
    changes = list(target.open(lambda store: _differences(store, first, second)))
    if json:
        show_json([change._asdict() for change in changes])
        return
    for change in changes:
        for sign, values in (("-", change.before), ("+", change.after)):
            for value in values:
                write(escaped(f"{sign} {change.path}: {_in_short(value)}"))


class Change(NamedTuple):
    """What differs at one place. A list of the value there, or of none."""

    path: str
    before: Sequence[Any]
    after: Sequence[Any]


async def _chosen(store: StateStore, given: str, limit: int) -> tuple[list[CheckpointSummary], bool]:
    run, cursor = await find_run(store, given), None
    found: list[CheckpointSummary] = []
    while True:
        page = await store.list_checkpoints(run, limit=min(limit - len(found), MOST_AT_ONCE), cursor=cursor)
        found += page.checkpoints
        cursor = page.next
        if cursor is None or len(found) == limit:
            return found, cursor is None


async def _differences(store: StateStore, first: UUID, second: UUID) -> Iterator[Change]:
    before, after = await store.get_checkpoint(first), await store.get_checkpoint(second)
    return differences(before.snapshot, after.snapshot, "snapshot")


def differences(before: Any, after: Any, path: str) -> Iterator[Change]:
    """The smallest places at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _at(
                f"{path}.{name}", [before[name]] if name in before else [], [after[name]] if name in after else []
            )
    elif isinstance(before, list) and isinstance(after, list):
        for place in range(max(len(before), len(after))):
            yield from _at(f"{path}[{place}]", before[place : place + 1], after[place : place + 1])
    elif type(before) is not type(after) or before != after:
        yield Change(path, [before], [after])


def _at(path: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Change]:
    if before and after:
        yield from differences(before[0], after[0], path)
    elif before or after:
        yield Change(path, before, after)


def _document(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint.id,
        "workflow_state_id": checkpoint.workflow_state_id,
        "step_id": checkpoint.step_id,
        "seq": checkpoint.seq,
        "created_at": checkpoint.timestamp,
        "snapshot": checkpoint.snapshot,
    }


def _in_short(value: Any) -> str:
    import json

    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


_LONGEST = 200
