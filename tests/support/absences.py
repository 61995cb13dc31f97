"""A database that goes away without any connection being cut: it answers no statement any more."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine

from orchestrator_state import StateStore, StoreUnavailable
from tests.support.statements import listening


class Absence:
    """Whether the database `is_away` at the moment. It may be told to go with the next commit, which takes effect."""

    def __init__(self) -> None:
        self.is_away = False
        self.begins_at_a_commit = False
        self._has_written = False

    async def begin(self) -> None:
        self.is_away = True

    def _refuse(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        if self.is_away:
            raise StoreUnavailable("the server is away", transient=True)
        self._has_written = self._has_written or bool(re.match(r"\s*(INSERT|UPDATE|DELETE|WITH)\b", statement))

    def _at_a_commit(self, _: Any) -> None:
        self.is_away = self.is_away or (self.begins_at_a_commit and self._has_written)


@contextmanager
def absence_of(store: StateStore | None) -> Iterator[Absence]:
    """What the database of `store` does in the block is up to the test; None is for all that this process opens."""
    engine: Any = Engine if store is None else store._transactions.database._pool.sync_engine
    absence = Absence()
    with listening(engine, {"before_cursor_execute": absence._refuse, "commit": absence._at_a_commit}):
        yield absence
