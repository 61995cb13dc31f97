"""Which checkpoints of a workflow may go: all but the newest so many, and never the newest that is not damaged."""

from __future__ import annotations

from uuid import UUID

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.maintenance.damage import digest_of
from orchestrator_state.repositories.upkeep import CheckpointParts
from orchestrator_state.transactions import StoreUnit


async def kept(uow: StoreUnit, workflow_state_id: UUID, keep: int) -> int:
    """How many of the newest checkpoints stay: `keep`, or more, up to one that recovery can fall back to.

    Its digests say so, and those of what a delta is put together from: no key is needed. If none is sound, all stay.
    """
    newer = 0
    while (parts := await uow.policies.checkpoint_at(workflow_state_id, newer)) is not None:
        newer += 1
        if _is_sound(parts):
            break
    return max(keep, newer)


async def prune(uow: StoreUnit, workflow_state_id: UUID, keep: int) -> int:
    """Delete all but the newest `keep` checkpoints, and the newest that is sound. Returns how many were deleted."""
    if keep == 0:
        return await uow.checkpoints.prune(workflow_state_id, keep=0)
    if not await uow.policies.hold(workflow_state_id):
        return 0
    return await uow.policies.delete_surplus(workflow_state_id, await kept(uow, workflow_state_id, keep))


def _is_sound(parts: CheckpointParts) -> bool:
    if parts.is_damaged:
        return False
    try:
        digest_of(parts.snapshot, parts.blobs, outdated=False)
        for payload in parts.refers_to:
            digest_of(payload, {}, outdated=parts.outdated)
    except CorruptPayload:
        return False
    return True
