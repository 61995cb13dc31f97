"""The plugin as users have it: pytest runs their projects, small ones, in pytest."""

import asyncio
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.process

Project = Callable[..., pytest.RunResult]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-workflows.md"

ORDER = """
    from datetime import timedelta
    import pytest
    from orchestrator_state import WorkflowNotFound, WorkflowStatus

    charged = []

    async def charge(order):
        charged.append(order)
        return "receipt"

    async def order(run):
        await run.step("charge", charge, run.context["order"])
        await run.sleep(timedelta(days=14))
        return "shipped"

    async def status(store):
        return (await store.load_workflow_state_by_workflow_id("o-1")).status
"""
STORY = """
    async def test_the_story(store, worker, clock, faults):
        charged.clear()
        worker({"order": order})
        with faults.crash_after("charge"):
            await store.start("order", workflow_id="o-1", context={"order": 7})
            await worker.until_idle()
        await clock.advance(days=14)
        await worker.until_idle()
        assert await status(store) == WorkflowStatus.COMPLETED
        assert charged == [7]
        assert faults.calls("charge") == 1

    async def test_nothing_is_left_of_it(store, clock):
        assert await store.list_active_workflows() == []
        with pytest.raises(WorkflowNotFound):
            await status(store)
        from datetime import UTC, datetime
        assert abs((await clock.now() - datetime.now(UTC)).total_seconds()) < 3600
"""


@pytest.fixture
def project(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, backend: str, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Runs a project that has these tests, on the database of this test."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    if backend == "postgres":
        monkeypatch.setenv("ORCHESTRATOR_STATE_TEST_URL", request.getfixturevalue("server_url"))

    def run(*tests: str, conftest: str = "", ini: str = "asyncio_mode = auto", options: Any = ()) -> pytest.RunResult:
        plugins = 'pytest_plugins = ["orchestrator_state.testing"]\n'
        pytester.makeconftest(plugins + textwrap.dedent(conftest))
        pytester.makepyfile("".join(map(textwrap.dedent, (ORDER, *tests))))
        pytester.makeini(f"[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n{ini}\n")
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)

    return run


