"""What the page on the architecture shows is what the code is."""

import re
import shutil
import sys
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree as ET

import pytest

from orchestrator_state import Run, StateStore
from scripts import draw_rooms
from tests.support.cases import case

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is drawn, to be changed."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "orchestrator_state", tmp_path / "orchestrator_state")
    return tmp_path


def test_the_page_shows_the_rooms_of_the_contract() -> None:
    page = draw_rooms.PAGE.read_text()
    table = draw_rooms.table(draw_rooms.floors_of(ROOT))
    assert page == draw_rooms.with_table(page, table), "run scripts/draw_rooms.py"


def test_the_picture_shows_the_rooms_of_the_contract() -> None:
    picture = draw_rooms.PICTURE.read_text()
    assert picture == draw_rooms.picture(draw_rooms.floors_of(ROOT)), "run scripts/draw_rooms.py"
    ET.fromstring(picture)  # a browser would show no other


def test_every_room_and_module_is_drawn() -> None:
    drawn = {part.path for floor in draw_rooms.floors_of(ROOT) for part in floor}
    package = ROOT / "orchestrator_state"
    rooms = {f"{init.parent.name}/" for init in package.glob("*/__init__.py")}
    assert drawn == rooms | {module.name for module in package.glob("*.py")} - {"__init__.py", "__main__.py"}


def test_a_room_that_moves_to_another_floor_is_drawn_there(checkout: Path) -> None:
    before = draw_rooms.floors_of(checkout)
    contract = checkout / "pyproject.toml"
    contract.write_text(contract.read_text().replace('"runs",', '"runs : retry",').replace(" : retry : ", " : "))
    after = draw_rooms.floors_of(checkout)
    assert [part.name for part in after[4]] == ["runs", "retry"]
    assert draw_rooms.picture(before) != draw_rooms.picture(after)
    assert draw_rooms.table(before) != draw_rooms.table(after)


def test_a_room_that_says_something_else_of_itself_changes_the_page(checkout: Path) -> None:
    before = draw_rooms.table(draw_rooms.floors_of(checkout))
    (checkout / "orchestrator_state" / "runs" / "__init__.py").write_text('"""Where runs\nlive.\n\nMore."""')
    after = draw_rooms.table(draw_rooms.floors_of(checkout))
    assert set(after.splitlines()) - set(before.splitlines()) == {"| 5 | `runs/` | Where runs live. |"}


# --- what pages for developers say -------------------------------------------------------------------------------

DEVELOPERS_PAGES = [ROOT / "CONTRIBUTING.md", draw_rooms.PAGE, *sorted(ROOT.glob("docs/decisions/*.md"))]


def test_a_file_that_a_page_names_is_there() -> None:
    for page in DEVELOPERS_PAGES:
        with case(page.name):
            named = set(re.findall(r"`([\w./]+(?:\.py|/))`", page.read_text()))
            assert not {
                name
                for name in named
                if not any((place / name).exists() for place in (ROOT, ROOT / "orchestrator_state"))
            }


def test_a_target_that_a_page_names_is_one_of_make() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= set(targets), page


# --- the way of one step -----------------------------------------------------------------------------------------


async def files_of_a_step() -> list[str]:
    """The package's files, in the order in which the first step of a run comes to them."""
    package = f"{ROOT / 'orchestrator_state'}/"
    visited: dict[str, None] = {}

    def follow(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            visited[frame.f_code.co_filename.removeprefix(package)] = None

    async def fetch(url: str) -> str:
        return f"the page at {url}"

    async def handler(run: Run) -> None:
        sys.setprofile(follow)
        try:
            await run.step("fetch", fetch, "https://example.org")
        finally:
            sys.setprofile(None)

    async with StateStore.open(":memory:") as store:
        await store.run("follow", handler)
    return list(visited)


async def test_the_way_of_a_step_is_the_one_on_the_page() -> None:
    section = draw_rooms.PAGE.read_text().partition("## The way of one step")[2]
    told = re.findall(r"^\| [\w ]*\| `([\w/]+\.py)` \|", section, re.MULTILINE)
    visited = await files_of_a_step()
    assert told == [file for file in visited if file in told]
    rooms = [{file.partition("/")[0] for file in files if "/" in file} for files in (told, visited)]
    assert rooms[0] == rooms[1]
