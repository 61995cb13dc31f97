"""`orchestrator-state db …`, and `… health`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator_state.cli.documents import show_json
from orchestrator_state.cli.options import Json, Schema, Url, Yes, require_yes
from orchestrator_state.cli.output import write
from orchestrator_state.cli.tables import escaped
from orchestrator_state.cli.target import Target, on_store

if TYPE_CHECKING:
    from orchestrator_state.database import Database
    from orchestrator_state.repositories.original import Survey
    from orchestrator_state.schema import SchemaState

_Result = TypeVar("_Result")

db = typer.Typer(no_args_is_help=True, help="Look at the database schema, and change it.")


@db.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Where to go.")] = "head",
    url: Url = None,
    db_schema: Schema = None,
    *,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Make a database of the original Rust crate ours, where it stands.")
    ] = False,
) -> None:
    """Bring the schema up to date. Safe to run from several places at once."""
    from orchestrator_state import schema

    _with_database(url, db_schema, lambda database: schema.upgrade(database, revision, in_place=in_place))
    write(f"the schema is at {_revision(_state(url, db_schema))}")


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go back to, or `base` to drop the tables.")],
    url: Url = None,
    db_schema: Schema = None,
    *,
    yes: Yes = False,
) -> None:
    """Go back to an older schema. What that schema has no room for is lost."""
    from orchestrator_state import schema

    require_yes(f"Go back to {revision!r}? What that schema has no room for is lost.", yes=yes)
    _with_database(url, db_schema, lambda database: schema.downgrade(database, revision))
    write(f"the schema is at {_revision(_state(url, db_schema))}")


@db.command()
def current(url: Url = None, db_schema: Schema = None, *, json: Json = False) -> None:
    """Print the revision of the database, and the newest one; of one of the original Rust crate, what is in it."""
    from orchestrator_state import schema

    state = _state(url, db_schema)
    found = _with_database(url, db_schema, schema.survey_original) if state.original else None
    if json:
        show_json({**asdict(state), "survey": found})
        return
    write(f"database: {_revision(state)}\npackage:  {state.head}")
    if found is not None:
        _show_original(found)


@db.command()
def check(url: Url = None, db_schema: Schema = None) -> None:
    """Exit with 1 unless the database has the schema that this version of the package needs."""
    from orchestrator_state import schema

    _with_database(url, db_schema, schema.verify)
    write("the schema is up to date")


@on_store
def health(
    target: Target,
    timeout: Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds to wait for an answer.")] = 5.0,
) -> None:
    """Exit with 0 if the database answers, with a schema that this version of the package can use."""
    target.open(lambda store: store.health_check(timeout))
    write("the database answers")


def _state(url: str | None, db_schema: str | None) -> SchemaState:
    from orchestrator_state import schema

    return _with_database(url, db_schema, schema.inspect_schema)


def _show_original(found: Survey) -> None:
    write(f"rows:     {found.runs} runs, {found.steps} steps, {found.checkpoints} checkpoints")
    for what, forms in (("ids", found.ids), ("times", found.times)):
        counts = ", ".join(f"{count} {form}" for form, count in sorted(forms.items()))
        write(f"{what + ':':9} {counts or 'none'}")
    write(f"flawed:   {found.flawed}")
    for flaw in found.flaws:
        write(f"          {escaped(f'{flaw.table} {flaw.id}: {flaw.reason}')}")
    write(
        "what to do: `orchestrator-state import` takes it over into a database of its own, "
        "`orchestrator-state db upgrade --in-place` makes this one ours"
    )


def _revision(state: SchemaState) -> str:
    if state.original:
        return "one of the original Rust crate"
    return "the application's own revision" if state.foreign else state.current or "base"


def _with_database(url: str | None, db_schema: str | None, work: Callable[[Database], Awaitable[_Result]]) -> _Result:
    from orchestrator_state.database import open_database
    from orchestrator_state.settings import Settings

    async def run() -> _Result:
        database = open_database(Settings.load(database_url=url, db_schema=db_schema), for_migration=True)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())
