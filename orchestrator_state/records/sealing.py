"""Columns as they are stored: payloads sealed, their digests beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from orchestrator_state.concurrency import LONG
from orchestrator_state.payloads import Payloads, Sealed
from orchestrator_state.records.identities import (
    STEP_PAYLOADS,
    WORKFLOW_PAYLOADS,
    Columns,
    step_identity,
    workflow_identity,
)


async def prepared_workflow(payloads: Payloads, workflow_state_id: UUID | str, columns: Columns) -> Columns:
    """`columns` for `seal_workflow`, with what is long about it done, before the transaction and beside the loop."""

    def prepare() -> Columns:
        return columns | {
            column: payloads.prepared(text, workflow_identity(workflow_state_id, column))
            for column in WORKFLOW_PAYLOADS.keys() & columns.keys()
            if isinstance(text := columns[column], str)
        }

    size = payloads.length(map(columns.get, WORKFLOW_PAYLOADS))
    return columns if size < LONG else await payloads.aside.call(prepare, size)


def seal_workflow(payloads: Payloads, workflow_state_id: UUID | str, columns: Mapping[str, Any]) -> Columns:
    """`columns` as they are stored: payloads sealed, their digests beside them."""
    sealed = dict(columns)
    for column in WORKFLOW_PAYLOADS.keys() & columns.keys():
        _seal(payloads, sealed, column, workflow_identity(workflow_state_id, column))
    return sealed


def seal_step(payloads: Payloads, workflow_state_id: UUID | str, step_id: str, columns: Mapping[str, Any]) -> Columns:
    sealed = dict(columns)
    for column in STEP_PAYLOADS:
        if columns.get(column) is not None:
            _seal(payloads, sealed, column, step_identity(workflow_state_id, step_id, column))
        elif column in columns:
            sealed[f"{column}_digest"] = None
    return sealed


def _seal(payloads: Payloads, columns: Columns, column: str, identity: str) -> None:
    digest, value = None, columns[column]
    if isinstance(value, Sealed):
        columns[column], digest = payloads.placed(value, identity)
    elif value is not None:
        columns[column], digest = payloads.seal(value, identity)
    columns[f"{column}_digest"] = digest
