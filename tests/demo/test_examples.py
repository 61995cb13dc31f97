"""Every example runs on both databases, from an empty one, and prints what its docstring says."""

import ast
import os
import re
import textwrap
from pathlib import Path

import pytest

from tests.support.forked_programs import ForkedPrograms

pytestmark = pytest.mark.process

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
# Some runs fail on purpose, or are taken over: without a configuration Python prints such warnings.
IS_LOGGED = re.compile(r"run [0-9a-f-]{36} of '\w+' (failed: |goes on here; )")


def promised_output(example: Path) -> str:
    """The indented lines of the example's docstring."""
    docstring = ast.get_docstring(ast.parse(example.read_text())) or ""
    lines = [line for line in docstring.splitlines() if line.startswith("    ")]
    return textwrap.dedent("\n".join(lines)) + "\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_prints_what_its_docstring_says(
    example: Path, empty_database_url: str, tmp_path: Path, forked_programs: ForkedPrograms
) -> None:
    done = forked_programs.run(example, cwd=tmp_path, env=os.environ | {"DATABASE_URL": empty_database_url})
    assert not [line for line in done.stderr.splitlines() if not IS_LOGGED.match(line)]
    assert done.stdout == promised_output(example)
    assert done.returncode == 0


def test_there_are_examples() -> None:
    """An empty folder would pass the test above."""
    assert len(EXAMPLES) >= 11
