"""The commands. Each is a thin shell over a function that can be called from code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from orchestrator_state import schema
from orchestrator_state.cli.options import Schema, Url
from orchestrator_state.cli.payloads import collect_garbage, rekey, verify
from orchestrator_state.cli.retention import prune
from orchestrator_state.cli.runs import runs
from orchestrator_state.database import Database, open_database
from orchestrator_state.settings import Settings

_Result = TypeVar("_Result")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
db = typer.Typer(no_args_is_help=True, help="Look at the database schema, and change it.")
app.add_typer(db, name="db")
app.add_typer(runs, name="runs")
app.command()(verify)
app.command()(rekey)
app.command()(collect_garbage)
app.command()(prune)


@app.callback()
def _root() -> None:
    """Durable state for LLM workflows, in your own SQLite or Postgres tables."""


@db.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Where to go.")] = "head",
    url: Url = None,
    db_schema: Schema = None,
) -> None:
    """Bring the schema up to date. Safe to run from several places at once."""
    _with_database(url, db_schema, lambda database: schema.upgrade(database, revision))
    typer.echo(f"the schema is at {_revision(_state(url, db_schema))}")


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go back to, or `base` to drop the tables.")],
    url: Url = None,
    db_schema: Schema = None,
) -> None:
    """Go back to an older schema. What that schema has no room for is lost."""
    _with_database(url, db_schema, lambda database: schema.downgrade(database, revision))
    typer.echo(f"the schema is at {_revision(_state(url, db_schema))}")


@db.command()
def current(url: Url = None, db_schema: Schema = None) -> None:
    """Print the revision of the database, and the newest one."""
    state = _state(url, db_schema)
    typer.echo(f"database: {_revision(state)}\npackage:  {state.head}")


@db.command()
def check(url: Url = None, db_schema: Schema = None) -> None:
    """Exit with 1 unless the database has the schema that this version of the package needs."""
    _with_database(url, db_schema, schema.verify)
    typer.echo("the schema is up to date")


@app.command()
def demo(
    url: Annotated[
        str | None,
        typer.Option("--db", help="Database to use; its schema is brought up to date (default: a new SQLite file)."),
    ] = None,
    input_dir: Annotated[
        Path | None, typer.Option("--input", help="Folder of .txt and .md files (default: texts of our own).")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Where to write the report.")] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="OpenAI-compatible endpoint that writes the summaries.")
    ] = None,
) -> None:
    """Kill one of two workers with SIGKILL in the middle of a step, and watch the other finish its run."""
    from rich.console import Console

    from orchestrator_state.demo import run_demo  # neither is needed by `db`

    raise typer.Exit(run_demo(db=url, input_dir=input_dir, llm=llm, output=output, console=Console()))


def _state(url: str | None, db_schema: str | None) -> schema.SchemaState:
    return _with_database(url, db_schema, schema.inspect_schema)


def _revision(state: schema.SchemaState) -> str:
    return "the application's own revision" if state.foreign else state.current or "base"


def _with_database(url: str | None, db_schema: str | None, work: Callable[[Database], Awaitable[_Result]]) -> _Result:
    async def run() -> _Result:
        database = open_database(Settings.load(database_url=url, db_schema=db_schema), for_migration=True)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())
