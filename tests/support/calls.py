"""Every call of a store, each with arguments that it takes: for what has to hold of all of them."""

import inspect
import io
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from orchestrator_state import Checkpoint, Retention, StateStore
from tests.support.old_databases import an_original_file
from tests.support.states import a_state


async def handler(run: Any) -> int:
    return int(await run.step("load", lambda: 1))


_SAMPLES: Final[Mapping[str, Callable[[], Any]]] = {
    "checkpoint": lambda: Checkpoint(workflow_state_id=uuid4(), step_id="load", snapshot={}),
    "checkpoint_id": uuid4,
    "file": io.BytesIO,
    "database": an_original_file,
    "handler": lambda: handler,
    "handlers": lambda: {"n": handler},
    "keep": lambda: 1,
    "name": lambda: "n",
    "path": lambda: Path(tempfile.mkdtemp()) / "copy.db",
    "policy": lambda: Retention(completed=timedelta(days=1)),
    "question_id": uuid4,
    "older_than": lambda: timedelta(days=1),
    "state": a_state,
    "user_id": lambda: "u",
    "value": lambda: 1,
    "workflow_id": lambda: "other",
    "workflow_state_id": uuid4,
}
"""What stands for a parameter that has to be given, by its name."""


def names_of(kind: type[object]) -> set[str]:
    """What users see of a class."""
    return {name for name in dir(kind) if not name.startswith("_")}


def arguments_of(call: Callable[..., Any]) -> dict[str, Any]:
    """Those that `call` cannot do without."""
    needed = [
        parameter.name
        for parameter in list(inspect.signature(call).parameters.values())[1:]
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    unknown = set(needed) - _SAMPLES.keys()
    assert not unknown, f"say in tests/support/calls.py what to call {call.__name__} with as {unknown}"
    return {name: _SAMPLES[name]() for name in needed}


def calls_of_stores() -> dict[str, Callable[[StateStore], Awaitable[Any]]]:
    """By name: all that are awaited, but for `close`."""
    return {name: _calling(name) for name in sorted(names_of(StateStore) - {"close"}) if _is_awaited(name)}


def _only_by_place(call: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(call).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]


def _is_awaited(name: str) -> bool:
    call = getattr(StateStore, name)
    if inspect.iscoroutinefunction(call):
        return True
    return callable(call) and str(inspect.signature(call).return_annotation).startswith(("Coroutine", "Awaitable"))


def _calling(name: str) -> Callable[[StateStore], Awaitable[Any]]:
    method = getattr(StateStore, name)

    def call(store: StateStore) -> Awaitable[Any]:
        given = arguments_of(method)
        by_place = [given.pop(name) for name in _only_by_place(method) if name in given]
        answer: Awaitable[Any] = method(store, *by_place, **given)
        return answer

    return call
