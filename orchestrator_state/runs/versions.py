"""Bring what is recorded of a run to the version that the code has today, and check that it is of the run's types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from orchestrator_state.domain import StepStatus
from orchestrator_state.errors import SchemaMismatch
from orchestrator_state.payloads import decode
from orchestrator_state.records import ClaimedRun, OpenStep, StoredRun
from orchestrator_state.records.context import ContextHistory, Encoded, converted, join, split
from orchestrator_state.runs.types import RunTypes
from orchestrator_state.state_schema import FIRST, StateSchema, encode_loaded
from orchestrator_state.transactions import Transactions


async def bring_up_to_date(
    transactions: Transactions,
    run: ClaimedRun,
    types: RunTypes,
    recorded: tuple[Sequence[OpenStep], ContextHistory],
) -> tuple[Sequence[OpenStep], ContextHistory]:
    """Return a run's history at today's version and of its types; what was older is stored anew, in one transaction.

    Nothing is written unless all of it was converted and is accepted. Raises `SchemaMismatch`.
    """
    schema = types.schema
    # What is the application's, its upcasters and models, is called in the loop.
    length = recorded[1].length if schema is None and types.state is None else 0
    bringing = partial(as_of_today, run.stored, types, recorded)
    steps, history, is_converted = await transactions.payloads.aside.call(bringing, length)
    if is_converted and schema is not None:
        await transactions.write(
            lambda uow: uow.history.convert(
                run.lease,
                initial=join(history.start),
                context=join(history.committed),
                version=schema.version,
                steps=steps,
            )
        )
    return steps, history


def as_of_today(
    run: StoredRun, types: RunTypes, recorded: tuple[Sequence[OpenStep], ContextHistory]
) -> tuple[Sequence[OpenStep], ContextHistory, bool]:
    """A run's history at today's version and of its types, and whether that differs. Raises `SchemaMismatch`."""
    steps, history = recorded
    schema, found = types.schema, run.schema_version or FIRST
    try:
        if schema is not None and found < schema.version:
            history = _upcast_history(schema, history, found)
        types.hold(history, found)
        if schema is None:
            return steps, history, False
        today = [_upcast_step(schema, step) for step in steps]
        if found == schema.version and today == list(steps):
            return steps, history, False
    except SchemaMismatch as error:
        raise error.concerning(workflow_state_id=run.id) from None
    return [_with_patch(step, schema, history) for step in today], history, True


def _upcast_step(schema: StateSchema, step: OpenStep) -> OpenStep:
    path = f"steps[{step.step_id!r}].outputs"
    found = schema.require_readable(step.schema_version, path)
    if step.status != StepStatus.COMPLETED:
        return step
    text = step.outputs
    if found < schema.version:
        outputs = schema.upcast_step(step.step_id, decode(text, path), found, schema.version)
        text = encode_loaded(outputs, path)
    if schema.type_of(step.step_id) is not None:
        schema.check_outputs(step.step_id, text, found)
    return step if found == schema.version else step._replace(outputs=text, schema_version=schema.version)


def _upcast_history(schema: StateSchema, history: ContextHistory, found: int) -> ContextHistory:
    """A resumed handler passes through each context that a step left behind, so each of them is upcast."""

    def convert(context: Encoded) -> Encoded:
        upcast = schema.upcast_context(decode(join(context), "context"), found, schema.version)
        text = encode_loaded(upcast, "context")
        schema.check_context(text, found)
        return split(text, "context")

    start, patches, committed = converted(history.start, history.patches, convert)
    return ContextHistory(join(start), committed, patches)


def _with_patch(step: OpenStep, schema: StateSchema, history: ContextHistory) -> OpenStep:
    patch = history.patches.get(step.position)
    return step._replace(schema_version=schema.version, context_patch=None if patch is None else patch.to_json())
