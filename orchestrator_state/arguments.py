"""Check the arguments of calls before any SQL, so that both databases refuse the same ones in the same words.

What is of a subclass comes back as what Python itself has of it: a str, an int, a UUID. A subclass may have methods of
its own for all that a message, a dict or a driver does with a value.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from types import FunctionType
from typing import Any, Final, TypeVar
from uuid import UUID

from orchestrator_state.errors import ConfigurationError, InvalidPayload
from orchestrator_state.payloads import LONGEST_NAME, check_text, text_of

_T = TypeVar("_T")
_YIELDS: Final = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_AT_ONCE: Final = timedelta()
_ANSWER: Final = re.compile(r"question:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def as_uuid(value: object, path: str) -> UUID:
    """Return the id, also from its text form. Raises `InvalidPayload`."""
    if type(value) is UUID:
        return value
    try:
        if isinstance(value, UUID):  # asyncpg returns a subclass
            return UUID(int=value.int)
        if isinstance(value, str):
            return UUID(str.__str__(value))
    except Exception:  # noqa: BLE001, S110 - refused below, whatever a subclass raises
        pass
    raise InvalidPayload(f"{path} is not a UUID", path=path)


def as_uuids(values: object, path: str) -> list[UUID]:
    """Return a list of ids, also from their text form. Raises `InvalidPayload`, which names the first that is none."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray | memoryview):
        raise InvalidPayload(f"{path} must be a list of UUIDs, not a {type(values).__name__}", path=path)
    return [as_uuid(value, f"{path}[{place}]") for place, value in enumerate(values)]


def as_name(value: object, path: str) -> str:
    """Return a name to search for. One that could not have been stored is refused."""
    name = text_of(value)
    if name is None:
        raise InvalidPayload(f"{path} must be a str, not {type(value).__name__}", path=path)
    check_text(name, path)
    return name


def as_utc(value: object, path: str) -> datetime:
    """Return an aware time in UTC. Raises `InvalidPayload` for a naive one."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidPayload(f"{path} must be an aware datetime, such as datetime.now(UTC)", path=path)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidPayload(f"{path} is outside the years 1 to 9999 in UTC", path=path) from None
    except Exception as error:  # noqa: BLE001 - a time zone may be anybody's
        message = f"{path} cannot be converted to UTC ({type(error).__qualname__})"
        raise InvalidPayload(message, path=path) from None


def as_count(value: object, path: str) -> int:
    """Return a whole number that is not negative, cut to what a database counts to. Raises `InvalidPayload`."""
    number = int.__int__(value) if isinstance(value, int) and not isinstance(value, bool) else -1
    if number < 0:
        raise InvalidPayload(f"{path} must be a whole number, 0 or more", path=path)
    return min(number, 2**63 - 1)


def as_duration(value: object, path: str) -> timedelta:
    """Return a duration, also from a number of seconds; a negative one becomes zero. Raises `InvalidPayload`."""
    duration = _duration(value)
    if duration is None:
        raise InvalidPayload(f"{path} must be a timedelta, or a number of seconds", path=path)
    return max(duration, _AT_ONCE)


def as_pause(value: object, name: str) -> timedelta:
    """Return a duration, also from a number of seconds. Raises `ConfigurationError`, also for a negative one."""
    duration = _duration(value)
    if duration is None:
        raise ConfigurationError(f"{name} must be a timedelta, or a number of seconds")
    if duration < _AT_ONCE:
        raise ConfigurationError(f"{name} must not be negative")
    return duration


def _duration(value: object) -> timedelta | None:
    """Of a timedelta, or a number of seconds; None if it is neither."""
    if isinstance(value, timedelta):
        return timedelta.__add__(value, _AT_ONCE)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    seconds = int.__int__(value) if isinstance(value, int) else float.__float__(value)
    try:
        return timedelta(seconds=seconds)
    except ValueError:
        return None  # not a number
    except OverflowError:
        if isinstance(seconds, float) and math.isinf(seconds):
            return None
        return timedelta.max if seconds > 0 else timedelta.min


def as_stored_name(value: object, path: str) -> str:
    """Return a name that can be stored: 1 to 255 characters. Raises `InvalidPayload`."""
    if type(value) is str and 0 < len(value) <= LONGEST_NAME and value.isascii() and "\0" not in value:
        return value  # as nearly always: each step passes through here
    name = as_name(value, path)
    if not 1 <= len(name) <= LONGEST_NAME:
        raise InvalidPayload(f"{path} must have 1 to {LONGEST_NAME} characters, not {len(name)}", path=path)
    return name


def as_signal_name(value: object) -> str:
    """Return a signal's name: 1 to 248 characters, since the step that waits for it is called `signal:<name>`."""
    name, longest = as_name(value, "name"), LONGEST_NAME - len("signal:")
    if not 1 <= len(name) <= longest:
        raise InvalidPayload(f"a signal's name must have 1 to {longest} characters, not {len(name)}", path="name")
    if _ANSWER.fullmatch(name):
        raise InvalidPayload(f"signals of the name {name} are answers: use store.answer", path="name")
    return name


