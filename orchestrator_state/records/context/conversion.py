"""A run's whole way through its contexts, told of others: those that an upcaster makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator_state.errors import CorruptPayload, InvalidPayload, SchemaMismatch
from orchestrator_state.records.context.changes.change import NOTHING, Change
from orchestrator_state.records.context.changes.differences import change_between, growth_between
from orchestrator_state.records.context.changes.encoded import Encoded
from orchestrator_state.records.context.patches import Patch

_Convert = Callable[[Encoded], Encoded]


def converted(
    start: Encoded, patches: Mapping[int, Patch], convert: _Convert
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

        after = patch.change.apply(before)
        new = convert(after)
        places = ((start, first), (before, last), (after, new))
        ways[position] = Patch(
            change_between(last, new),
            patch.unseen,
            patch.after,
            None if patch.kept is None else part(patch.kept),
            tuple(
                told for made in patch.made_between(before, after) for told in _made(made, places, convert) if told.keys
            ),
        )
        before, last = after, new
    return first, ways, last


def _made(made: Change, places: tuple[tuple[Encoded, Encoded], ...], convert: _Convert) -> tuple[Change, Change]:
    """What a function did: as it is told where the upcaster leaves the key alone, else by what the new key grows.

    Told as a value it would replace what others have done by the time that it is repeated.
    """
    as_it_is = {key for key in made.keys if _is_left_alone(key, places)}
    rest = made.only(made.keys - as_it_is)
    return made.only(as_it_is), _growth(rest, places, convert) if rest.keys else NOTHING


def _is_left_alone(key: str, places: tuple[tuple[Encoded, Encoded], ...]) -> bool:
    """Whether `key` is there, in one of the contexts, and the upcaster makes no other value of it in any."""
    return any(key in old for old, _ in places) and all(old.get(key) == new.get(key) for old, new in places)


def _growth(made: Change, places: tuple[tuple[Encoded, Encoded], ...], convert: _Convert) -> Change:
    (start, _), (before, _), _ = places
    try:
        after = made.apply(before)
        # Another branch's commit has saved it already, so that it changes nothing here: at the start it does.
        saved = [key for key in made.keys if after.get(key) == before.get(key)]
        if saved:
            before = {key: text for key, text in before.items() if key not in saved}
            before |= {key: start[key] for key in saved if key in start}
            after = made.apply(before)
        return growth_between(convert(before), convert(after))
    except (CorruptPayload, InvalidPayload, SchemaMismatch):  # it was done to what a line of the handler had made
        return NOTHING
