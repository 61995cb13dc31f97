"""A shop on FastAPI: its orders are rows of its own, and each is fulfilled by a run. See README.md."""