def as_question_name(value: object) -> str:
    """Return a question's name: 1 to 246 characters, since the step that asks is called `question:<name>`."""
    name, longest = as_name(value, "name"), LONGEST_NAME - len("question:")
    if not 1 <= len(name) <= longest:
        raise InvalidPayload(f"a question's name must have 1 to {longest} characters, not {len(name)}", path="name")
    return name


def as_positive(value: object, name: str) -> int:
    """Return a whole number of 1 or more. Raises `ConfigurationError`."""
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"{name} must be a whole number, 1 or more")
    return value


def as_flag(value: object, name: str) -> bool:
    """Return True or False. Raises `ConfigurationError` for what only counts as one of them, such as "no"."""
    if type(value) is not bool:
        raise ConfigurationError(f"{name} must be True or False, not a {type(value).__name__}")
    return value


def as_function(value: object, name: str) -> Callable[..., Any]:
    """Return what can be called for a result. Raises `ConfigurationError`, also for what was called already."""
    if type(value) is FunctionType and not value.__code__.co_flags & _YIELDS:
        return value  # as nearly always: each step passes through here
    if inspect.iscoroutine(value):
        value.close()  # nobody is going to await it
        raise ConfigurationError(
            f"{name} is a coroutine: give the function, and its arguments after it, without calling it"
        )
    if not callable(value):
        raise ConfigurationError(f"{name} must be a function, not a {type(value).__name__}")
    if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise ConfigurationError(f"{name} is a generator; it must return its result instead of yielding it")
    return value


def as_executor(value: object) -> Executor:
    """Return what calls functions elsewhere. Raises `ConfigurationError`."""
    if not isinstance(value, Executor):
        raise ConfigurationError(f"executor must be a concurrent.futures.Executor, not a {type(value).__name__}")
    return value


def as_on_unknown(value: object) -> Any:
    """Return what to do about a step that was under way at a crash. Raises `ConfigurationError`."""
    if callable(value):
        return value
    choice = text_of(value)
    if choice not in ("retry", "raise"):
        raise ConfigurationError('on_unknown must be "retry", "raise", or a function that finds out')
    return choice


def as_configured_name(value: object, name: str) -> str:
    """`as_stored_name`, for what is configured and not stored. Raises `ConfigurationError`."""
    try:
        return as_stored_name(value, name)
    except InvalidPayload as error:
        raise ConfigurationError(str(error)) from None


def as_listener(value: object, name: str) -> Any:
    """Return a function to be told of something, or None. Raises `ConfigurationError`, also for an async one."""
    if value is None:
        return None
    if inspect.iscoroutinefunction(as_function(value, name)):
        raise ConfigurationError(f"{name} must be a plain function, not an async one: nobody would await it")
    return value


def as_handlers(value: object) -> dict[str, Callable[..., Any]]:
    """Return handlers by name. Raises `ConfigurationError`."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"handlers must be a mapping of names to functions, not a {type(value).__name__}")
    for name, handler in value.items():
        as_configured_name(name, "the name of a handler")
        as_function(handler, f"the handler of {name!r}")
    return dict(value)


def as_instance(value: object, kind: type[_T], path: str) -> _T:
    """Return an object of one of our models. Raises `InvalidPayload`."""
    if isinstance(value, kind):
        return value
    raise InvalidPayload(f"{path} must be a {kind.__name__}, not a {type(value).__name__}", path=path)
