"""The command line: `orchestrator-state db …`, `… runs …`, `… verify`, `… rekey`, `… prune`,
`… collect-garbage` and `… demo`."""

from __future__ import annotations

import sys

from orchestrator_state.cli.app import app
from orchestrator_state.errors import OrchestratorStateError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line. Errors of ours become one line on stderr and exit code 1."""
    try:
        app(prog_name="orchestrator-state")
    except OrchestratorStateError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(1) from None
