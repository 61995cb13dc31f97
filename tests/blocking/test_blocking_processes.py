"""Forks, exits and signals: a child has connections of its own, and nothing hangs, warns or is lost at the end."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from orchestrator_state import StateStore
from orchestrator_state.models import workflow_states
from tests.support.forked_programs import ForkedPrograms

pytestmark = pytest.mark.process

# Under `-W error`: what a program says of warnings, of threads that fail, or of exceptions at its end, is in stderr.
BEGIN = """
import os, signal, sys, threading, time, warnings
from orchestrator_state import ConfigurationError, StoreUnavailable
from orchestrator_state.blocking import BlockingStore

def fork():
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, where threads run
        return os.fork()

def wait_for(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, code

def handler(run):
    return run.step("a", lambda: os.getpid())
"""


def runs(forked_programs: ForkedPrograms, program: str, url: str, tmp_path: Path) -> str:
    """What the program prints. It ends well, and complains of nothing."""
    ended = forked_programs.run(BEGIN + program, url, cwd=tmp_path, env=os.environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def completed(url: str) -> int:
    async def count() -> int:
        async with StateStore.open(url) as store, store.begin() as uow:
            states = [await uow.workflows.get_by_workflow_id(f"w{number}") for number in range(8)]
            return sum(state.status == "completed" for state in states)

    return asyncio.run(count())


LEFT_OPEN = """
store = BlockingStore.open(sys.argv[1])
assert store.run("n", handler, workflow_id="w") == os.getpid()
print("done")
"""
LEFT_WITH_A_WORKER = """
store = BlockingStore.open(sys.argv[1])
begun = threading.Event()
def hangs(run):
    run.step("a", lambda: (begun.set(), time.sleep(3600)))
def also_hangs(run):
    run.step("a", lambda: 1)
    begun.wait()
    time.sleep(3600)
worker = store.worker({"n": hangs, "m": also_hangs}).__enter__()
store.start("n")
store.start("m")
assert begun.wait(30)
print("done")
"""
LEFT_INSIDE_A_UNIT = """
store = BlockingStore.open(sys.argv[1])
unit = store.begin()
uow = unit.__enter__()
from orchestrator_state import WorkflowState
uow.workflows.save(WorkflowState(workflow_id="w", workflow_name="n"))
print("done")
"""
LEFT_BY_A_THREAD_THAT_IS_NO_DAEMON = """
store = BlockingStore.open(sys.argv[1])
def later():
    threading.main_thread().join()
    assert store.run("n", handler, workflow_id="w") == os.getpid()
    print("done")
threading.Thread(target=later).start()
"""


@pytest.mark.parametrize(
    "program",
    [LEFT_OPEN, LEFT_WITH_A_WORKER, LEFT_INSIDE_A_UNIT, LEFT_BY_A_THREAD_THAT_IS_NO_DAEMON],
)
def test_a_program_that_leaves_its_store_open_ends_in_silence(
    program: str, forked_programs: ForkedPrograms, database_url: str, tmp_path: Path
) -> None:
    assert runs(forked_programs, program, database_url, tmp_path) == "done\n"


def test_what_runs_at_the_end_is_let_go_of(forked_programs: ForkedPrograms, database_url: str, tmp_path: Path) -> None:
    runs(forked_programs, LEFT_WITH_A_WORKER, database_url, tmp_path)

    async def leases() -> list[object]:
        async with StateStore.open(database_url) as store, store.begin() as uow:
            return list((await uow.session.execute(select(workflow_states.c.lease_expires_at))).scalars())

    assert asyncio.run(leases()) == [None, None]


FORKS = """
store = BlockingStore.open(sys.argv[1])
assert store.run("n", handler, workflow_id="w0") == os.getpid()
children = []
for number in range(1, 4):
    if not (pid := fork()):
        for again in range(3):
            assert store.run("n", handler, workflow_id=f"w{number}") == os.getpid()
        if number == 1:
            store.close()  # the parent's stays open
        if number == 2 and not (pid := fork()):  # a grandchild
            assert store.run("n", handler, workflow_id="w4") == os.getpid()
            sys.exit()
        if number == 2:
            wait_for(pid)
            assert store.run("n", handler, workflow_id="w5") == os.getpid()
        sys.exit()
    children.append(pid)
assert store.run("n", handler, workflow_id="w6") == os.getpid()
for pid in children:
    wait_for(pid)
assert store.run("n", handler, workflow_id="w7") == os.getpid()
if not (pid := fork()):  # one that never uses it
    sys.exit()
wait_for(pid)
store.health_check()
print("done")
"""


def test_a_forked_child_uses_the_store_beside_its_parent(
    forked_programs: ForkedPrograms, database_url: str, tmp_path: Path
) -> None:
    assert runs(forked_programs, FORKS, database_url, tmp_path) == "done\n"
    assert completed(database_url) == 8


FORKS_BESIDE_THREADS = """
store = BlockingStore.open(sys.argv[1])
def work(number):
    for again in range(10):
        store.health_check()
pid = fork()
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert store.run("n", handler, workflow_id=f"w{bool(pid):d}") == os.getpid()
if pid:
    wait_for(pid)
    for number in range(2, 8):
        store.run("n", handler, workflow_id=f"w{number}")
    print("done")
"""


def test_many_threads_of_a_child_open_it_once(
    forked_programs: ForkedPrograms, database_url: str, tmp_path: Path
) -> None:
    assert runs(forked_programs, FORKS_BESIDE_THREADS, database_url, tmp_path) == "done\n"
    assert completed(database_url) == 8


CHILD_IN_ANOTHER_DIRECTORY = """
store = BlockingStore.open("relative.db")
store.start("n", workflow_id="w")
if not (pid := fork()):
    os.chdir("/")
    assert [state.workflow_id for state in store.list_active_workflows()] == ["w"]
    sys.exit()
wait_for(pid)
print("done")
"""


def test_a_relative_path_is_the_parents_also_where_the_child_goes_elsewhere(
    forked_programs: ForkedPrograms, tmp_path: Path
) -> None:
    assert runs(forked_programs, CHILD_IN_ANOTHER_DIRECTORY, "", tmp_path) == "done\n"


NOT_FOR_CHILDREN = """
from sqlalchemy.ext.asyncio import create_async_engine
engine = create_async_engine("sqlite+aiosqlite:///relative.db")
BlockingStore.open("relative.db").close()
for store in (BlockingStore.open(":memory:"), BlockingStore.open(engine=engine)):
    with store:
        with store.begin() as uow:
            if not (pid := fork()):
                for use in (uow.workflows.list_active, store.list_active_workflows):
                    try:
                        use()
                    except ConfigurationError as error:
                        print(str(error).partition(";")[2])
                sys.stdout.flush()
                os._exit(0)
            wait_for(pid)
        store.health_check()
import asyncio
asyncio.run(engine.dispose())
"""


def test_what_a_child_cannot_use_says_what_to_do(forked_programs: ForkedPrograms, tmp_path: Path) -> None:
    said = runs(forked_programs, NOT_FOR_CHILDREN, "", tmp_path).splitlines()
    assert said == [" begin it anew in the child", " open another one in this"] * 2


MEMORY_AND_A_CHILD = """
store = BlockingStore.open(":memory:")
store.start("n", workflow_id="w")
if not (pid := fork()):
    sys.exit()
wait_for(pid)
store.start("n", workflow_id="v")
print(len(store.list_active_workflows()))
"""


def test_a_child_that_ends_leaves_its_parents_database_in_memory(
    forked_programs: ForkedPrograms, tmp_path: Path
) -> None:
    assert runs(forked_programs, MEMORY_AND_A_CHILD, "", tmp_path) == "2\n"


INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have to ignore it
store = BlockingStore.open(sys.argv[1])
cleaned_up = threading.Event()

async def handler(run):
    async def waits():
        import asyncio
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned_up.set()
    await run.step("a", waits)

for number in range(3):
    try:
        store.run("n", handler, workflow_id="w")
    except KeyboardInterrupt:
        assert cleaned_up.is_set()
        cleaned_up.clear()
        print("interrupted")
store.health_check()
assert store.run("n", lambda run: run.step("a", lambda: 1), workflow_id="w") == 1
"""


def test_ctrl_c_cancels_the_call_and_waits_for_its_end(
    forked_programs: ForkedPrograms, database_url: str, tmp_path: Path
) -> None:
    assert runs(forked_programs, INTERRUPTED, database_url, tmp_path) == "interrupted\n" * 3


WORKER = """
from orchestrator_state.blocking import BlockingStore
import sys
with BlockingStore.open(sys.argv[1]) as store:
    store.start("n", workflow_id="w")
    def handler(run):
        print("begun", flush=True)
        return run.step("a", lambda: 1)
    store.worker({"n": handler}).run()
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_of_the_main_thread_ends_on_a_signal(database_url: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WORKER, database_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        said, complaints = process.communicate(timeout=60)
    assert (process.returncode, said, complaints) == (0, "stopped\n", "")
