"""States and checkpoints as the domain has them: built from rows, and as the columns that a save writes."""
