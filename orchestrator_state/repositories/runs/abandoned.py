"""What a worker that looks for abandoned runs may claim, and what it leaves alone.

A worker that has nothing to do asks these over and over: each is made once, for the versions that it asks with. They
are asked of `of_namespace`, for the handlers `of_names`, and for `most` runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    Executable,
    Integer,
    bindparam,
    case,
    func,
    literal,
    not_,
    or_,
    select,
)

from orchestrator_state.models import WorkflowRow
from orchestrator_state.repositories.claimable import IS_AWAKE, IS_UNDER_WAY, LEASE_IS_FREE
from orchestrator_state.repositories.counts import COUNTS, IS_WRITABLE
from orchestrator_state.repositories.runs.suspects import IS_SUSPECT, rested_suspects
from orchestrator_state.state_schema import FIRST

Versions = frozenset[tuple[str, int]]
"""The workflows that have a schema, and at which version that is."""

_NAMES: Final[BindParameter[Any]] = bindparam("of_names", expanding=True)
_MOST: Final = bindparam("most", type_=Integer())
_IS_FREE: Final = (WorkflowRow.namespace == bindparam("of_namespace"), IS_UNDER_WAY, LEASE_IS_FREE, IS_AWAKE)


def free_runs(versions: Versions, *, of_suspects: bool) -> CTE:
    """The ids of runs to claim; of suspects those of `of_ids`.

    Materialized: a plain subquery Postgres may evaluate once for each row of a nested loop, and claim far more than
    `most`. Passed over is a row that is being changed, and not one that is kept from being deleted.
    """
    kind = WorkflowRow.id.in_(bindparam("of_ids", expanding=True)) if of_suspects else not_(IS_SUSPECT)
    return (
        select(WorkflowRow.id)
        .where(*_claimable(versions), kind)
        .order_by(WorkflowRow.updated_at)
        .limit(_MOST)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("free")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


@lru_cache
def rested_runs(versions: Versions, *, patient: bool) -> Executable:
    """Those that may kill their workers, and may be tried now; see `rested_suspects`."""
    return rested_suspects(*_claimable(versions), patient=patient)


@lru_cache
def unclaimable_runs(versions: Versions) -> Executable:
    """Free runs of other handlers, or of newer code, or that cannot be written to."""
    is_left = or_(WorkflowRow.workflow_name.not_in(_NAMES), not_(_has_readable_version(versions)), not_(IS_WRITABLE))
    return (
        select(
            WorkflowRow.id,
            WorkflowRow.workflow_id,
            WorkflowRow.workflow_name,
            WorkflowRow.schema_version,
            IS_WRITABLE.label("is_writable"),
            *COUNTS,
        )
        .where(*_IS_FREE, is_left)
        .order_by(WorkflowRow.updated_at)
        .limit(_MOST)
    )


def _claimable(versions: Versions) -> tuple[ColumnElement[bool], ...]:
    return *_IS_FREE, WorkflowRow.workflow_name.in_(_NAMES), _has_readable_version(versions), IS_WRITABLE


def _has_readable_version(versions: Versions) -> ColumnElement[bool]:
    known = case(dict(sorted(versions)), value=WorkflowRow.workflow_name, else_=FIRST) if versions else literal(FIRST)
    return func.coalesce(WorkflowRow.schema_version, FIRST) <= known
