"""What is recorded of a run, and the one way to record more."""
