"""A forked program is what it would be in a new process: `tests/support/forked_programs.py`."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.forked_programs import ForkedPrograms

pytestmark = pytest.mark.process

PROGRAM = """
import atexit, os, sys, threading, time
import orchestrator_state

def main():
    print(__name__, sys.argv, os.getcwd(), os.environ["MARK"], hasattr(orchestrator_state, "mark"))
    orchestrator_state.mark = os.environ["MARK"] = "of the program before"
    sys.modules["mark"] = sys
    os.chdir("/")

def later():
    threading.main_thread().join()
    print("the thread ends")

assert "mark" not in sys.modules
assert {name for name in globals() if not name.startswith("__")} == {
    "atexit", "os", "sys", "threading", "time", "orchestrator_state", "main", "later"
}
atexit.register(print, "at exit")
threading.Thread(target=later).start()
main()
"""


def test_a_program_is_the_main_one_and_inherits_nothing_from_the_one_before(
    tmp_path: Path, forked_programs: ForkedPrograms
) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    environment = os.environ | {"MARK": "ours"}
    for program, name in ((PROGRAM, "-c"), (file, str(file)), (PROGRAM, "-c")):
        done = forked_programs.run(program, "a", "b c", cwd=tmp_path, env=environment)
        said = f"__main__ {[name, 'a', 'b c']} {tmp_path} ours False"
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [said, "the thread ends", "at exit"]


@pytest.mark.parametrize(
    ("program", "returncode", "complaint"),
    [
        ("print(1)", 0, ""),
        ("import sys; print(1); sys.exit(3)", 3, ""),
        ("import os, signal; print(1, flush=True); os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("print(1); 1 / 0", 1, "ZeroDivisionError"),
        ("import warnings; print(1); warnings.warn('x')", 1, "UserWarning: x"),
        ("import os; print(1); open(os.devnull)", 0, "ResourceWarning"),
        ("import asyncio; print(1); asyncio.sleep(1)", 0, "RuntimeWarning"),
    ],
)
def test_how_a_program_ends_is_told(
    tmp_path: Path, forked_programs: ForkedPrograms, program: str, returncode: int, complaint: str
) -> None:
    done = forked_programs.run(program, cwd=tmp_path, env=os.environ)
    assert (done.returncode, done.stdout) == (returncode, "1\n")
    assert complaint in done.stderr
    assert bool(complaint) is bool(done.stderr)


def test_the_interpreter_of_a_program_is_this_one(tmp_path: Path, forked_programs: ForkedPrograms) -> None:
    program = "import sys; print(sys.executable, sys.warnoptions)"
    done = forked_programs.run(program, cwd=tmp_path, env=os.environ)
    assert done == (0, f"{sys.executable} ['error']\n", "")
