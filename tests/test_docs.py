"""The documents do what they say: every ```python block of a page runs, in order, in one namespace.

A page runs in a directory of its own. `await` may stand at the top level; the blocks of a page share a loop,
so that a store opened in one is used in the next. A Postgres URL at db.example.com is replaced by that of a
fresh database. There is no mark for a block that is not run: what cannot run is not fenced as `python`.
"""

import ast
import asyncio
import inspect
import re
import sys
import textwrap
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?ms)^(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)``` *$")
EXAMPLE_URL = re.compile(r"""postgres(ql)?://[^\s"']*db\.example\.com[^\s"']*""")

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
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    with asyncio.Runner() as runner:
        for block in BLOCK.finditer(text):
            # The empty lines make a traceback name the line of the page.
            above = "\n" * (text.count("\n", 0, block.start("code")))
            run_block(above + textwrap.dedent(block["code"]), vars(module), page, runner)
