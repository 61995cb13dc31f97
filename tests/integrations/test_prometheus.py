"""What Prometheus scrapes."""

import subprocess
import sys
import textwrap

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator_state import ConfigurationError, Retry, Run, StateStore
from orchestrator_state.integrations.prometheus import Prometheus
from tests.support.command_line import environment
from tests.support.running import Failing

AGAIN = Retry(attempts=3, wait_initial=0, wait_max=0, wait_jitter=0)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


async def test_runs_steps_and_commits_are_scraped(database_url: str, registry: CollectorRegistry) -> None:
    async def handler(run: Run) -> None:
        for number in range(3):
            await run.step("fetch", Failing(*([OSError("1")] if number == 0 else [])), retry=AGAIN)
        await run.step("model", lambda: run.record_usage(model="m", input_tokens=3, output_tokens=2, cost=0.5))
        if run.context["fails"]:
            raise LookupError

    async with StateStore.open(database_url, hook=Prometheus(registry)) as store:
        await store.run("chat", handler, context={"fails": False})
        with pytest.raises(LookupError):
            await store.run("chat", handler, context={"fails": True})

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"orchestrator_state_{name}", labels)

    chat = {"workflow": "chat"}
    assert value("run_duration_seconds_count", **chat, outcome="completed", error_type="") == 1
    assert value("run_duration_seconds_count", **chat, outcome="failed", error_type="LookupError") == 1
    assert value("step_duration_seconds_count", **chat, outcome="completed", error_type="") == 8
    assert value("step_duration_seconds_count", **chat, outcome="retried", error_type="OSError") == 2
    assert value("step_commits_total", **chat, outcome="completed") == 8
    used = chat | {"outcome": "completed", "model": "m"}
    assert value("usage_tokens_total", **used, token_type="input") == 6
    assert value("usage_tokens_total", **used, token_type="output") == 4
    assert value("usage_cost_dollars_total", **used) == 1
    assert value("runs_active", **chat) == 0
    assert value("batch_size_sum") == 8
    assert value("batch_duration_seconds_count") == 8
    assert (value("commit_bytes_total") or 0) > 0
    assert value("commit_queue") == 0


async def test_steps_are_labels_only_when_asked_and_without_their_number(
    sqlite_url: str, registry: CollectorRegistry
) -> None:
    async def handler(run: Run) -> None:
        for _ in range(3):
            await run.step("fetch", Failing())

    async with StateStore.open(sqlite_url, hook=Prometheus(registry, by_step=True)) as store:
        await store.run("chat", handler)
    labels = {"workflow": "chat", "outcome": "completed", "step": "fetch"}
    assert registry.get_sample_value("orchestrator_state_step_commits_total", labels) == 3


async def test_a_hostile_name_is_one_label_of_one_line(sqlite_url: str, registry: CollectorRegistry) -> None:
    name = 'x"}\n# HELP forged\x1b[31m\u202e'

    async with StateStore.open(sqlite_url, hook=Prometheus(registry)) as store:
        await store.run(name, lambda run: run.step(name, lambda: 1))
    scraped = generate_latest(registry).decode()
    assert not [line for line in scraped.splitlines() if line.startswith("# HELP forged")]
    assert r"x\"}\n# HELP forged" in scraped


def test_a_second_one_in_the_same_registry_is_told_what_to_do(registry: CollectorRegistry) -> None:
    Prometheus(registry)
    with pytest.raises(ConfigurationError, match="one Prometheus"):
        Prometheus(registry)


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "missing"), [("opentelemetry", "opentelemetry"), ("prometheus", "prometheus_client")]
)
def test_a_missing_extra_is_named(module: str, missing: str) -> None:
    program = f"""
    import sys
    sys.modules[{missing!r}] = None
    from orchestrator_state import MissingExtra
    try:
        import orchestrator_state.integrations.{module}
    except MissingExtra as error:
        print(error.extra, error)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment(), capture_output=True, text=True, check=True
    )
    assert child.stdout.startswith(f"{module} ")
    assert f"orchestrator-state[{module}]" in child.stdout
