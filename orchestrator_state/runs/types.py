"""Which types the state, the outputs and the result of a run have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from orchestrator_state.arguments import as_stored_name
from orchestrator_state.concurrency import LONG
from orchestrator_state.errors import ConfigurationError, CorruptPayload, InvalidPayload, SchemaMismatch
from orchestrator_state.payloads import (
    NotAccepted,
    Payloads,
    ValueType,
    decode,
    decode_value,
)
from orchestrator_state.records import OpenStep, StoredRun
from orchestrator_state.records.context import (
    ContextHistory,
    PlainContext,
    TypedContext,
    join,
    split,
)
from orchestrator_state.state_schema import FIRST, Schemas, StateSchema, as_model, encode_loaded, mismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTypes:
    """What a run's state, outputs and result are. Each may be None: plain JSON."""

    workflow_name: str
    schema: StateSchema | None
    state: type[BaseModel] | None
    result: Any
    payloads: Payloads

    @classmethod
    def of(
        cls, schemas: Schemas, payloads: Payloads, workflow_name: str, state: Any = None, result: Any = None
    ) -> RunTypes:
        """The types given with a call, else those of the schema. Raises `ConfigurationError` if the states disagree."""
        workflow_name = as_stored_name(workflow_name, "workflow_name")
        schema = schemas.find(workflow_name)
        model = None if state is None else as_model(state)
        if schema is not None and schema.state is not None:
            if model not in (None, schema.state):
                raise ConfigurationError(
                    f"the state of {workflow_name!r} is a {schema.state.__qualname__}, says its schema"
                )
            model = schema.state
        kind = schema.result if result is None and schema is not None else result
        if kind is not None:
            ValueType.of(kind)
        if result is not None:
            ValueType.of(result).require_storable()
        return cls(workflow_name=workflow_name, schema=schema, state=model, result=kind, payloads=payloads)

    @property
    def version(self) -> int | None:
        return None if self.schema is None else self.schema.version

    # --- context -------------------------------------------------------------------------------------------------

    def context_text(self, context: Any) -> str:
        """The JSON of what a run is started with: a dict, or an instance of the model. Raises `InvalidPayload`."""
        if self.state is None:
            return self.payloads.encode(_plain_context(context), "context")
        if isinstance(context, dict):
            text = self.payloads.encode(context, "context")
        elif isinstance(context, self.state):
            text = ValueType.of(self.state).dump(context, "context", self.payloads.encode)
        else:
            raise InvalidPayload(f"the context of this run is a {self.state.__qualname__}, or a dict", path="context")
        try:
            held = TypedContext(self.state, split(text, "context"), lambda _: None, self.payloads)
        except NotAccepted as error:
            raise InvalidPayload(f"{self.state.__qualname__} does not accept {error}", path=error.paths[0]) from None
        return join(held.encoded())

    async def started_with(self, context: Any) -> str:
        """`context_text`, beside the event loop if it is plain JSON and large."""
        if self.state is None:
            return await self.payloads.encode_aside(_plain_context(context), "context")
        return self.context_text(context)

    def hold(self, history: ContextHistory, found: int) -> None:
        """Give the handler of `history` its typed state. Raises `StateMismatch`."""
        if self.state is None:
            history.hold(PlainContext(history.start, history.touch, self.payloads))
            return
        try:
            history.hold(TypedContext(self.state, history.start, history.touch, self.payloads))
            self._check_context(join(history.committed))
        except NotAccepted as error:
            raise self._mismatch(error, found) from None

    def _check_context(self, text: str) -> None:
        if self.state is not None:
            decode_value(self.state, text, "context")

    # --- outputs and result --------------------------------------------------------------------------------------

    def of_step(self, step_id: str, returns: Any) -> Any:
        """The type of a step's outputs: as given with the call, else as the schema says.

        Raises `ConfigurationError` for one that pydantic does not know.
        """
        kind = self.schema.type_of(step_id) if returns is None and self.schema is not None else returns
        if kind is not None:
            ValueType.of(kind)
        return kind

    async def decode_outputs(self, step: OpenStep, returns: Any, workflow_state_id: UUID) -> Any:
        """The recorded outputs; `returns` is what `of_step` says. Raises `StateMismatch`."""
        path = f"steps[{step.step_id!r}].outputs"
        try:
            if len(step.outputs) < LONG:
                return decode_value(returns, step.outputs, path)
            return await self.payloads.decode_aside(returns, step.outputs, path)
        except NotAccepted as error:
            about = {"workflow_state_id": workflow_state_id, "step_id": step.step_id}
            raise self._mismatch(error, step.schema_version).concerning(**about) from None

    async def encode(self, kind: Any, value: Any, path: str) -> tuple[str, Any]:
        """See `ValueType.encode`; beside the event loop if it is plain JSON and large."""
        if kind is None:
            try:
                return await self.payloads.encode_aside(value, path), value
            except InvalidPayload as error:
                raise _hinting_at_types(error) from None
        return ValueType.of(kind).encode(value, path, self.payloads.encode)

    async def decode_result(self, run: StoredRun, text: str) -> Any:
        """The result of a completed run, recorded as `text`. Raises `SchemaMismatch`."""
        try:
            if self.schema is not None:
                found = self.schema.require_readable(run.schema_version, "result")
                text = encode_loaded(self.schema.upcast_end(decode(text, "result"), found), "result")
            return await self.payloads.decode_aside(self.result, text, "result")
        except NotAccepted as error:
            raise self._mismatch(error, run.schema_version).concerning(workflow_state_id=run.id) from None
        except (SchemaMismatch, CorruptPayload) as error:
            raise error.concerning(workflow_state_id=run.id) from None

    def _mismatch(self, error: NotAccepted, found: int | None) -> SchemaMismatch:
        return mismatch(self.workflow_name, error, found or FIRST, self.version or FIRST)


def _hinting_at_types(error: InvalidPayload) -> InvalidPayload:
    if "found" not in error.about:
        return error
    return InvalidPayload(f"{error}, or pass `returns=` with its type", **error.about)


def _plain_context(context: Any) -> dict[str, Any]:
    if isinstance(context, BaseModel):
        raise InvalidPayload(
            "the context of a run is a dict; pass `state=` with the model to start it with an instance", path="context"
        )
    if type(context) is not dict:
        raise InvalidPayload("the context of a run is a dict", path="context")
    return context
