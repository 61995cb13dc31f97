"""Remove blobs that no row refers to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Final
from uuid import UUID

from orchestrator_state.payloads import BlobName
from orchestrator_state.retry import after_an_effect
from orchestrator_state.transactions import StoreUnit, Transactions

_BATCH: Final = 100


async def collect_garbage(transactions: Transactions, older_than: timedelta) -> int:
    """See `StateStore.collect_garbage`.

    The blobs are listed before the rows are read. One that is referred to later than that was uploaded later, or within
    the time that `older_than` leaves it: a name is used once.
    """
    transactions.enter()
    blobs = transactions.payloads.blobs
    if blobs is None:
        return 0
    before = time.time() - older_than.total_seconds()
    found = await blobs.find(BlobName.directory_of(transactions.settings.namespace))
    old = _by_workflow(found, before)
    removed = 0
    ids = sorted(old)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        with after_an_effect(acted=removed > 0):
            referenced = await transactions.read(partial(_referenced, workflow_state_ids=batch))
        garbage = [name for workflow_state_id in batch for name in old[workflow_state_id] if name not in referenced]
        with after_an_effect():
            await blobs.remove(garbage)
        removed += len(garbage)
    return removed


async def _referenced(uow: StoreUnit, workflow_state_ids: Sequence[UUID]) -> set[str]:
    return await uow.retention.list_blobs(workflow_state_ids)


def _by_workflow(names: Iterable[str], before: float) -> dict[UUID, list[str]]:
    """The names of blobs that were written before then. Whatever else lies there is left alone."""
    parsed = ((blob, name) for name in names if (blob := BlobName.parse(name)) and blob.written_at <= before)
    grouped = groupby(sorted(parsed, key=lambda pair: pair[1]), key=lambda pair: pair[0].workflow_state_id)
    return {UUID(workflow_state_id): [name for _, name in pairs] for workflow_state_id, pairs in grouped}
