"""Both sides must keep what they acknowledge through a power cut, or the comparison is worth nothing."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from benchmarks.raw import RawDriver
from orchestrator_state import StateStore

_FULL: Final = "2"
# The question that tells a setting, and what each must be.
_DURABLE: Final = {
    "sqlite": ("PRAGMA", {"journal_mode": "wal", "synchronous": _FULL}),
    "postgres": ("SHOW", {"fsync": "on", "synchronous_commit": "on"}),
}


async def require_durable(database: str, store: StateStore, raw: RawDriver) -> dict[str, str]:
    """Ask both connections, and return the settings."""
    ask, durable = _DURABLE[database]
    async with store.begin() as uow:
        ours = {name: str((await uow.session.execute(text(f"{ask} {name}"))).scalar_one()) for name in durable}
    by_hand = {name: str((await raw.fetch(f"{ask} {name}"))[0][0]) for name in durable}
    if not durable == ours == by_hand:
        raise RuntimeError(f"{database} may lose a commit with the power: by hand {by_hand}, the store {ours}")
    return durable
