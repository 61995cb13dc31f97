"""A run's context through its steps.

A resumed handler runs again from the top, so its context must start where it started and pass through what each
recorded step committed; otherwise `run.context["n"] += 1` between two steps would count twice. Each step's commit
therefore stores a patch: the keys it set, the items it appended to lists, the keys it dropped.

A list that only grew is stored as the items it grew by, whoever appended them: the canonical JSON of the longer list
begins with that of the shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator_state.codecs import decode, encode
from orchestrator_state.context_value import ContextValue, Encoded, PlainContext, join, split
from orchestrator_state.errors import CorruptPayload

__all__ = ["ContextChange", "ContextHistory", "Encoded", "Patch", "apply_all", "join", "split"]


@dataclass(frozen=True, slots=True)
class Patch:
    """One commit's change of the context, values encoded; `appended` holds items without the list's brackets."""

    changed: Mapping[str, str] = field(default_factory=dict)
    appended: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    unseen: tuple[int, ...] = ()
    """Positions of earlier patches that the handler had not come back to when it made this one."""

    @property
    def keys(self) -> frozenset[str]:
        return frozenset((*self.changed, *self.appended, *self.dropped))

    @property
    def only_appends(self) -> bool:
        return not self.changed and not self.dropped

    def to_json(self) -> str:
        parts = {
            "set": join(self.changed),
            "append": join({key: f"[{items}]" for key, items in self.appended.items()}),
            "drop": encode(list(self.dropped), "context"),
        }
        if self.unseen:
            parts["unseen"] = encode(list(self.unseen), "context")
        return join(parts)

    @classmethod
    def from_json(cls, text: str) -> Patch:
        """Raises `CorruptPayload`, or `InvalidPayload`, for anything that `to_json` has not written."""
        parts = split(text, "context_patch")
        if parts.keys() - {"unseen"} != {"set", "append", "drop"}:
            raise CorruptPayload("the stored context_patch is none", path="context_patch")
        appended = split(parts["append"], "context_patch")
        dropped, unseen = decode(parts["drop"], "context_patch"), decode(parts.get("unseen", "[]"), "context_patch")
        if not (_is_list_of(str, dropped) and _is_list_of(int, unseen) and all(map(_is_list, appended.values()))):
            raise CorruptPayload("the stored context_patch is none", path="context_patch")
        return cls(
            changed=split(parts["set"], "context_patch"),
            appended={key: items[1:-1] for key, items in appended.items()},
            dropped=tuple(dropped),
            unseen=tuple(unseen),
        )

    def apply(self, context: Encoded) -> Encoded:
        """Return `context` with this patch; the argument is left as it is."""
        result = {**context, **self.changed}
        for key, items in self.appended.items():
            before = result.get(key, "[]")
            result[key] = f"[{items}]" if before == "[]" else f"{before[:-1]},{items}]"
        for key in self.dropped:
            result.pop(key, None)
        return result


def _is_list(text: str) -> bool:
    return text.startswith("[")


def _is_list_of(kind: type, value: object) -> bool:
    return type(value) is list and all(type(item) is kind for item in value)


def apply_all(context: Encoded, patches: Iterable[Patch]) -> Encoded:
    for patch in patches:
        context = patch.apply(context)
    return context


@dataclass(slots=True)
class ContextChange:
    """What a commit does to the context."""

    patch: Patch | None
    value: Encoded
    """The handler's context at the time."""
    committed: Encoded
    """Everybody's context from then on."""


