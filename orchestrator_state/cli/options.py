"""The options that say which database, in the same words for every command.

Defaults stand in round brackets: square ones are markup, which the help does not show.
"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator_state.database import locate
from orchestrator_state.settings import Settings

Url = Annotated[
    str | None,
    typer.Option("--url", help="Path or URL of the database (default: $DATABASE_URL, else ./workflows.db)."),
]
Schema = Annotated[str | None, typer.Option("--schema", help="Postgres schema that holds the tables.")]
Namespace = Annotated[str | None, typer.Option("--namespace", help="Namespace of the runs (default: default).")]


def refuse_missing_file(url: str | None) -> None:
    """Raise `ConfigurationError` for a SQLite file that is not there: to open it would make it."""
    locate(Settings.load(database_url=url).database_url).require_file()
