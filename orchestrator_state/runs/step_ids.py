"""Which id a call has on record: the second `load` of one attempt is `load#2`."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from orchestrator_state.arguments import as_stored_name
from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads import LONGEST_NAME
from orchestrator_state.records import LOOKS_NUMBERED


class StepIds:
    """The ids that the calls of one attempt have on record: `load`, then `load#2`, `load#3`, …

    No two calls share one, whatever the order in which they come, and come again when the run is resumed. So an id of
    the caller's that ends as a number of ours does, such as `load#2`, always has a number of its own behind it:
    `load#2#1`. `recorded` are the ids on record.
    """

    def __init__(self, recorded: Container[str]) -> None:
        self.asked: Final[set[str]] = set()
        self._recorded = recorded
        self._calls: dict[str, int] = {}

    def number(self, step_id: str) -> str:
        """The id of the next call of `step_id`, in the order of the calls. Raises `InvalidPayload`."""
        step_id = as_stored_name(step_id, "step_id")
        call = self._calls[step_id] = self._calls.get(step_id, 0) + 1
        numbered = step_id if call == 1 else f"{step_id}#{call}"
        if call == 1 and "#" in step_id and LOOKS_NUMBERED.fullmatch(step_id) and not self._was_recorded_bare(step_id):
            numbered = f"{step_id}#1"
        if len(numbered) > LONGEST_NAME:
            raise InvalidPayload(
                f"step_id is {len(numbered)} characters long; at most {LONGEST_NAME} fit", path="step_id"
            )
        self.asked.add(numbered)
        return numbered

    def peek(self, step_id: str) -> str:
        """The id that the next call of `step_id` is going to have. Raises `InvalidPayload`."""
        numbered = self.number(step_id)
        self._calls[as_stored_name(step_id, "step_id")] -= 1
        self.asked.remove(numbered)
        return numbered

    def _was_recorded_bare(self, step_id: str) -> bool:
        """Whether it is on record without the number, as older software left it, and not as another id's repetition."""
        base = step_id.rpartition("#")[0]
        return step_id in self._recorded and not any(
            other in known for known in (self._recorded, self.asked) for other in (base, f"{step_id}#1")
        )
