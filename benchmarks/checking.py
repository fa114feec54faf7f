"""Whether an engine computes the model: its results against float64, before it is timed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RELATIVE = {"float32": 1e-5, "bfloat16": 1e-2}  # measured: 5e-7 and 3e-3 to 9e-3
COSINE = 0.99  # of int8


class Check(NamedTuple):
    """How far results are from what is expected, at kept positions.

    `relative` is the norm of the difference by that of what is expected, `largest` the largest difference of a number,
    `cosine` the mean over tokens of the cosine between both.
    """

    relative: float
    largest: float
    cosine: float

    def passes(self, precision: str) -> bool:
        """Whether that is what the precision explains."""
        if precision == "int8":
            return self.cosine >= COSINE
        return self.relative < RELATIVE[precision]


def check(found: NDArray[Any], expected: NDArray[np.float64]) -> Check:
    """Compare (tokens, dim) with (tokens, dim).

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"results must have the shape {expected.shape}, got {found.shape}.")
    found = found.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (found * expected).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
    difference = found - expected
    relative = np.linalg.norm(difference) / np.linalg.norm(expected)
    return Check(float(relative), float(np.abs(difference).max()), float(cosine.mean()))
