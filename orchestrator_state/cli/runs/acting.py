"""`orchestrator-state runs signal|pause|resume|cancel|fork|rewind|delete`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from orchestrator_state.cli.options import CheckpointId, Force, RunId, Yes, as_id, as_json, require_yes
from orchestrator_state.cli.output import write
from orchestrator_state.cli.runs.finding import find_run
from orchestrator_state.cli.target import Target, on_store
from orchestrator_state.errors import LeaseHeld, PayloadError

if TYPE_CHECKING:
    from orchestrator_state import RunSummary, StateStore, WorkflowState


@on_store
def signal(
    target: Target,
    run_id: RunId,
    name: Annotated[str, typer.Argument(help="What the run waits for.")],
    payload: Annotated[str, typer.Argument(help="JSON that the run receives.")] = "null",
    *,
    once: Annotated[bool, typer.Option("--once", help="Unless it was sent one of that name.")] = False,
) -> None:
    """Send a signal to a run."""
    value = as_json(payload, "payload")

    async def send(store: StateStore, run: UUID) -> None:
        if target.app is None:
            await _require_plain(store, run)
        await store.signal(run, name, value, once=once)

    _ask(target, run_id, send)


@on_store
def pause(target: Target, run_id: RunId) -> None:
    """Pause a run: now, or at its worker's next step."""
    _ask(target, run_id, lambda store, run: store.pause(run), becomes="paused")


@on_store
def resume(target: Target, run_id: RunId) -> None:
    """Let a paused or failed run go on; a worker picks it up."""
    _ask(target, run_id, lambda store, run: store.resume(run))


@on_store
def cancel(target: Target, run_id: RunId, *, force: Force = False) -> None:
    """Cancel a run and its child runs: now, or at their worker's next step."""
    _ask(target, run_id, lambda store, run: store.cancel(run, force=force), becomes="cancelled")


@on_store
def fork(
    target: Target,
    checkpoint: CheckpointId,
    workflow_id: Annotated[
        str | None, typer.Option("--workflow-id", help="Your own name for the fork, by which it is made once.")
    ] = None,
) -> None:
    """Make a new run that starts from a checkpoint; a worker picks it up."""
    state = target.open(lambda store: store.fork(as_id(checkpoint), workflow_id=workflow_id))
    write(f"run {state.id} is {state.status}")


@on_store
def rewind(target: Target, checkpoint: CheckpointId, *, yes: Yes = False) -> None:
    """Put a run back to a checkpoint: what it did later is forgotten."""
    found = as_id(checkpoint)
    require_yes("All that the run did after this checkpoint is forgotten. Go on?", yes=yes)
    state: WorkflowState = target.open(lambda store: store.rewind(found))
    write(f"run {state.id} is {state.status}")


@on_store
def delete(target: Target, run_id: RunId, *, force: Force = False, yes: Yes = False) -> None:
    """Delete a run, whatever its status, with its child runs and all that belongs to them."""
    require_yes(f"Delete run {run_id!r}, and its child runs, for good?", yes=yes)

    async def work(store: StateStore) -> int:
        return await store.delete(await find_run(store, run_id), force=force)

    number = target.open(work)
    write(f"deleted {number} run{'' if number == 1 else 's'}")


def _ask(
    target: Target, given: str, question: Callable[[StateStore, UUID], Awaitable[None]], becomes: str | None = None
) -> None:
    """Put a question to the store about a run, and say what became of it, or will."""
    from orchestrator_state.retry import after_an_effect

    async def work(store: StateStore) -> RunSummary:
        found = await find_run(store, given)
        await question(store, found)
        with after_an_effect():
            return await store.get_run(found, steps_limit=1)

    run = target.open(work)
    later = "" if becomes in (None, run.status) else f"; it is {becomes} at its worker's next step"
    write(f"run {run.id} is {run.status or 'of a damaged status'}{later}")


async def _require_plain(store: StateStore, run: UUID) -> None:
    """A run whose payloads are encrypted is sent none in plain text.

    Raises `UnknownCodec`, by which the command ends with a word about `--app`. What cannot be read for another reason
    is no reason not to send.
    """
    from orchestrator_state import UnknownCodec

    try:
        await store.load_workflow_state(run)
    except UnknownCodec:
        raise
    except (PayloadError, LeaseHeld):
        return
