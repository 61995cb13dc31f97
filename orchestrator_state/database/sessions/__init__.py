"""Sessions, and what happens to a transaction while it is open: failures, frozen processes, the caller's code."""