def schemas(url: str) -> list[str]:
    async def ask() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'orchestrator\\_state%'"
            return [row["nspname"] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def test_a_project_whose_tests_pass(project: Project, request: pytest.FixtureRequest, backend: str) -> None:
    project(STORY).assert_outcomes(passed=2)
    if backend == "postgres":
        assert not schemas(request.getfixturevalue("server_url")), "what was made for the tests is gone"


def test_the_page_of_the_documents_is_a_project_whose_tests_pass(project: Project) -> None:
    conftest, *blocks = re.findall(r"(?ms)^```python[^\n]*\n(.*?)^```$", PAGE.read_text())
    assert "pytest_plugins" in conftest
    tests = sum(block.count("async def test_") for block in blocks)
    assert tests == 5
    rows_of_one_test = 3
    result = project(*blocks)
    result.assert_outcomes(passed=tests - 1 + rows_of_one_test)


def test_a_test_that_is_wrong_fails(project: Project) -> None:
    result = project(
        """
        async def test_charged_twice(store, worker, faults):
            worker({"order": order})
            with faults.crash_before_commit("charge"):
                await store.start("order", workflow_id="o-1", context={"order": 7})
                await worker.until_idle()
            assert faults.calls("charge") == 1, "it is at least once"

        async def test_not_yet(store, worker, clock):
            worker({"order": order})
            await store.start("order", workflow_id="o-1", context={"order": 7})
            await worker.until_idle()
            await clock.advance(days=13)
            await worker.until_idle()
            assert await status(store) == WorkflowStatus.COMPLETED

        async def test_misspelt(store, worker, faults):
            worker({"order": order})
            with faults.crash_after("chrage"):
                await store.start("order", workflow_id="o-1", context={"order": 7})
                await worker.until_idle()
        """
    )
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*it is at least once*", "*FaultNotMet*'chrage'*"], consecutive=False)


def test_marked_tests_of_pytest_asyncio_in_loops_of_any_scope(project: Project) -> None:
    tests = [
        f"""
        @pytest.mark.asyncio(loop_scope={scope!r})
        async def test_in_a_loop_of_the_{scope}(store, worker):
            worker({{"order": order}})
            await store.start("order", workflow_id="o-1", context={{"order": 7}})
            await worker.until_idle()
        """
        for scope in ("function", "module", "session")
    ]
    project(*tests, ini="asyncio_mode = strict").assert_outcomes(passed=3)


def test_the_default_scope_of_loops(project: Project) -> None:
    project(STORY, ini="asyncio_mode = auto\nasyncio_default_test_loop_scope = session").assert_outcomes(passed=2)


def test_tests_of_anyio(project: Project) -> None:
    project(
        """
        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        pytestmark = pytest.mark.anyio
        """,
        STORY,
        ini="asyncio_mode = strict",
    ).assert_outcomes(passed=2)


def test_a_test_that_nobody_runs_in_a_loop_is_told_what_it_needs(project: Project) -> None:
    result = project("def test_sync(store):\n    pass\n", ini="asyncio_mode = strict")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*install pytest-asyncio and mark the test*"])


def test_several_processes(project: Project) -> None:
    copies = [STORY.replace("test_", f"test_{number}_") for number in range(3)]
    project(*copies, options=("-n", "2")).assert_outcomes(passed=6)


def test_a_store_with_options(project: Project) -> None:
    project(
        """
        async def test_its_namespace(store, worker):
            assert store.namespace == "tests"
            worker({"order": order})
            await store.start("order", workflow_id="o-1", context={"order": 7})
            await worker.until_idle()
        """,
        conftest="""
        import pytest

        @pytest.fixture
        def store_options():
            return {"namespace": "tests"}
        """,
    ).assert_outcomes(passed=1)


def test_a_fixture_of_the_projects_own_wins_and_cannot_be_mixed_up_with_ours(project: Project) -> None:
    result = project(
        """
        async def test_mine(store):
            assert store == "mine"

        async def test_mixed(store, worker):
            pass
        """,
        conftest="""
        import pytest

        @pytest.fixture
        def store():
            return "mine"
        """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*is a fixture of your own*"])


def test_a_hook_of_the_projects_own_is_told(project: Project) -> None:
    project(
        """
        events = []

        class Log:
            def on_event(self, event):
                events.append(type(event).__name__)

        @pytest.fixture
        def store_options():
            return {"hook": Log()}

        async def test_it(store, worker, faults):
            worker({"order": order})
            with faults.crash_after("charge"):
                await store.start("order", workflow_id="o-1", context={"order": 7})
                await worker.until_idle()
            assert events.count("StepCommitted") >= 1
        """
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize("wrong", ["sqlite:///mine.db", "mysql://somewhere/db"])
def test_a_url_that_is_not_of_postgres_is_refused(project: Project, wrong: str) -> None:
    result = project("async def test_it(store): ...\n", options=("--orchestrator-state-url", wrong))
    result.assert_outcomes(errors=1)
    result.stdout.no_fnmatch_line("*Traceback*")


def test_what_somebody_has_in_the_database_is_left_alone(project: Project, server_url: str, backend: str) -> None:
    if backend == "sqlite":
        project(STORY).assert_outcomes(passed=2)
        return

    async def mine(query: str) -> Any:
        connection = await asyncpg.connect(server_url)
        try:
            return await (connection.fetchval if query.startswith("SELECT") else connection.execute)(query)
        finally:
            await connection.close()

    asyncio.run(mine("CREATE TABLE workflow_states (id integer); INSERT INTO workflow_states VALUES (1)"))
    try:
        project(STORY).assert_outcomes(passed=2)
        assert asyncio.run(mine("SELECT count(*) FROM workflow_states")) == 1
    finally:
        asyncio.run(mine("DROP TABLE workflow_states"))
