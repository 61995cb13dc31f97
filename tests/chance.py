"""Chance that can be repeated."""

import os
import random
import sys


def dice() -> random.Random:
    """A generator whose seed stands in the test's output; TEST_SEED=… plays the same moments again."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
    sys.stdout.write(f"TEST_SEED={seed}\n")
    return random.Random(seed)
