"""Each column that can be damaged has a check of its type, and no column is forgotten."""

import pytest
from sqlalchemy import Integer, Table

from orchestrator_state.column_types import Identifier, UtcTimestamp
from orchestrator_state.damaged import DAMAGED_ID, DAMAGED_TIME
from orchestrator_state.models import checkpoints, requests, signals, step_states, workflow_states
from orchestrator_state.records.cells import CELLS

TABLES = [workflow_states, step_states, checkpoints, signals, requests]


def is_payload(table: Table, name: str) -> bool:
    return name.endswith("_digest") or f"{name}_digest" in table.c


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_each_column_but_the_payloads_is_checked(table: Table) -> None:
    assert list(CELLS[table.name]) == [column.name for column in table.c if not is_payload(table, column.name)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_check_is_of_the_columns_type(table: Table) -> None:
    for name, is_sound in CELLS[table.name].items():
        column = table.c[name]
        assert is_sound(None) is column.nullable, name
        damaged = {UtcTimestamp: DAMAGED_TIME, Identifier: DAMAGED_ID}.get(column.type)  # type: ignore[call-overload]
        damaged = damaged or ("1" if isinstance(column.type, Integer) else 1)
        assert not is_sound(damaged), name
