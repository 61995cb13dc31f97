"""Rooms are entered by their faces, a face names what is wanted, and files are short."""

import ast
from pathlib import Path

import pytest

from tests.support.rooms import Package

ROOT = Path(__file__).parents[2]
PACKAGE = Package(ROOT / "orchestrator_state")
OTHER_CODE = [
    file
    for folder in ("tests", "examples", "benchmarks", "scripts", "migrations")
    for file in sorted(ROOT.glob(f"{folder}/**/*.py"))
]
LONGEST_FILE = 450
MOST_MODULES = 12
MOST_WITHOUT_ROOM = 18

# Entry points: the command line's is in pyproject.toml, the others are the types of fixtures.
WANTED_FROM_OUTSIDE = {
    ("orchestrator_state.cli", "main"),
    *(("orchestrator_state.testing", name) for name in ("Clock", "Faults", "Workers")),
}


def test_a_room_is_entered_by_its_face() -> None:
    assert not [str(each) for each in PACKAGE.past_a_face()]


def test_a_face_names_nothing_that_nobody_wants() -> None:
    unused = set(PACKAGE.unused_names(ast.parse(file.read_text()) for file in OTHER_CODE))
    assert not unused - WANTED_FROM_OUTSIDE


def test_every_room_says_what_it_is_for() -> None:
    for module, file in PACKAGE.files.items():
        if file.name == "__init__.py":
            assert ast.get_docstring(PACKAGE.trees[module]), f"{module} does not say what it is for"


def test_no_file_is_too_long_to_be_about_one_thing() -> None:
    lengths = {module: len(file.read_text().splitlines()) for module, file in PACKAGE.files.items()}
    assert not {module: lines for module, lines in lengths.items() if lines > LONGEST_FILE}


def test_a_room_is_small_enough_to_be_seen_at_a_glance() -> None:
    for room, modules in PACKAGE.modules_of_rooms().items():
        most = MOST_WITHOUT_ROOM if room == "orchestrator_state" else MOST_MODULES
        assert len(modules) <= most, f"{room} has {len(modules)} modules"


# --- the same, where the rules are broken -------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Package:
    """Two rooms with a face each, of which `attic` has a room of its own, and a module without a room."""
    sources = {
        "house/__init__.py": "from house.kitchen import Stove\nfrom house.errors import Burnt",
        "house/errors.py": "class Burnt(Exception): ...\n_secret = 1",
        "house/kitchen/__init__.py": "from house.kitchen.stove import Stove\n__all__ = ['Stove']",
        "house/kitchen/stove.py": "from house.errors import Burnt\nfrom house.kitchen.pans import Pan\nStove = 1",
        "house/kitchen/pans.py": "class Pan: ...",
        "house/attic/__init__.py": "__all__ = []",
        "house/attic/trunk/__init__.py": "from house.attic.trunk.lid import Lid\n__all__ = ['Lid']",
        "house/attic/trunk/lid.py": "from house.kitchen import Stove\nclass Lid: ...",
        "house/cellar.py": "from house.attic.trunk import Lid",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    return Package(tmp_path / "house")


def plant(house: Package, module: str, source: str) -> Package:
    file = house.directory / module
    file.write_text(f"{file.read_text()}\n{source}\n" if file.exists() else source)
    return Package(house.directory)


def test_a_house_in_order_passes(house: Package) -> None:
    assert not list(house.past_a_face())
    assert not list(house.unused_names([]))


@pytest.mark.parametrize(
    "source",
    [
        "from house.kitchen.pans import Pan",
        "from house.kitchen import pans",
        "from house.kitchen import Pan",
        "from house import kitchen",
        "from house.errors import _secret",
        "import house.kitchen.pans",
        "import house.kitchen as kitchen",
        "def late():\n    from house.kitchen.pans import Pan",
        "if TYPE_CHECKING:\n    from house.kitchen.pans import Pan",
    ],
)
@pytest.mark.parametrize("module", ["cellar.py", "attic/trunk/lid.py", "attic/__init__.py"])
def test_an_import_past_a_face_is_found(house: Package, module: str, source: str) -> None:
    assert len(list(plant(house, module, source).past_a_face())) == 1


@pytest.mark.parametrize("source", ["from house.kitchen.pans import Pan", "from house.kitchen import pans"])
def test_inside_a_room_modules_are_imported_directly(house: Package, source: str) -> None:
    assert not list(plant(house, "kitchen/spoon.py", source).past_a_face())


def test_a_name_that_only_its_own_room_imports_is_found(house: Package) -> None:
    planted = plant(house, "attic/chest.py", "from house.attic import Key")
    (house.directory / "attic/__init__.py").write_text("Key = 1\n__all__ = ['Key']")
    assert list(planted.unused_names([])) == [("house.attic", "Key")]
    assert not list(planted.unused_names([ast.parse("from house.attic import Key")]))
