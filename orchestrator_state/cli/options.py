"""The options that commands share, in the same words for each of them.

Defaults stand in round brackets: square ones are markup, which the help does not show.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import typer

Url = Annotated[
    str | None,
    typer.Option("--url", help="Path or URL of the database (default: $DATABASE_URL, else ./workflows.db)."),
]
Schema = Annotated[str | None, typer.Option("--schema", help="Postgres schema that holds the tables.")]
Namespace = Annotated[str | None, typer.Option("--namespace", help="Namespace of the runs (default: default).")]
RunId = Annotated[str, typer.Argument(metavar="ID", help="The run's id, or its workflow id.", show_default=False)]
CheckpointId = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's id: see `checkpoints list`.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
Cursor = Annotated[
    str | None, typer.Option("--cursor", help="Go on where a list with the same filters ended: it says where.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Force = Annotated[bool, typer.Option("--force", help="Also if a worker has it: the worker loses it.")]

MOST_AT_ONCE: Final = 500
"""On a page of the library's."""
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def refuse_missing_file(url: str | None) -> None:
    """Raise `ConfigurationError` for a SQLite file that is not there: to open it would make it."""
    from orchestrator_state.database import locate
    from orchestrator_state.settings import Settings

    locate(Settings.load(database_url=url).database_url).require_file()


def as_age(text: str) -> timedelta:
    """30d, 12h, 90m or 45s. Raises `typer.BadParameter`."""
    match = re.fullmatch(r"([0-9]{1,9})([dhms])", text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no age; give days, hours, minutes or seconds, as in 30d, 12h, 90m or 45s"
        )
    try:
        given = timedelta(**{_UNITS[match[2]]: int(match[1])})
        _ = datetime.now(UTC) - given
    except OverflowError:
        raise typer.BadParameter(f"nothing can be older than {text}") from None
    return given


def as_moment(text: str | None) -> datetime | None:
    """A moment in ISO 8601, in UTC unless it says otherwise, or an age. Raises `typer.BadParameter`."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC) - as_age(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def require_yes(question: str, *, yes: bool) -> None:
    """Ask, unless `--yes` has answered already. Without a terminal nobody can be asked, and it is refused."""
    if yes:
        return
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter(f"{question} Say --yes: there is no terminal to ask at")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def as_json(text: str, what: str) -> Any:
    """Raises `typer.BadParameter` for what is no JSON."""
    from orchestrator_state.errors import CorruptPayload
    from orchestrator_state.payloads import decode

    try:
        return decode(text, what)
    except CorruptPayload:
        message = f"the {what} is not JSON; a text needs quotes of its own, as in '\"yes\"'"
        raise typer.BadParameter(message) from None


def as_id(text: str) -> UUID:
    """Raises `typer.BadParameter` for what is no id."""
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no id") from None
