"""The version of an application's state, its types, and how old versions become the current one.

schema = StateSchema("pipeline", version=2, state=Totals, outputs={"fetch": Page})

@schema.upcast(1)
def _(context: dict[str, Any]) -> dict[str, Any]:
    return context | {"currency": "EUR"}

StateStore.open(url, schemas=[schema])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel, RootModel

from orchestrator_state.arguments import as_configured_name, as_function
from orchestrator_state.errors import (
    ConfigurationError,
    NewerSchemaVersion,
    PayloadError,
    StateMismatch,
    UpcasterFailed,
    UpcasterMissing,
)
from orchestrator_state.failures import name_of
from orchestrator_state.payloads import (
    MOST,
    NotAccepted,
    ValueType,
    copied,
    decode_value,
    encode,
)

__all__ = [
    "StateSchema",
]

Upcaster = Callable[[Any], Any]
_Upcaster = TypeVar("_Upcaster", bound=Upcaster)
FIRST: Final = 1
"""The version of what was stored without one."""


class StateSchema:
    """What the workflows of one name store at `version`. Give it to `StateStore.open(url, schemas=[...])`.

    `state` is the model of the context, `outputs` the types of steps by step id (`fetch` is that of `fetch#2` too), and
    `result` that of the handler's result: what `state=` and `returns=` are where they are not given. All are optional.

    An upcaster makes one version of a payload from the version before. It gets plain JSON and returns plain JSON, must
    have no effects, and runs as often as something old is loaded.
    """

    def __init__(
        self,
        workflow_name: str,
        *,
        version: int = FIRST,
        state: type[BaseModel] | None = None,
        outputs: Mapping[str, Any] | None = None,
        result: Any = None,
    ) -> None:
        """Raises `ConfigurationError` for what is no version or no model, or a type that pydantic does not know."""
        if type(version) is not int or not FIRST <= version < 2**31:
            raise ConfigurationError("the version of a schema is a whole number, 1 or more")
        self.workflow_name: Final = as_configured_name(workflow_name, "workflow_name")
        if outputs is not None and not isinstance(outputs, Mapping):
            raise ConfigurationError(f"outputs is a {type(outputs).__name__}; give a mapping of step ids to types")
        self.version: Final = version
        self.state: Final = None if state is None else as_model(state)
        self.outputs: Final = {
            as_configured_name(step_id, "a key of outputs"): kind for step_id, kind in (outputs or {}).items()
        }
        self.result: Final = result
        for kind in (*self.outputs.values(), *(() if result is None else (result,))):
            ValueType.of(kind)
        self._upcasters: dict[tuple[str, str], dict[int, Upcaster]] = {}

    def upcast(self, version: int) -> Callable[[_Upcaster], _Upcaster]:
        """Register a function that makes a context of `version + 1` from one of `version`: dict to dict."""
        return self._register(("context", ""), version)

    def upcast_outputs(self, step_id: str, version: int) -> Callable[[_Upcaster], _Upcaster]:
        """Register a function that makes a step's outputs of `version + 1` from those of `version`."""
        return self._register(("outputs", as_configured_name(step_id, "step_id")), version)

    def upcast_result(self, version: int) -> Callable[[_Upcaster], _Upcaster]:
        """Register a function that makes a handler's result of `version + 1` from one of `version`."""
        return self._register(("result", ""), version)

    def type_of(self, step_id: str) -> Any:
        """The type of a step's outputs, or None."""
        return next((self.outputs[name] for name in _names(step_id) if name in self.outputs), None)

    def upcast_context(self, context: Any, found: int, to: int) -> Any:
        """Return `context` at version `to`. Every upcaster on the way must be there."""
        steps = self._upcasters.get(("context", ""), {})
        for version in range(found, to):
            if version not in steps:
                raise UpcasterMissing(
                    f"a context of {self.workflow_name!r} is at version {found}, and there is no upcaster "
                    f"from {version} to {version + 1}",
                    **self._about("context", found),
                    missing=version,
                )
            context = self._apply(steps[version], context, "context", found, version)
            if type(context) is not dict:
                raise self._failed("context", found, version, f"returned {type(context).__qualname__} and no dict")
        return context

    def upcast_step(self, step_id: str, outputs: Any, found: int, to: int) -> Any:
        """Return a step's outputs at version `to`: unchanged where there is no upcaster."""
        path = f"steps[{step_id!r}].outputs"
        found_as = (self._upcasters.get(("outputs", name)) for name in _names(step_id))
        registered = next(filter(None, found_as), {})
        return self._chain(registered, outputs, path, found, to)

    def upcast_end(self, result: Any, found: int) -> Any:
        """Return a result at today's version: unchanged where there is no upcaster."""
        return self._chain(self._upcasters.get(("result", ""), {}), result, "result", found, self.version)

    def require_readable(self, found: int | None, path: str) -> int:
        """Return the version `found` in a row. Raises `NewerSchemaVersion`."""
        version = FIRST if found is None else found
        if version > self.version:
            raise newer(self.workflow_name, version, self.version, path)
        return version

    def check_context(self, text: str, found: int) -> None:
        """Raise `StateMismatch` if the model does not accept the JSON `text` of a context."""
        self.read(self.state, text, "context", found)

    def check_outputs(self, step_id: str, text: str, found: int) -> None:
        self.read(self.type_of(step_id), text, f"steps[{step_id!r}].outputs", found)

    def read(self, kind: Any, text: str, path: str, found: int) -> Any:
        """Return the value of stored `text` as `kind`. Raises `StateMismatch`."""
        try:
            return decode_value(kind, text, path)
        except NotAccepted as error:
            raise mismatch(self.workflow_name, error, found, self.version) from None

    def _register(self, key: tuple[str, str], version: int) -> Callable[[_Upcaster], _Upcaster]:
        what = " ".join(part for part in key if part)

        def register(upcaster: _Upcaster) -> _Upcaster:
            registered = self._upcasters.setdefault(key, {})
            if type(version) is not int or not FIRST <= version < self.version:
                found = version if type(version) is int and abs(version) < 2**31 else "like that"
                raise ConfigurationError(
                    f"{what}: there is nothing to upcast from version {found} of {self.workflow_name!r}, "
                    f"which is at {self.version}"
                )
            if version in registered:
                raise ConfigurationError(f"{what}: there is an upcaster from version {version} already")
            if inspect.iscoroutinefunction(as_function(upcaster, f"{what}: an upcaster")):
                raise ConfigurationError(f"{what}: an upcaster is a plain function, not an async one")
            registered[version] = upcaster
            return upcaster

        return register

    def _chain(self, registered: Mapping[int, Upcaster], value: Any, path: str, found: int, to: int) -> Any:
        for version in range(found, to):
            if version in registered:
                value = self._apply(registered[version], value, path, found, version)
        return value

    def _apply(self, upcaster: Upcaster, value: Any, path: str, found: int, version: int) -> Any:
        try:
            upcast = upcaster(value)
        except BaseException as error:  # noqa: BLE001 - its message may quote the payload
            raise self._failed(path, found, version, f"raised {name_of(error)}") from None
        try:
            return copied(upcast, path)  # so that what it returns is JSON, and nobody else's
        except PayloadError as error:
            raise self._failed(path, found, version, f"returned what cannot be stored: {error}") from None

    def _failed(self, path: str, found: int, version: int, how: str) -> UpcasterFailed:
        message = f"the upcaster of {self.workflow_name!r} from version {version} to {version + 1} of {path} {how}"
        return UpcasterFailed(message, **self._about(path, found), failed=version)

    def _about(self, path: str, found: int) -> dict[str, Any]:
        return {"workflow_name": self.workflow_name, "path": path, "found": found, "expected": self.version}


