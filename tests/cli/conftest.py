"""The command line, run in this process."""

import functools
import sys

import pytest
import typer

from orchestrator_state.cli import main
from orchestrator_state.cli.app import app
from tests.support.command_line import Command

_parsers = functools.cache(typer.main.get_command)
"""Typer makes them anew whenever it is called: once in a process of the command's own, but here hundreds of times."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; returns its exit status, standard output and standard error."""
    monkeypatch.setattr("orchestrator_state.cli.app", _parsers(app))
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrator-state", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run
