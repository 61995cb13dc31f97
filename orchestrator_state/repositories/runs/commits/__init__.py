"""The commit of a run's step: the same parameters on both databases, and the statements of each."""
