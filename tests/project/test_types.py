"""What mypy and pyright refuse, and what they take calls to return, is as `tests/runs/test_step_types.py` says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TYPED = ROOT / "tests" / "runs" / "test_step_types.py"


def test_mypy_finds_what_is_marked_and_nothing_else() -> None:
    command = [sys.executable, "-m", "mypy", str(TYPED)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


def test_pyright_finds_what_is_marked_and_nothing_else(tmp_path: Path) -> None:
    settings = {
        "include": [str(TYPED)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--project", str(tmp_path), "--pythonpath", sys.executable]
    found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


def test_both_find_what_is_not_marked(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from orchestrator_state import Run\n\n\n"
        "def fetch(url: str, *, depth: int) -> str:\n    return url * depth\n\n\n"
        "async def handler(run: Run) -> None:\n"
        '    await run.step("fetch", fetch, "url", depth="deep")\n'
    )
    config = json.dumps({"include": [str(wrong)], "extraPaths": [str(ROOT)]})
    (tmp_path / "pyrightconfig.json").write_text(config)
    for command in (
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(wrong)],
        [sys.executable, "-m", "basedpyright", "--project", str(tmp_path), "--pythonpath", sys.executable],
    ):
        found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert found.returncode == 1, found.stdout + found.stderr
        assert "wrong.py:9" in found.stdout
