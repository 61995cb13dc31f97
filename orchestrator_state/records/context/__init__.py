"""The context of a run: what handlers change in it, and how that is recorded."""
