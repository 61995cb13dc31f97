"""Tables of stored texts, for a terminal or a pipe."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_IN_A_PIPE: Final = 200


def new_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """A row of plain text: what stands in brackets is no markup."""
    table.add_row(*(Text(plain(str(cell))) for cell in cells))


def plain(text: str) -> str:
    """A stored text that cannot move the cursor or recolour the terminal."""
    return text if text.isprintable() else repr(text)


def show_table(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE).print(table)
