"""The commands. Each is a thin shell over a function that can be called from code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator_state.cli.checkpoints import checkpoints
from orchestrator_state.cli.database import db, health
from orchestrator_state.cli.moving.exports import backup, export, import_
from orchestrator_state.cli.output import write
from orchestrator_state.cli.payloads import collect_garbage, rekey, verify
from orchestrator_state.cli.retention import erase, prune
from orchestrator_state.cli.runs.commands import runs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs, name="runs")
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(db, name="db")
for command in (verify, rekey, collect_garbage, prune, erase, health, export, backup):
    app.command()(command)
app.command(name="import")(import_)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if wanted:
        from importlib.metadata import version

        write(version("orchestrator-state"))
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Durable state for LLM workflows, in your own SQLite or Postgres tables."""


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