class Schemas:
    """The schemas of a store, by workflow name. What has none is read and written as it is."""

    def __init__(self, schemas: Iterable[StateSchema] = ()) -> None:
        """Raises `ConfigurationError` for two of one name."""
        self._schemas: dict[str, StateSchema] = {}
        if not isinstance(schemas, Iterable):
            raise ConfigurationError(f"schemas is a {type(schemas).__name__}; give a list of StateSchema objects")
        for schema in schemas:
            if not isinstance(schema, StateSchema):
                raise ConfigurationError(f"schemas are StateSchema objects, not {type(schema).__qualname__}")
            if schema.workflow_name in self._schemas:
                raise ConfigurationError(f"there are two schemas of {schema.workflow_name!r}")
            self._schemas[schema.workflow_name] = schema

    def __iter__(self) -> Iterator[StateSchema]:
        return iter(self._schemas.values())

    def find(self, workflow_name: str) -> StateSchema | None:
        return self._schemas.get(workflow_name)

    def version_of(self, workflow_name: str) -> int | None:
        """What new rows are stamped with: None without a schema."""
        schema = self._schemas.get(workflow_name)
        return None if schema is None else schema.version

    def require_runnable(self, workflow_name: str, found: int | None, workflow_state_id: UUID) -> None:
        """Raise `NewerSchemaVersion` if a run is of a later version than this code; without a schema that is at 1.

        What is no version at all is damage, which is found when the run is loaded.
        """
        expected = self.version_of(workflow_name) or FIRST
        if isinstance(found, int) and found > expected:
            raise newer(workflow_name, found, expected, "context").concerning(workflow_state_id=workflow_state_id)

    def upcast_snapshot(self, snapshot: Any, found: int | None, to: int | None = None) -> Any:
        """Return a checkpoint's snapshot at version `to`, by default today's. One that is no state is left alone.

        The argument may be changed. Raises `SchemaMismatch`.
        """
        is_state = isinstance(snapshot, dict) and snapshot.keys() >= {"id", "workflow_name", "context", "steps"}
        name = snapshot["workflow_name"] if is_state else None
        schema = self.find(name) if isinstance(name, str) else None
        if schema is None:
            if isinstance(name, str) and to is not None and (found or FIRST) != to:
                raise UpcasterMissing(
                    f"there is no schema of {name!r} that brings a snapshot from version {found or FIRST} to {to}",
                    workflow_name=name,
                    path="snapshot",
                    found=found or FIRST,
                    expected=to,
                    missing=found or FIRST,
                )
            return snapshot
        version = schema.require_readable(found, "snapshot")
        target = schema.version if to is None else to
        if version > target:
            raise newer(schema.workflow_name, version, target, "snapshot")
        if version < target:
            snapshot["context"] = schema.upcast_context(snapshot["context"], version, target)
            for step_id, step in _completed(snapshot["steps"]):
                step["outputs"] = schema.upcast_step(step_id, step.get("outputs"), version, target)
        if to is None:
            self._check_snapshot(schema, snapshot, version)
        return snapshot

    def _check_snapshot(self, schema: StateSchema, snapshot: dict[str, Any], found: int) -> None:
        if schema.state is not None:
            schema.check_context(encode_loaded(snapshot["context"], "context"), found)
        for step_id, step in _completed(snapshot["steps"]):
            if schema.type_of(step_id) is not None:
                schema.check_outputs(step_id, encode_loaded(step.get("outputs"), "outputs"), found)


