"""What is computed: token ids with given lengths, [CLS] and [SEP] included, the same on every machine.

Lengths come from the standard library's generator with a fixed seed, by the inverse of the distribution function, so
that they can be had again anywhere. `python -m benchmarks.workloads` prints them.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

SEED = 0
FIRST_WORD, VOCABULARY = 1000, 30_522  # ids before the first word are special or unused


def lognormal(median: float, spread: float, longest: int, count: int, *, shortest: int = 4) -> tuple[int, ...]:
    """Lengths with the given median; `spread` is the standard deviation of their logarithm. Longer ones are cut."""
    generator, normal = random.Random(SEED), statistics.NormalDist(math.log(median), spread)  # noqa: S311
    drawn = (math.exp(normal.inv_cdf(generator.random())) for _ in range(count))
    return tuple(min(max(round(length), shortest), longest) for length in drawn)


QUERIES = lognormal(9, 0.35, 20, 128)
SENTENCES = lognormal(24, 0.6, 128, 128)
PARAGRAPHS = lognormal(120, 0.7, 512, 32)


@dataclasses.dataclass(frozen=True)
class Workload:
    """Texts that are computed in batches.

    Attributes:
        name, title: for the command line, and for people.
        lengths: tokens of each text, in the order of arrival.
        batch: texts in a batch.
        by_length: whether the texts are sorted, longest first, before they are put into batches.
        repeat: how often all is computed in one turn of an engine, so that a turn is not too short to be timed.
        headline: whether every engine takes part; else only the strongest.
    """

    name: str
    title: str
    lengths: tuple[int, ...]
    batch: int
    by_length: bool = False
    repeat: int = 1
    headline: bool = False

    @property
    def tokens(self) -> int:
        """Of all texts, without padding."""
        return sum(self.lengths)

    @property
    def operations(self) -> float:
        """Floating-point operations of the encoder at base size (6 layers, 768 wide) on the tokens alone.

        Per token 6 * 2 * (4 * 768**2 + 2 * 768 * 3072) in products with weights, and 6 * 4 * 768 for each token of its
        text in attention.
        """
        return sum(length * (84_934_656 + 18_432 * length) for length in self.lengths)

    def batches(self) -> list[tuple[Ids, Ids]]:
        """(ids, mask) of each batch, (batch, seq) each, padded with 0 at the right to its longest text."""
        lengths = sorted(self.lengths, reverse=True) if self.by_length else list(self.lengths)
        parts = [lengths[first : first + self.batch] for first in range(0, len(lengths), self.batch)]
        generator = np.random.default_rng(SEED)
        return [_batch(part, generator) for part in parts]

    @property
    def fill(self) -> float:
        """Which part of the padded batches is tokens."""
        return self.tokens / sum(mask.size for _, mask in self.batches())


def _batch(lengths: Sequence[int], generator: np.random.Generator) -> tuple[Ids, Ids]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = generator.integers(FIRST_WORD, VOCABULARY, mask.shape)
    return np.where(mask, ids, 0), mask.astype(np.int64)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("fixed-4", "4 texts of 128 tokens", (128,) * 4, 4, headline=True),
        Workload("sentences-32", "sentences, batches of 32 as they arrive", SENTENCES[:32], 32, headline=True),
        Workload("query", "one query of 14 tokens", (14,), 1, repeat=20, headline=True),
        Workload("queries-1", "queries, one by one", QUERIES[:16], 1),
        Workload("queries-128", "queries, batches of 128 as they arrive", QUERIES, 128),
        Workload("sentences-1", "sentences, one by one", SENTENCES[:16], 1),
        Workload("sentences-8", "sentences, batches of 8 as they arrive", SENTENCES[:32], 8),
        Workload(
            "sentences-32-sorted", "sentences, batches of 32, sorted by length", SENTENCES[:64], 32, by_length=True
        ),
        Workload("paragraphs-8", "paragraphs, batches of 8 as they arrive", PARAGRAPHS[:8], 8),
        Workload(
            "paragraphs-8-sorted", "paragraphs, batches of 8, sorted by length", PARAGRAPHS[:16], 8, by_length=True
        ),
        Workload("document-1", "one document of 512 tokens", (512,), 1),
        Workload("fixed-32", "32 texts of 128 tokens", (128,) * 32, 32),
    )
}


def main() -> None:
    """Print every workload with its lengths."""
    for workload in WORKLOADS.values():
        head = f"{workload.name}: {workload.title}; {workload.tokens} tokens, {workload.fill:.2f} of padded batches"
        sys.stdout.write(f"{head}\n  {' '.join(map(str, workload.lengths))}\n")


if __name__ == "__main__":
    main()
