"""What is recorded of an exception: its type and message, what caused it, and the members of a group."""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from orchestrator_state.errors import AbnormalExit

_MOST_CHARACTERS: Final = 2000
_MOST_OF_A_RELATIVE: Final = 300
"""Characters of an exception that is there only because of another one."""
_MOST_RELATIVES: Final = 12
_MOST_LEVELS: Final = 5
_LONGEST_TYPE: Final = 255
_MOST_PLACES: Final = 30
_OUR_CODE: Final = __file__.removesuffix("failures.py")
_UNPRINTABLE: Final = "(its message cannot be printed)"


def describe(error: BaseException) -> str:
    """An exception as storable text of at most 2,000 characters, whatever its own methods do.

    The first line is its type and message. Those of its causes, and of a group's members, follow in lines of their own.
    """
    error = _meant(error)
    relatives = list(_relatives(error))
    lines = [f"note: {note}"[:_MOST_OF_A_RELATIVE] for note in _notes(error)]
    lines += [f"{label} {_line(relative)}"[:_MOST_OF_A_RELATIVE] for label, relative in relatives[:_MOST_RELATIVES]]
    if len(relatives) > _MOST_RELATIVES:
        lines.append("and more")
    below = "".join(f"\n{line}" for line in lines)[: _MOST_CHARACTERS // 2]
    text = _line(error)[: _MOST_CHARACTERS - len(below)] + below
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def is_a(error: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """What `except` would say. `isinstance` asks the object as well, which may lie, or raise."""
    return issubclass(type(error), kinds)


def name_of(error: BaseException) -> str:
    """The name of its class, as the interpreter set it: a metaclass may say another one, or raise."""
    name: str = vars(type)["__qualname__"].__get__(type(error))
    return name


def type_of(error: BaseException) -> str:
    """`name_of` what is recorded, as printable text of at most 255 characters."""
    name = str.__getitem__(name_of(_meant(error)), slice(_LONGEST_TYPE))
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep; or else `error` alone."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if is_a(each, BaseExceptionGroup):
            waiting += reversed(_attribute(BaseExceptionGroup, "exceptions", each))
        else:
            yield each


def message_of(error: BaseException) -> str:
    """`str(error)`, at most 2,000 characters of it, whatever its own methods do."""
    try:
        # Of a subclass of `str` every method may be another one.
        return str.__getitem__(str(error), slice(_MOST_CHARACTERS))
    except BaseException:  # noqa: BLE001 - a hostile __str__ must not hide that the step failed
        return _UNPRINTABLE


def places_of(error: BaseException) -> str:
    """Where it came by, outermost first: `file:line` of the last of them, and nothing that was in there."""
    return ", ".join(deque(_places(error), maxlen=_MOST_PLACES))


def _places(error: BaseException) -> Iterator[str]:
    passed = traceback.walk_tb(_attribute(BaseException, "__traceback__", error))
    return (f"{frame.f_code.co_filename}:{line}" for frame, line in passed)


def trace_of(error: BaseException, *, with_text: bool) -> str:
    """The exception and those behind it, each with where it came by, in one line; what they say only `with_text`."""
    relatives = islice(_relatives(error), _MOST_RELATIVES)
    behind = (f"; {label.strip()} {_trace(each, with_text=with_text)}" for label, each in relatives)
    return "".join([_trace(error, with_text=with_text), *behind])


def _trace(error: BaseException, *, with_text: bool) -> str:
    passed = list(_places(error))
    # How our own code came to call the application's is the same each time.
    places = ([place for place in passed if not place.startswith(_OUR_CODE)] or passed)[-_MOST_PLACES:]
    what = _line(error)[:_MOST_OF_A_RELATIVE] if with_text else name_of(error)
    return f"{what} at {', '.join(places)}" if places else what


def note(error: BaseException, text: str) -> None:
    """Add a note to somebody else's exception, if it takes one."""
    with suppress(Exception):
        BaseException.add_note(error, text)


def _meant(error: BaseException) -> BaseException:
    """What was raised, where an `AbnormalExit` stands for it."""
    return error.__cause__ if type(error) is AbnormalExit and error.__cause__ is not None else error


def _line(error: BaseException) -> str:
    name, message = name_of(error), message_of(error)
    return f"{name}: {message}" if message else name


def _notes(error: BaseException) -> list[str]:
    """What was added with `add_note`."""
    notes = _attribute(BaseException, "__dict__", error).get("__notes__", ())
    return [note for note in notes if type(note) is str][:_MOST_RELATIVES] if type(notes) is list else []


def _relatives(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """The exceptions behind `error`, each with how it is related; at most one more than are recorded."""
    seen = {id(error)}
    waiting = [("", error, 0)]
    found = 0
    while waiting and found <= _MOST_RELATIVES:
        indent, parent, level = waiting.pop()
        nearest = [(label, child) for label, child in _nearest(parent) if id(child) not in seen]
        seen |= {id(child) for _, child in nearest}
        if level:
            yield indent, parent
            found += 1
        if level < _MOST_LEVELS:
            deeper = "  " * level
            waiting += [(deeper + label, child, level + 1) for label, child in reversed(nearest)]


def _nearest(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    if is_a(error, BaseExceptionGroup):
        for number, member in enumerate(_attribute(BaseExceptionGroup, "exceptions", error)[: _MOST_RELATIVES + 1], 1):
            yield f"[{number}]", member
    cause = _attribute(BaseException, "__cause__", error)
    context = _attribute(BaseException, "__context__", error)
    if is_a(error, TimeoutError) and CancelledError in (type(cause), type(context)):
        return  # how what takes too long is ended
    if cause is not None:
        yield "caused by", cause
    elif context is not None and not _attribute(BaseException, "__suppress_context__", error):
        yield "raised while handling", context


def _attribute(kind: type[BaseException], name: str, error: BaseException) -> Any:
    """As the interpreter set it: a class may have a property of that name."""
    return vars(kind)[name].__get__(error)
