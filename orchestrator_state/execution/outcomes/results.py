"""What is known of a run that is over."""

from __future__ import annotations

from functools import partial
from typing import Any

from orchestrator_state.concurrency import Outcome
from orchestrator_state.errors import CorruptPayload, RunFailed
from orchestrator_state.records import UNOPENED_HERE, FoundRun, Opener, RunNames
from orchestrator_state.runs import RunTypes
from orchestrator_state.transactions import Transactions


async def recorded_result(transactions: Transactions, run: FoundRun, types: RunTypes) -> Outcome[Any]:
    """What a completed run returned. Raises `SchemaMismatch`, and `PayloadError` for a result that cannot be read."""
    payloads = await transactions.payloads_of([(run.result,)])
    if payloads.misses_blobs:  # it was written anew under other keys since the row was read
        names = RunNames(ids=[run.id])
        found: FoundRun | None = await transactions.read(lambda uow: uow.claims.find(names))
        run = run if found is None else found
        payloads = await transactions.payloads_of([(run.result,)])
    opener = Opener.of(payloads, run.stored)
    try:
        opening = partial(opener.result, run.result, run.result_digest)
        text = await payloads.aside.call(opening, payloads.length([run.result]))
    except CorruptPayload as error:
        raise error.concerning(workflow_state_id=run.id) from None
    return Outcome(await types.decode_result(run.stored, text))


async def recorded_failure(transactions: Transactions, run: FoundRun) -> RunFailed:
    """What a run that failed elsewhere, or before, is known to have failed of."""
    try:
        payloads = await transactions.payloads_of([(run.error,)])
        opener = Opener.of(payloads, run.stored)
        error = opener.workflow("error", run.error, run.error_digest)
    except UNOPENED_HERE:
        error = None
    return RunFailed(f"run {run.id} failed: {error or 'of what cannot be read'}", workflow_state_id=run.id, error=error)
