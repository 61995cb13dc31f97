"""The commands of `orchestrator-state runs`, in the order of its help."""

from __future__ import annotations

import typer

from orchestrator_state.cli.runs.acting import cancel, delete, fork, pause, resume, rewind, signal
from orchestrator_state.cli.runs.answering import answer, questions
from orchestrator_state.cli.runs.following import watch
from orchestrator_state.cli.runs.seeing import list_runs, result, show, stats, steps
from orchestrator_state.cli.runs.spending import usage

_COMMANDS = (
    show,
    steps,
    result,
    watch,
    stats,
    usage,
    signal,
    questions,
    answer,
    pause,
    resume,
    cancel,
    fork,
    rewind,
    delete,
)

runs = typer.Typer(no_args_is_help=True, help="See durable runs, and act on them.")
runs.command("list")(list_runs)
for command in _COMMANDS:
    runs.command()(command)
