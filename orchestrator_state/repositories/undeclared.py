"""The payloads of a unit of work that was made by hand, and not told how its store writes them.

They are written as they are, as in a store without codecs; but not beside rows that are encrypted, where nobody would
notice. Who opened an encrypting store on the same engine is known. Of another engine only the rows tell: the newest of
each status are looked at, once for each unit of work, and only if it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Select, bindparam, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.database import PROTECTED_NAMESPACES, database_errors
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.models import WorkflowRow
from orchestrator_state.payloads import Payloads, Sealed, tags_of

_NO_PROTECTION: Final = frozenset({"zstd", "blob"})
_LONGEST_START: Final = 1024  # characters of an envelope: more than its tags have


class UndeclaredPayloads(Payloads):
    """See above. For one unit of work."""

    def __init__(self) -> None:
        super().__init__()
        self.is_to_be_checked = False
        self._was_checked = False

    def seal(self, text: str, identity: str, bound_to: str = "") -> Sealed:
        self.is_to_be_checked = not self._was_checked
        return super().seal(text, identity, bound_to)

    async def check(self, session: AsyncSession, namespace: str, options: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` if what was sealed would stand unencrypted beside encrypted rows."""
        protected = session.get_bind().get_execution_options().get(PROTECTED_NAMESPACES, ())
        if namespace in protected or await _are_encrypted(session, namespace, options):
            raise ConfigurationError(
                f"the store of namespace {namespace!r} encrypts its payloads, and this UnitOfWork would not: use "
                "`store.unit_of_work(session)`, or, to write them unencrypted on purpose, pass payloads=Payloads()"
            )
        self.is_to_be_checked, self._was_checked = False, True


async def _are_encrypted(session: AsyncSession, namespace: str, options: Mapping[str, Any]) -> bool:
    with database_errors():
        starts = (await session.execute(_NEWEST, {"namespace": namespace}, execution_options=options)).scalars().all()
    return any({tag.partition("=")[0] for tag in tags_of(start)} - _NO_PROTECTION for start in starts)


def _newest(status: WorkflowStatus) -> Select[tuple[str]]:
    """By the index on namespace, status and time: of all together there is none."""
    start = func.substr(WorkflowRow.context, 1, _LONGEST_START).label("start")
    newest = (
        select(start)
        .where(WorkflowRow.namespace == bindparam("namespace"), WorkflowRow.status == status.value)
        .order_by(WorkflowRow.updated_at.desc())
        .limit(1)
    )
    return select(newest.subquery().c.start)


_NEWEST: Final = union_all(*map(_newest, WorkflowStatus))
