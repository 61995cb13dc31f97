"""What a command prints: on stdout what was asked for, on stderr what is said beside it."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

_NARROWEST: Final = 20


class OutputFailed(Exception):
    """Nobody reads the output any more, or there is no room for it. Not an `OSError`: typer would end on that."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.is_closed_pipe = isinstance(error, BrokenPipeError)


def write(text: str = "", *, at_once: bool = False) -> None:
    """Write a line. `at_once`: for whoever watches."""
    try:
        print(text, flush=at_once)  # noqa: T201 - this is the command line
    except OSError as error:
        raise OutputFailed(error) from None


def note(text: str) -> None:
    """Say something beside the output."""
    print(text, file=sys.stderr)  # noqa: T201


def flush() -> None:
    """Write what is left. Raises `OutputFailed`."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error) from None


def give_up() -> None:
    """Let the interpreter flush into nowhere what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def escape_what_has_no_place() -> None:
    """A name that the encoding of the terminal lacks is no error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def width() -> int | None:
    """How many columns there are; None in a pipe, unless COLUMNS says it."""
    if os.environ.get("COLUMNS", "").isdecimal() or (sys.stdout and sys.stdout.isatty()):
        return max(shutil.get_terminal_size().columns, _NARROWEST)
    return None
