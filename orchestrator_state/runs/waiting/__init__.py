"""What a handler waits for, and what becomes of a run while it waits."""
