"""Which store a command works on: the options that say it are the same of every command, and stand here once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from orchestrator_state.cli.application import OptionalApp, store_options
from orchestrator_state.cli.options import Namespace, Schema, Url

if TYPE_CHECKING:
    from orchestrator_state import StateStore

_Result = TypeVar("_Result")
_Own = ParamSpec("_Own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The database, and how its application opens it."""

    app: str | None
    url: str | None
    db_schema: str | None
    namespace: str | None

    def open(self, work: Callable[[StateStore], Awaitable[_Result]]) -> _Result:
        """Return what `work` does with the store."""
        return with_store(store_options(self.app, self.url, self.db_schema, self.namespace), work)


def on_store(command: Callable[Concatenate[Target, _Own], None]) -> Callable[..., None]:
    """Give a command the options that say which store it works on, as one `Target`."""
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(_shared, eval_str=True).parameters

    def run(**given: Any) -> None:
        target = Target(**{name: given.pop(name) for name in shared})
        cast(Callable[..., None], command)(target, **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared.values())]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _shared(
    app: OptionalApp = None, url: Url = None, db_schema: Schema = None, namespace: Namespace = None
) -> None: ...


def with_store(options: Mapping[str, Any], work: Callable[[StateStore], Awaitable[_Result]]) -> _Result:
    """Return what `work` does with the store that `store_options` describe."""
    from orchestrator_state import StateStore

    async def run() -> _Result:
        async with StateStore.open(**options) as store:
            return await work(store)

    return asyncio.run(run())
