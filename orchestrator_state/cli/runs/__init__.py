"""`orchestrator-state runs …`: see durable runs, and act on them."""
