"""Draw the rooms for docs/architecture.md from the import contract and from what the rooms say of themselves.

`python scripts/draw_rooms.py` writes the picture, and the table of the page between its two marks. A test compares.
"""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "architecture.md"
PICTURE = CHECKOUT / "docs" / "rooms.svg"
BEGIN, END = "<!-- by scripts/draw_rooms.py -->", "<!-- end -->"

WIDTH, MARGIN, GAP, BOX, LEFT, CHARACTER = 860, 8, 10, 27, 56, 7.9
STYLE = (
    "text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1a1a1a}"
    ".height{fill:#777}.floor{fill:#f4f5f9}.module,.room,.pure{fill:#fff;stroke:#9aa0b5}"
    ".room{fill:#d5dbf5;stroke:#3f51b5}.pure{stroke:#2e7d32;stroke-width:2;stroke-dasharray:5 3}"
    "path{stroke:#777;fill:none}"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A room, or a module without a room."""

    name: str
    is_room: bool
    is_pure: bool
    purpose: str

    @property
    def path(self) -> str:
        return f"{self.name}/" if self.is_room else f"{self.name}.py"


def floors_of(checkout: Path) -> list[list[Part]]:
    """What stands on each floor, from the top, as the contracts in pyproject.toml say. A room to come is left out."""
    settings = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in settings["contracts"]}
    package = settings["root_package"]
    pure = {module.removeprefix(f"{package}.") for module in contracts["pure"]["source_modules"]}
    return [list(_parts(re.findall(r"\w+", layer), checkout / package, pure)) for layer in contracts["rooms"]["layers"]]


def _parts(names: Sequence[str], package: Path, pure: set[str]) -> Iterator[Part]:
    for name in names:
        room, module = package / name / "__init__.py", package / f"{name}.py"
        if room.exists() or module.exists():
            is_room = room.exists()
            docstring = ast.get_docstring(ast.parse((room if is_room else module).read_text())) or ""
            purpose = " ".join(docstring.partition("\n\n")[0].split())
            yield Part(name, is_room, name in pure, purpose)


def table(floors: Sequence[Sequence[Part]]) -> str:
    """What each part is for, as its own docstring begins, between the two marks of the page."""
    lines = [BEGIN, "| floor | | what it is for |", "| --- | --- | --- |"]
    for height, floor in zip(range(len(floors), 0, -1), floors, strict=True):
        lines += [f"| {height} | `{part.path}` | {part.purpose} |" for part in floor]
    return "\n".join([*lines, END])


def picture(floors: Sequence[Sequence[Part]]) -> str:
    """The floors as an SVG image, the highest on top."""
    drawn, top = [], MARGIN
    for height, floor in zip(range(len(floors), 0, -1), floors, strict=True):
        boxes, bottom = _boxes(floor, top + GAP)
        drawn.append(
            f'<rect class="floor" x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" height="{bottom - top}"/>'
        )
        drawn.append(f'<text class="height" x="{MARGIN + 16}" y="{top + GAP + 18}">{height}</text>')
        drawn += boxes
        if height > 1:
            middle = WIDTH // 2
            drawn.append(f'<path d="M{middle} {bottom + 3}v8m-4 -4l4 4l4 -4"/>')
        top = bottom + 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
    title = "<title>The rooms of the package, floor above floor; imports go downward only</title>"
    background = f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>'
    return "\n".join([head, title, f"<style>{STYLE}</style>", background, *drawn, "</svg>\n"])


def _boxes(floor: Sequence[Part], top: int) -> tuple[list[str], int]:
    """A box for each part, in rows from `top` on, and where the floor ends."""
    drawn, left = [], LEFT
    for part in floor:
        width = round(len(part.path) * CHARACTER) + 2 * GAP
        if left + width > WIDTH - MARGIN - GAP:
            left, top = LEFT, top + BOX + GAP
        kind = " ".join(name for name, holds in (("room", part.is_room), ("pure", part.is_pure)) if holds) or "module"
        drawn.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{BOX}" rx="4"/>')
        drawn.append(f'<text x="{left + GAP}" y="{top + 18}">{part.path}</text>')
        left += width + GAP
    return drawn, top + BOX + GAP


def with_table(page: str, drawn: str) -> str:
    """The page with what stands between its marks replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return before + drawn + after


def main() -> None:
    floors = floors_of(CHECKOUT)
    PAGE.write_text(with_table(PAGE.read_text(), table(floors)))
    PICTURE.write_text(picture(floors))


if __name__ == "__main__":
    main()