NO_SCHEMAS: Final = Schemas()


def encode_loaded(value: Any, path: str) -> str:
    """The JSON of a value that was loaded: it was within the store's limits when it was stored."""
    return encode(value, path, MOST)


def as_model(model: Any) -> type[BaseModel]:
    """Raises `ConfigurationError` for what cannot be a state: its JSON must be an object with the fields as keys."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or issubclass(model, RootModel):
        raise ConfigurationError("the type of a state is a pydantic model with fields")
    return model


def newer(workflow_name: str, found: int, expected: int, path: str) -> NewerSchemaVersion:
    return NewerSchemaVersion(
        f"the {path} of a {workflow_name!r} is at version {found}, newer than this code's {expected}",
        workflow_name=workflow_name,
        path=path,
        found=found,
        expected=expected,
    )


def mismatch(workflow_name: str, error: NotAccepted, found: int, expected: int) -> StateMismatch:
    return StateMismatch(
        f"the types of {workflow_name!r} do not accept what is stored: {error}",
        workflow_name=workflow_name,
        path=error.paths[0],
        paths=error.paths,
        found=found,
        expected=expected,
    )


def _names(step_id: str) -> Iterator[str]:
    """What a step may be registered as: `fetch#2`, and then `fetch`, for `fetch#2`."""
    yield step_id
    name, _, number = step_id.rpartition("#")
    if name and number.isdecimal():
        yield from _names(name)


def _completed(steps: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The completed steps of a snapshot: only they have outputs of the application's."""
    if isinstance(steps, dict):
        for step_id, step in steps.items():
            if isinstance(step, dict) and str(step.get("status")).lower() == "completed":
                yield step_id, step
