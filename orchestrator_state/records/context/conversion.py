"""A run's whole way through its contexts, told of others: those that an upcaster makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.records.context.change import NOTHING, Change
from orchestrator_state.records.context.differences import change_between
from orchestrator_state.records.context.encoded import Encoded
from orchestrator_state.records.context.patches import Patch


def converted(
    start: Encoded, patches: Mapping[int, Patch], convert: Callable[[Encoded], Encoded]
) -> tuple[Encoded, dict[int, Patch], Encoded]:
    """The same way through other contexts: each that a commit left behind is converted, and compared anew.

    Returns the start, the patches, and where they lead to.
    """
    before, last = start, convert(start)
    first, ways = last, {}
    for position in sorted(patches):
        patch = patches[position]

        def part(change: Change, before: Encoded = before, last: Encoded = last) -> Change:
            return change_between(last, convert(change.apply(before))) if change.keys else NOTHING

        def part_made(made: Change, part: Callable[[Change], Change] = part) -> Change:
            try:
                return part(made)
            except CorruptPayload:  # it was done to what a line of the handler had made
                return NOTHING

        after = patch.change.apply(before)
        ways[position] = Patch(
            change_between(last, new := convert(after)),
            patch.unseen,
            patch.after,
            None if patch.kept is None else part(patch.kept),
            tuple(part_made(made) for made in patch.made_between(before, after)),
        )
        before, last = after, new
    return first, ways, last
