"""Tables of stored texts, for a terminal or a pipe. What draws them is loaded with the first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH_IN_A_PIPE: Final = 200


def new_table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """A row of plain text: what stands in brackets is no markup."""
    from rich.text import Text

    table.add_row(*(Text(plain(str(cell))) for cell in cells))


def plain(text: str) -> str:
    """A stored text that cannot move the cursor or recolour the terminal."""
    return text if text.isprintable() else repr(text)


def show_table(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE).print(table)
