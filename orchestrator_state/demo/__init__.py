"""The demo: two workers share a document pipeline; one is killed in the middle of a step, and the other finishes it."""
