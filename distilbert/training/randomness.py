"""Randomness as a pure function of the seed and of what it is for: there is no state to save, and none to lose.

NumPy's legacy generator is frozen by its compatibility policy, so a seed draws the same in every version.
"""

from __future__ import annotations

import zlib

import numpy as np


def derive(seed: int, purpose: str, *path: int) -> int:
    """A seed below 2**32 for `purpose` at `path`, such as a step and a micro-batch; unlike paths give unlike seeds."""
    words = [seed, zlib.crc32(purpose.encode()), len(path), *path]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def generator(seed: int, purpose: str, *path: int) -> np.random.RandomState:
    """A generator for `purpose` at `path`."""
    words = [seed, zlib.crc32(purpose.encode()), len(path), *path]
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(words)))
