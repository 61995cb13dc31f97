"""The reference lists what users import, each of it once and explained, and nothing else."""

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import griffe
import pytest

import orchestrator_state
from orchestrator_state import errors, hooks, settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
MODULES = [
    importlib.import_module(f"orchestrator_state.{name}")
    for name in (
        "blocking", "column_types", "compression", "domain", "encryption", "errors", "hooks", "models", "schema",
        "integrations.fastapi", "integrations.opentelemetry", "integrations.prometheus", "settings", "state_schema",
        "testing", "unit_of_work", "worker",
    )
]  # fmt: skip
ENTRY = re.compile(r"^::: (?P<name>[\w.]+)\n(?P<options>(?: {4}.*\n)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one `:::` of a page asks mkdocstrings to show."""

    name: str
    members: Sequence[str] | None
    hidden: Sequence[str]

    def shows(self, member: str) -> bool:
        if self.members is not None:
            return member in self.members
        return not any(re.search(pattern, member) for pattern in self.hidden)


def entries(page: Path) -> Iterator[Entry]:
    for found in ENTRY.finditer(page.read_text() + "\n"):
        members = re.search(r"members: \[(.*)\]", found["options"])
        hidden = re.search(r"filters: \[(.*)\]", found["options"])
        yield Entry(
            found["name"],
            None if members is None else re.findall(r"\w+", members[1]),
            ["^_"] if hidden is None else re.findall(r'"!(.+?)"', hidden[1]),
        )


ENTRIES = [entry for page in PAGES for entry in entries(page)]


def importable(modules: Sequence[ModuleType]) -> Iterator[str]:
    """Each public object once, under the shortest name that it is imported by."""
    at_the_root = {name: getattr(orchestrator_state, name) for name in orchestrator_state.__all__}
    yield from (f"orchestrator_state.{name}" for name in at_the_root)
    for module in modules:
        for name in module.__all__:
            if at_the_root.get(name) is not getattr(module, name):
                yield f"{module.__name__}.{name}"


@pytest.fixture(scope="module")
def package() -> griffe.Object:
    """The package as its sources say, as mkdocstrings reads them."""
    loaded = griffe.load("orchestrator_state", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(loaded, griffe.Object)
    return loaded


def found(package: griffe.Object, name: str) -> griffe.Object:
    each = package[name.removeprefix("orchestrator_state.")]
    return each.final_target if isinstance(each, griffe.Alias) else each


def test_the_reference_lists_what_users_import_and_nothing_else(package: griffe.Object) -> None:
    listed = Counter(entry.name for entry in ENTRIES if not found(package, entry.name).is_module)
    assert listed == Counter(importable(MODULES))


def test_a_module_is_listed_for_what_it_says_itself_and_not_for_all_that_is_in_it(package: griffe.Object) -> None:
    modules = [entry for entry in ENTRIES if found(package, entry.name).is_module]
    assert all(entry.members == [] for entry in modules)


def test_all_that_the_reference_lists_has_a_docstring(package: griffe.Object) -> None:
    silent = []
    for entry in ENTRIES:
        shown = found(package, entry.name)
        members = (
            {name: member for name, member in shown.all_members.items() if entry.shows(name)} if shown.is_class else {}
        )
        called = [member for member in members.values() if member.is_function or "property" in member.labels]
        silent += [each.path for each in [shown, *called] if each.docstring is None]
    assert not silent


def test_the_members_that_a_page_names_are_there(package: griffe.Object) -> None:
    for entry in ENTRIES:
        assert set(entry.members or ()) <= found(package, entry.name).all_members.keys(), entry.name


def test_the_page_of_the_store_names_each_of_its_calls(package: griffe.Object) -> None:
    (store,) = (entry for entry in ENTRIES if entry.name == "orchestrator_state.StateStore")
    calls = {name for name in found(package, store.name).all_members if not name.startswith("_")}
    assert calls - {"recovery", "listening", "retention_duty"} == set(store.members or ())  # those are for `Worker`


def test_every_page_is_in_the_table_of_the_first() -> None:
    index = (ROOT / "docs" / "reference" / "index.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == {page.name for page in PAGES} - {"index.md"}


@pytest.mark.parametrize(
    ("module", "root"), [(errors, errors.OrchestratorStateError), (hooks, hooks.Event), (hooks, hooks.StoreEvent)]
)
def test_every_error_and_every_event_is_public(module: ModuleType, root: type[object]) -> None:
    defined = {name for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, root)}
    assert defined <= set(module.__all__)


def test_every_setting_is_an_option_of_open() -> None:
    assert settings.Options.__annotations__.keys() == settings.Settings.model_fields.keys() - {"database_url"}
