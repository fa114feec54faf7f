"""Paired ratios: what can be said about two engines that took turns on a machine that is not always equally fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Ratio(NamedTuple):
    """The median over rounds of one engine's speed by another's, and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """How many times as fast as the reference: both took the same work in the same rounds; above 1 is faster.

    The interval is that of the percentile bootstrap over rounds.
    """
    ratios = np.asarray(reference) / np.asarray(seconds)  # (rounds,)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))
