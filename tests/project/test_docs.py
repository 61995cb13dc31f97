"""The documents do what they say: every ```python block of a page runs, in order, in one namespace.

A page runs in a directory of its own. `await` may stand at the top level; the blocks of a page share a loop,
so that a store opened in one is used in the next. A Postgres URL at db.example.com is replaced by that of a
fresh database. There is no mark for a block that is not run: what cannot run is not fenced as `python`.
And the tables of settings, errors and events name all that there are.
"""

import ast
import asyncio
import inspect
import re
import shutil
import sys
import textwrap
import types
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator_state import Event, OrchestratorStateError
from orchestrator_state.hooks import StoreEvent
from orchestrator_state.settings import Settings

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?ms)^(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)``` *$")
EXAMPLE_URL = re.compile(r"""postgres(ql)?://[^\s"']*db\.example\.com[^\s"']*""")

FILE = re.compile(r"\b\w+\.db\b")

README = ROOT / "README.md"
PAGES = [README, *(page for page in sorted(ROOT.glob("docs/**/*.md")) if BLOCK.search(page.read_text()))]


def run_block(source: str, namespace: dict[str, object], page: Path, runner: asyncio.Runner) -> None:
    code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, namespace)
    if inspect.iscoroutine(result):
        runner.run(result)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_of_a_page_runs(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text()
    assert BLOCK.search(text)
    if EXAMPLE_URL.search(text):
        text = EXAMPLE_URL.sub(request.getfixturevalue("postgres_url"), text)
    monkeypatch.chdir(tmp_path)
    if page != README:  # there the first one is migrated; to do that on each page takes longer than the page
        for name in set(FILE.findall(text)):
            shutil.copyfile(request.getfixturevalue("sqlite_template"), name)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    with asyncio.Runner() as runner:
        for block in BLOCK.finditer(text):
            # The empty lines make a traceback name the line of the page.
            above = "\n" * (text.count("\n", 0, block.start("code")))
            run_block(above + textwrap.dedent(block["code"]), vars(module), page, runner)


def family(kind: type[object]) -> set[str]:
    """The names of the package's subclasses of `kind`, near and far; but of those that only tests see."""
    ours, for_tests = "orchestrator_state.", "orchestrator_state.testing."
    children = [
        child
        for child in kind.__subclasses__()
        if child.__module__.startswith(ours) and not child.__module__.startswith(for_tests)
    ]
    return {child.__name__ for child in children}.union(*map(family, children))


def written(default: object) -> str:
    """A setting's default as the README writes it."""
    match default:
        case timedelta():
            return f"{default.total_seconds():.0f} s"
        case bool():
            return str(default).lower()
        case int():
            return str(default)
    return "none" if default is None else f"`{default}`"


def test_the_readme_has_every_setting_with_its_default() -> None:
    row = re.compile(r"^\| `\w+` \| `([A-Z_]+)` \| ([^|]+) \|", re.MULTILINE)
    documented = dict(row.findall(README.read_text()))
    assert documented.pop("DATABASE_URL") == "`./workflows.db`"
    assert documented == {
        f"ORCHESTRATOR_STATE_{name.upper()}": written(field.default)
        for name, field in Settings.model_fields.items()
        if name != "database_url"
    }


def test_the_readme_has_every_error() -> None:
    drawn = re.findall(r"^[│├└─ ]+(\w+)", README.read_text(), re.MULTILINE)
    assert set(drawn) >= family(OrchestratorStateError)


def test_the_page_on_hooks_has_every_event() -> None:
    page = ROOT / "docs" / "how-to" / "observe.md"
    events = family(Event) | family(StoreEvent)
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", page.read_text(), re.MULTILINE)) == events


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "mkdocs.yml"])
def test_every_how_to_is_found_from_the_first_page(page: str) -> None:
    named = set(re.findall(r"how-to/([\w-]+\.md)", (ROOT / page).read_text()))
    assert named == {file.name for file in ROOT.glob("docs/how-to/*.md")}


def test_the_readme_shows_a_run_and_its_steps_on_its_first_screen() -> None:
    screen = "\n".join(README.read_text().splitlines()[:30])
    assert "run.step(" in screen
    assert "store.run(" in screen


def test_every_decision_is_in_the_navigation_and_in_the_table_of_decisions() -> None:
    decisions = ROOT / "docs" / "decisions"
    pages = sorted(page.name for page in decisions.glob("0*.md"))
    table = (decisions / "index.md").read_text(encoding="utf-8").split("\n\nFigures are")
    assert re.findall(r"^\| \[\d{4}\]\((.+?)\)", table[0], re.MULTILINE) == pages
    assert "| [" not in table[1], "a row below the table is shown as text"
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"^ +- decisions/(0.+)$", navigation, re.MULTILINE) == pages