class ContextHistory:
    """`held` is what the handler reads and changes; the rest knows what of it is committed.

    A resumed handler may commit something new before it has come back to all the recorded steps: another branch of it
    has not got there yet, or a new version asks for them later, or never. So what it has seen and what is committed
    are two things, and a change that it makes again is not taken for a new one.
    """

    def __init__(self, initial: str, committed: Encoded, patches: Mapping[int, Patch]) -> None:
        """`initial` is the context at the start, `patches` are by step position.

        If the patches do not lead from the one to the other, somebody edited the workflow by hand; then the edited
        context is where the run starts, and its recorded steps leave it alone.
        """
        start = split(initial, "context")
        self.was_edited = apply_all(start, (patches[position] for position in sorted(patches))) != committed
        if self.was_edited:
            start, patches = committed, {}
        self.held: ContextValue = PlainContext(start)
        self._seen = dict(start)
        self._replayed = start
        self._committed = committed
        self._patches = dict(patches)

    @property
    def committed(self) -> Encoded:
        return self._committed

    @property
    def start(self) -> Encoded:
        """What the run starts with, before `replay`."""
        return self._replayed

    @property
    def patches(self) -> Mapping[int, Patch]:
        """What is still to be replayed, by step position."""
        return self._patches

    def hold(self, held: ContextValue) -> None:
        """Let the handler have `held`, which shows the start, in place of a dict."""
        self.held = held

    def replay(self, position: int) -> None:
        """Move on to what the step at `position` committed, and to what the handler had seen by then."""
        own = self._patches.get(position)
        unseen = () if own is None else own.unseen
        due = sorted(at for at in self._patches if at <= position and at not in unseen)
        touched: set[str] = set()
        for at in due:
            patch = self._patches.pop(at)
            self._replayed = patch.apply(self._replayed)
            for key in (*patch.changed, *patch.appended):
                self._seen[key] = self._replayed[key]
            for key in patch.dropped:
                self._seen.pop(key, None)
            touched |= patch.keys
        self.held.take(self._replayed, touched)

    def diff(self) -> ContextChange:
        """What the handler changed since the last commit. Raises `InvalidPayload`."""
        value = self.held.encoded()
        changed: Encoded = {}
        appended: Encoded = {}
        for key, text in value.items():
            before = self._seen.get(key)
            if before == text or self._is_recorded(key, before, text):
                continue
            items = _items_added(before, text)
            if items is None:
                changed[key] = text
            else:
                appended[key] = items
        dropped = tuple(key for key in self._seen if key not in value and key in self._committed)
        unseen = tuple(sorted(self._patches))
        if not (changed or appended or dropped or unseen):
            return ContextChange(None, value, self._committed)
        patch = Patch(changed, appended, dropped, unseen)
        return ContextChange(patch, value, patch.apply(self._committed))

    def accept(self, change: ContextChange) -> None:
        """`change` is committed."""
        self._seen, self._committed = dict(change.value), change.committed

    def adopt(self, patch: Patch) -> None:
        """`patch` turned out to be committed."""
        self._seen, self._committed = patch.apply(self._seen), patch.apply(self._committed)

    def _is_recorded(self, key: str, before: str | None, after: str) -> bool:
        """Whether a step that the handler has not come back to has committed this change."""
        recorded = self._committed.get(key)
        if recorded is None or recorded == before:
            return False
        return recorded == after or _items_added(after, recorded) is not None


def converted(
    start: Encoded, patches: Mapping[int, Patch], convert: Callable[[Encoded], Encoded]
) -> tuple[Encoded, dict[int, Patch], Encoded]:
    """The same way through other contexts: each that a commit left behind is converted, and compared anew.

    Returns the start, the patches, and where they lead to.
    """
    before, last = start, convert(start)
    first, ways = last, {}
    for position in sorted(patches):
        before = patches[position].apply(before)
        after = convert(before)
        ways[position] = patch_between(last, after, patches[position].unseen)
        last = after
    return first, ways, last


def patch_between(before: Encoded, after: Encoded, unseen: tuple[int, ...] = ()) -> Patch:
    changed: Encoded = {}
    appended: Encoded = {}
    for key, text in after.items():
        if before.get(key) != text:
            items = _items_added(before.get(key), text)
            if items is None:
                changed[key] = text
            else:
                appended[key] = items
    return Patch(changed, appended, tuple(key for key in before if key not in after), unseen)


def _items_added(before: str | None, after: str) -> str | None:
    """The items by which the list `after` is longer than the list `before`, or None if that is not the difference."""
    if before is None or not before.startswith("[") or not after.startswith("["):
        return None
    if before == "[]":
        return after[1:-1]
    head = before[:-1]
    if after.startswith(head) and after[len(head)] == ",":
        return after[len(head) + 1 : -1]
    return None
