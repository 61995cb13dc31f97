"""The options that say which database, in the same words for every command.

Defaults stand in round brackets: square ones are markup, which the help does not show.
"""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option("--url", help="Path or URL of the database (default: $DATABASE_URL, else ./workflows.db)."),
]
Schema = Annotated[str | None, typer.Option("--schema", help="Postgres schema that holds the tables.")]
Namespace = Annotated[str | None, typer.Option("--namespace", help="Namespace of the runs (default: default).")]
