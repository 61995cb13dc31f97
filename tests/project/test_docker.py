"""The files for containers name commands and settings that there are. No image is built: that takes a daemon."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator_state.cli.app import app
from orchestrator_state.settings import Settings

DIRECTORY = Path(__file__).parents[2] / "examples" / "docker"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DIRECTORY / "compose.yaml").read_text())["services"]
    return services


def test_each_command_is_one_of_the_command_line(services: dict[str, Any]) -> None:
    commands = [services["migrate"]["command"], services["worker"]["healthcheck"]["test"][1:]]
    for name, *arguments in commands:
        assert name == "orchestrator-state"
        assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0


def test_each_setting_is_one_of_ours(services: dict[str, Any]) -> None:
    for name in services["worker"]["environment"]:
        assert name == "DATABASE_URL" or name.removeprefix("ORCHESTRATOR_STATE_").lower() in Settings.model_fields


def test_a_worker_lets_go_before_its_container_is_killed(services: dict[str, Any]) -> None:
    grace = re.search(r"grace=timedelta\(seconds=(\d+)\)", (DIRECTORY / "worker.py").read_text())
    assert grace
    assert int(grace[1]) < int(services["worker"]["stop_grace_period"].removesuffix("s"))


def test_the_image_has_the_file_that_it_runs() -> None:
    dockerfile = (DIRECTORY / "Dockerfile").read_text()
    assert "COPY worker.py ." in dockerfile
    assert 'CMD ["python", "worker.py"]' in dockerfile
    assert "USER app" in dockerfile
