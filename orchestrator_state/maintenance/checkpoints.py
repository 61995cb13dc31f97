"""Which checkpoints of a workflow may go: all but the newest so many, and never the newest that is not damaged."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.maintenance.damage import digest_of
from orchestrator_state.repositories.upkeep import CheckpointParts
from orchestrator_state.transactions import StoreUnit

_ALL: Final = 2**63 - 1


async def first_kept(uow: StoreUnit, workflow_state_id: UUID) -> int:
    """The number before which checkpoints may be deleted: that of the newest that recovery can fall back to.

    Its digests say so, and those of what a delta is put together from: no key is needed. If none is sound, all stay.
    """
    place = 0
    while (parts := await uow.policies.checkpoint_at(workflow_state_id, place)) is not None:
        if _is_sound(parts):
            return _ALL if parts.seq is None else parts.seq
        place += 1
    return 0


async def prune(uow: StoreUnit, workflow_state_id: UUID, keep: int) -> int:
    """Delete all but the newest `keep` checkpoints, and the newest that is sound. Returns how many were deleted."""
    if keep == 0:
        return await uow.checkpoints.prune(workflow_state_id, keep=0)
    if not await uow.policies.hold(workflow_state_id):
        return 0
    before = await first_kept(uow, workflow_state_id)
    return await uow.policies.delete_surplus(workflow_state_id, keep, before)


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
