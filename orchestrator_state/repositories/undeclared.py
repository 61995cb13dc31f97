"""The payloads of a unit of work that was made by hand, and not told how its store writes them.

They are written as they are, as in a store without codecs; but not beside rows that are encrypted, where nobody would
notice. An encrypting store that is open in this process, on whatever engine, is known. Of those of other processes only
the rows tell: the newest of each status are looked at, once for each unit of work, and only if it writes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Executable, Select, bindparam, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from orchestrator_state.database import database_errors, is_protected
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.models import WorkflowRow
from orchestrator_state.payloads import Payloads, Sealed, tags_of

_Rows = Callable[[Executable, Mapping[str, Any]], Awaitable[Sequence[Any]]]
_NO_PROTECTION: Final = frozenset({"zstd", "blob"})
_LONGEST_START: Final = 1024  # characters of an envelope: more than its tags have


class UndeclaredPayloads(Payloads):
    """See above. For one unit of work."""

    def __init__(self) -> None:
        super().__init__()
        self.is_to_be_checked = False
        self._was_checked = False

    def prepared(self, text: str, identity: str, bound_to: str = "") -> Sealed:
        """Whatever is to be stored is prepared: what is long not by `seal`, but before it."""
        self.is_to_be_checked = not self._was_checked
        return super().prepared(text, identity, bound_to)

    async def check(self, session: AsyncSession, namespace: str, rows: _Rows) -> None:
        """Raise `ConfigurationError` if what was sealed would stand unencrypted beside encrypted rows."""
        self.is_to_be_checked = False  # the query that looks is a statement of this unit as well
        is_encrypted = True  # as long as nobody knows
        try:
            is_encrypted = await _is_known(session, namespace) or _are_encrypted(
                await rows(_NEWEST, {"namespace": namespace})
            )
        finally:
            self.is_to_be_checked, self._was_checked = is_encrypted, not is_encrypted
        if is_encrypted:
            raise ConfigurationError(
                f"the store of namespace {namespace!r} encrypts its payloads, and this UnitOfWork would not: use "
                "`store.unit_of_work(session)`, or, to write them unencrypted on purpose, pass payloads=Payloads()"
            )


async def _is_known(session: AsyncSession, namespace: str) -> bool:
    with database_errors():
        return await is_protected(await session.connection({"mapper": WorkflowRow.__mapper__}), namespace)


def _are_encrypted(starts: Sequence[Any]) -> bool:
    return any({tag.partition("=")[0] for tag in tags_of(start)} - _NO_PROTECTION for (start,) in starts)


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
