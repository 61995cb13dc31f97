"""Others that do the same, measured beside us where they are installed (the extra `bench-peers`).

Nothing here is imported unless its library is there.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.contest import Entrant


def installed_peers() -> dict[str, Entrant]:
    """Those that can enter the contest, by name."""
    peers: dict[str, Entrant] = {}
    if has_dbos():
        from benchmarks.peers import with_dbos

        peers["DBOS"] = with_dbos.enter
    if has_langgraph():
        from benchmarks.peers import with_langgraph

        peers["LangGraph"] = with_langgraph.enter
    return peers


def missing_peers() -> list[str]:
    return [name for name, is_there in (("DBOS", has_dbos()), ("LangGraph", has_langgraph())) if not is_there]


def has_dbos() -> bool:
    return find_spec("dbos") is not None


def has_langgraph() -> bool:
    return find_spec("langgraph") is not None
