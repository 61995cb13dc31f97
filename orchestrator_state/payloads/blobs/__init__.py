"""Payloads that are too large for their row: where they are kept, what they are called, and how they get there."""
