"""Tables of stored texts, for a terminal or a pipe.

Where a row does not fit, each is shown as lines of its own: in forty columns nobody reads eight of them side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from orchestrator_state.cli.output import width, write


class Table:
    """Rows of plain text. What stands in brackets is no markup."""

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows: list[list[str]] = []

    def add(self, *cells: object) -> None:
        """None is shown as nothing, a time in UTC."""
        self._rows.append([shown(cell) for cell in cells])

    def show(self) -> None:
        for line in self._lines(width()):
            write(line)

    def _lines(self, most: int | None) -> Iterator[str]:
        from rich.cells import cell_len, set_cell_size

        rows = [list(self._columns), *self._rows]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        if most is not None and sum(widths) + 2 * (len(widths) - 1) > most:
            yield from self._one_below_the_other(most)
            return
        for row in rows:
            yield "  ".join(set_cell_size(cell, room) for cell, room in zip(row, widths, strict=True)).rstrip()

    def _one_below_the_other(self, most: int) -> Iterator[str]:
        for number, row in enumerate(self._rows):
            if number:
                yield ""
            yield from labelled(zip(self._columns, row, strict=True), most)


def labelled(cells: Iterator[tuple[str, str]], most: int | None) -> Iterator[str]:
    """Lines of a name and a text each, which goes on below itself. What has no text is left out."""
    from rich.cells import chop_cells

    said = [(name, text) for name, text in cells if text]
    indent = max((len(name) for name, _ in said), default=0) + 2
    for name, text in said:
        parts = [text] if most is None else chop_cells(text, max(most - indent, 8))
        yield f"{name:<{indent}}{parts[0]}"
        yield from (" " * indent + part for part in parts[1:])


def show_labelled(**cells: object) -> None:
    """Show what there is to say of one thing, a line each."""
    for line in labelled(iter([(name.replace("_", " "), shown(cell)) for name, cell in cells.items()]), width()):
        write(line)


def shown(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return cell.strftime("%Y-%m-%d %H:%M:%SZ")
    return plain(str(cell))


def plain(text: str) -> str:
    """A stored text that cannot move the cursor or recolour the terminal."""
    return text if text.isprintable() else repr(text)


def escaped(text: str) -> str:
    """The same of a message that quotes some."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
