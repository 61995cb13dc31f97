"""What can be wrong with a worker: each is there to be found by the harness beside which it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from orchestrator_state.journal import Journal

Flaw = Literal["forgets what finished"]


def plant(flaw: Flaw) -> None:
    """Make this process a worker with that flaw."""
    _PLANT[flaw]()


def _forget_what_finished() -> None:
    def replay(self: Journal, step_id: str) -> Any:
        return None

    Journal.replay = replay  # type: ignore[method-assign]


_PLANT: Final[dict[Flaw, Callable[[], None]]] = {"forgets what finished": _forget_what_finished}
