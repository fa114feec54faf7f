"""Which tokens a masked LM has to guess, and what stands in their place: a pure function of a random state.

A share of the real tokens of the whole batch is chosen without replacement, rare tokens more readily the larger
`smoothing` is; 0 is the plain choice, where all are alike. Of the chosen, 80 % become the mask, 10 % stay, and 10 %
become any token of the vocabulary. Sources: Devlin et al. 2019, section 3.1; Sanh et al. 2019, section 3; for the
weighted choice, Efraimidis and Spirakis 2006. Axes: rows, seq, n (chosen tokens).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MASKED, KEPT = 0.8, 0.1  # shares of the chosen tokens; the rest become random tokens


class Masked(NamedTuple):
    """A batch to guess tokens in.

    ids: (rows, seq) int32, with the chosen tokens replaced. positions: (n,) int32, row * seq + column, ascending.
    labels: (n,) int32, the tokens that were there.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    labels: NDArray[np.int32]


def mask(
    ids: NDArray[np.int32],
    attention_mask: NDArray[np.int32],
    special_ids: Collection[int],
    vocab_size: int,
    mask_id: int,
    random: np.random.RandomState,
    *,
    probability: float = 0.15,
    smoothing: float = 0.7,
    counts: NDArray[np.int64] | None = None,
) -> Masked:
    """Choose ceil(probability * real tokens) tokens of the batch, or all that may be chosen if they are fewer.

    Args:
        ids: (rows, seq).
        attention_mask: (rows, seq), 1 for real tokens, 0 for padding.
        special_ids: tokens that are never chosen; they count as real tokens.
        vocab_size: random tokens are drawn from 0 to vocab_size - 1, special ones included.
        mask_id: the token [MASK].
        random: draws; its state changes.
        probability: the share of the chosen, above 0 and at most 1.
        smoothing: a token is drawn with the weight max(count, 1) ** -smoothing.
        counts: how often each token occurs, (vocab_size,); needed unless smoothing is 0.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check(probability, smoothing, counts, vocab_size)
    flat = ids.reshape(-1)
    real = attention_mask.reshape(-1) != 0
    candidates = np.flatnonzero(real & ~np.isin(flat, list(special_ids)))
    wanted = math.ceil(probability * int(real.sum()))
    keys = random.standard_exponential(len(candidates)) / _weights(flat[candidates], smoothing, counts)
    positions = np.sort(candidates[np.argsort(keys, kind="stable")[:wanted]]).astype(np.int32)  # (n,)
    labels = flat[positions]
    return Masked(_replaced(ids, positions, vocab_size, mask_id, random), positions, labels)


def _check(probability: float, smoothing: float, counts: NDArray[np.int64] | None, vocab_size: int) -> None:
    if not 0 < probability <= 1:
        raise ValueError(f"probability must lie above 0 and be at most 1, got {probability}.")
    if not (math.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing must be a finite number of at least 0, got {smoothing}.")
    if smoothing and (counts is None or counts.shape != (vocab_size,)):
        found = "none" if counts is None else f"the shape {counts.shape}"
        raise ValueError(f"counts must have the shape ({vocab_size},) where smoothing is not 0, got {found}.")


def _weights(tokens: NDArray[np.int32], smoothing: float, counts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    if counts is None or not smoothing:
        return np.ones(len(tokens))
    return np.maximum(counts[tokens], 1).astype(np.float64) ** -smoothing


def _replaced(
    ids: NDArray[np.int32],
    positions: NDArray[np.int32],
    vocab_size: int,
    mask_id: int,
    random: np.random.RandomState,
) -> NDArray[np.int32]:
    """The ids with what stands in the place of the chosen ones."""
    drawn = random.random_sample(len(positions))
    randoms = random.randint(0, vocab_size, len(positions))
    replaced = ids.reshape(-1).copy()
    others = np.where(drawn < MASKED + KEPT, replaced[positions], randoms)
    replaced[positions] = np.where(drawn < MASKED, mask_id, others)
    return replaced.reshape(ids.shape)
