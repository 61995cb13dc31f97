"""What calls of models have used, written for a run whose row is there: with a commit of its own, or with none.

The ids are made where it is recorded, so that what is written twice is there once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import CTE, JSON, FromClause, Insert, String, Text, bindparam, cast, column, func, select, true

from orchestrator_state.database import conflict_aware_insert, database_now
from orchestrator_state.models import run_usage, workflow_states
from orchestrator_state.records import UsageRecord

_w = workflow_states.c
OF_RUN: Final = (_w.namespace, _w.workflow_id, _w.workflow_name, _w.user_id)
_INTO: Final = ["namespace", "workflow_id", "workflow_name", "user_id", "workflow_state_id"]
_USED: Final = {name: f"used_{name}" for name in UsageRecord._fields}
"""The parameters of a record, by column. None is called like a column."""


def used_text(usage: Sequence[UsageRecord]) -> str | None:
    """As the one parameter that holds any number of records."""
    return json.dumps([each._asdict() for each in usage], default=str) if usage else None


def inserted_with(updated: FromClause) -> CTE:
    """Part of one statement: of each run in `updated`, what stands in its `used`."""
    columns = (column(name, _transferred(run_usage.c[name].type)) for name in _USED)
    used = func.json_to_recordset(cast(updated.c.used, JSON)).table_valued(*columns, name="used_here")
    rows = used.render_derived(with_types=True)
    source = select(*(updated.c[each.name] for each in OF_RUN), updated.c.fence_id, *rows.c, database_now())
    insert = conflict_aware_insert("postgresql", run_usage).from_select(
        [*_INTO, *_USED, "recorded_at"], source.select_from(updated.join(rows, true()))
    )
    return insert.on_conflict_do_nothing(index_elements=["id"]).cte("used_too")


@cache
def inserting(dialect: str) -> Insert:
    """A statement for one record of a run: nothing is written for a run that is gone."""
    values = (bindparam(parameter, type_=run_usage.c[name].type) for name, parameter in _USED.items())
    run = select(*OF_RUN, _w.id, *values, database_now()).where(_w.id == bindparam("fence_id", type_=_w.id.type))
    # Whoever deletes the run, and then what its user has used, comes before this or after it: not in between.
    run = run.with_for_update(read=True, key_share=True)
    insert = conflict_aware_insert(dialect, run_usage).from_select([*_INTO, *_USED, "recorded_at"], run)
    return insert.on_conflict_do_nothing(index_elements=["id"])


def values_of_usage(run_id: UUID, usage: Sequence[UsageRecord]) -> list[dict[str, Any]]:
    """The parameters of `inserting`, for each record."""
    return [{"fence_id": run_id, **dict(zip(_USED.values(), each, strict=True))} for each in usage]


def _transferred(kind: Any) -> Any:
    return Text() if isinstance(kind, String) else kind
