"""`python -m orchestrator_state`: the command line."""

from orchestrator_state.cli import main

main()
