"""The command line: `orchestrator-state db …`, `… runs …`, `… verify`, `… rekey`, `… prune`,
`… collect-garbage` and `… demo`."""

from __future__ import annotations

import sys
from typing import Final

from orchestrator_state.cli.app import app
from orchestrator_state.errors import OrchestratorStateError, StoreUnavailable

__all__ = ["main"]

_MAY_HAVE_ACTED: Final = "; the command may have taken effect, or a part of it: look before you repeat it"


def main() -> None:
    """Run the command line. Errors of ours become one line on stderr and exit code 1."""
    try:
        app(prog_name="orchestrator-state")
    except OrchestratorStateError as error:
        warning = _MAY_HAVE_ACTED if isinstance(error, StoreUnavailable) and error.outcome_unknown else ""
        print(f"error: {error}{warning}", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(1) from None
