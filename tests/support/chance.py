"""Chance that can be repeated, and bad luck that is no failure."""

import os
import random
import sys
from typing import Final

_TRIES: Final = 10


def a_seed() -> int:
    """Another one each time, which stands in the test's output; TEST_SEED=… plays the same moments again."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
    sys.stdout.write(f"TEST_SEED={seed}\n")
    return seed


def dice() -> random.Random:
    """A generator with such a seed."""
    return random.Random(a_seed())


def tries(seed: int = 0) -> range:
    """The seeds with which a control is tried, one after the other, until it finds its flaw.

    A control shows that a harness can find something. That is a statement about many seeds, and one of them may miss
    it: none of its sequences of calls cancels a run, or no process is killed in the few milliseconds that matter. Ten
    misses in a row are no bad luck. Of the sequences of calls one seed in thirty misses: ten of them, one time in
    10^14. Each try is made in a fresh place, since what the one before left there is in its way: the same runs,
    finished.

    A proof is never tried again once it has found something; at most, if it has not even made its fault.
    """
    return range(seed, seed + _TRIES)
