"""The command line: `orchestrator-state runs …`, `… checkpoints …`, `… db …`, `… health`, `… prune`, `… erase`,
`… verify`, `… rekey`, `… collect-garbage`, `… export`, `… import`, `… backup` and `… demo`."""

from __future__ import annotations

from orchestrator_state.cli import output
from orchestrator_state.cli.app import app
from orchestrator_state.cli.endings import ExitCode, code_of, line_of
from orchestrator_state.errors import OrchestratorStateError

__all__ = ["main"]


def main() -> None:
    """Run the command line, and exit with an `ExitCode`. Errors of ours become one line on stderr."""
    output.escape_what_has_no_place()
    try:
        code = _run()
        output.flush()
    except output.OutputFailed as error:
        output.give_up()
        if not error.is_closed_pipe:
            output.note(f"error: the output cannot be written: {error}")
        code = ExitCode.CLOSED_PIPE if error.is_closed_pipe else ExitCode.OUTPUT
    raise SystemExit(code)


def _run() -> int:
    try:
        app(prog_name="orchestrator-state")
    except OrchestratorStateError as error:
        output.note(line_of(error))
        return code_of(error)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.DONE
    except OSError as error:  # of a help text, which typer writes
        raise output.OutputFailed(error) from None
    return ExitCode.DONE
