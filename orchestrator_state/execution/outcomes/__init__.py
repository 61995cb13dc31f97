"""What came of runs: read when they are over, and waited for until then."""
