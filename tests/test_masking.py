"""Masking for masked LM: how many tokens, which, and what stands in their place; all of it drawn from a random state."""

import math

import numpy as np
import pytest

from distilbert.training.masking import KEPT, MASKED, mask
from distilbert.training.randomness import generator

SPECIAL, MASK, VOCAB = (0, 1, 2, 3, 4), 4, 50
COUNTS = np.arange(VOCAB, dtype=np.int64) ** 2


def batch(rows=64, seq=40, seed=0):
    """Rows of unlike length with a special token at both ends."""
    random = np.random.RandomState(seed)
    ids = random.randint(5, VOCAB, (rows, seq)).astype(np.int32)
    real = (np.arange(seq) < random.randint(3, seq + 1, rows)[:, None]).astype(np.int32)
    ids[:, 0] = 2
    ids[np.arange(rows), real.sum(axis=1) - 1] = 3
    return np.where(real, ids, 7).astype(np.int32), real  # padding that is told by the mask alone


def masked(ids, real, random=None, **options):
    random = generator(0, "masking", 0, 0) if random is None else random
    return mask(ids, real, SPECIAL, VOCAB, MASK, random, **{"counts": COUNTS, **options})


def within(found, expected, n):
    """Whether a share of n draws lies within 4.5 standard deviations: missed once in 150 000 times."""
    return abs(found - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_a_share_of_the_real_tokens_of_the_batch_is_chosen(smoothing, probability):
    ids, real = batch()
    found = masked(ids, real, smoothing=smoothing, probability=probability)
    assert len(found.positions) == math.ceil(probability * real.sum())
    assert (np.diff(found.positions) > 0).all()
    assert {found.ids.dtype.name, found.positions.dtype.name, found.labels.dtype.name} == {"int32"}
    np.testing.assert_array_equal(found.labels, ids.reshape(-1)[found.positions])
    others = np.setdiff1d(np.arange(ids.size), found.positions)
    np.testing.assert_array_equal(found.ids.reshape(-1)[others], ids.reshape(-1)[others])


def test_special_tokens_and_padding_are_never_chosen():
    ids, real = batch()
    for step in range(50):
        found = masked(ids, real, generator(0, "masking", step, 0), probability=0.9)
        assert real.reshape(-1)[found.positions].all()
        assert not np.isin(found.labels, SPECIAL).any()
    every = masked(ids, real, probability=1.0)
    assert len(every.positions) == np.sum((real == 1) & ~np.isin(ids, SPECIAL)) < real.sum()


def test_nothing_to_guess_is_no_error():
    ids = np.array([[2, 3, 0]], np.int32)
    found = masked(ids, (ids > 0).astype(np.int32))
    assert len(found.positions) == len(found.labels) == 0
    np.testing.assert_array_equal(found.ids, ids)


def test_it_is_a_function_of_seed_step_and_micro_batch():
    ids, real = batch()
    kept = ids.copy(), real.copy()
    first, again, *others = (
        masked(ids, real, generator(seed, "masking", step, micro))
        for seed, step, micro in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    for x, y in zip(first, again, strict=True):
        assert x.tobytes() == y.tobytes()
    assert all(first.positions.tobytes() != other.positions.tobytes() for other in others)
    np.testing.assert_array_equal(kept, (ids, real))


def test_the_draws_of_a_seed_stay_what_they_are():
    """A resumed run may have another NumPy: what is drawn is frozen."""
    ids, real = batch(2, 12)
    found = masked(ids, real, generator(7, "masking", 3, 0), probability=0.3)
    assert found.positions.tolist() == FROZEN_POSITIONS
    assert found.ids.reshape(-1)[found.positions].tolist() == FROZEN_IDS


FROZEN_POSITIONS, FROZEN_IDS = [2, 3, 6, 7, 10, 14], [8, 4, 39, 4, 4, 4]


def test_eight_of_ten_become_the_mask_one_stays_and_one_is_random():
    ids = np.full((200, 200), 10, np.int32)
    found = masked(ids, np.ones_like(ids), probability=0.5, smoothing=0.0)
    became, n = found.ids.reshape(-1)[found.positions], len(found.positions)
    drawn = 1 - MASKED - KEPT
    assert (MASKED, KEPT) == (0.8, 0.1)
    assert within(np.mean(became == MASK), MASKED + drawn / VOCAB, n)
    assert within(np.mean(became == 10), KEPT + drawn / VOCAB, n)
    others = became[(became != MASK) & (became != 10)]
    shares = np.bincount(others, minlength=VOCAB) / n
    assert all(within(shares[i], drawn / VOCAB, n) for i in range(VOCAB) if i not in (MASK, 10))
    assert (shares[list(set(SPECIAL) - {MASK})] > 0).all()  # the whole vocabulary, special tokens included


def test_without_smoothing_all_tokens_are_alike():
    ids = np.tile(np.arange(5, 45, dtype=np.int32), (100, 1))
    found = masked(ids, np.ones_like(ids), smoothing=0.0)
    plain = masked(ids, np.ones_like(ids), smoothing=0.0, counts=None)
    np.testing.assert_array_equal(found.positions, plain.positions)
    shares = np.bincount(found.labels, minlength=45)[5:] / 100
    assert all(within(share, 0.15, 100) for share in shares)


def test_smoothing_favours_rare_tokens_by_the_power_of_their_counts():
    ids = np.tile(np.array([[10, 20, 30]], np.int32), (200_000, 1))  # equally many of each
    counts = np.zeros(VOCAB, np.int64)
    counts[[10, 20, 30]] = 0, 10, 1000  # never seen counts as once
    found = masked(ids, np.ones_like(ids), probability=0.01, counts=counts)
    weights = np.array([1, 10, 1000]) ** -0.7
    shares = np.bincount(found.labels, minlength=VOCAB)[[10, 20, 30]] / len(found.labels)
    for share, expected in zip(shares, weights / weights.sum(), strict=True):
        assert abs(share - expected) < 0.02  # few are drawn, so that hardly any run short


def test_the_choice_is_that_of_drawing_one_after_the_other():
    """Two of three tokens of weights 1, 1/2 and 1/4, without replacement: the chance of each pair, by hand."""
    ids, counts = np.array([[10, 20, 30]], np.int32), np.ones(VOCAB, np.int64)
    counts[[20, 30]] = 2, 4
    draws = 20_000
    random = np.random.RandomState(3)
    pairs = [
        tuple(masked(ids, np.ones_like(ids), random, probability=0.6, smoothing=1.0, counts=counts).labels.tolist())
        for _ in range(draws)
    ]
    weight = {10: 4 / 7, 20: 2 / 7, 30: 1 / 7}
    for a, b in ((10, 20), (10, 30), (20, 30)):
        chance = weight[a] * weight[b] * (1 / (1 - weight[a]) + 1 / (1 - weight[b]))
        assert within(pairs.count((a, b)) / draws, chance, draws), (a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 0.0}, "probability must lie above 0"),
        ({"probability": 1.5}, "at most 1, got 1.5"),
        ({"smoothing": -1.0}, "smoothing must be a finite number"),
        ({"counts": None}, r"counts must have the shape \(50,\) where smoothing is not 0, got none"),
        ({"counts": COUNTS[:-1]}, r"got the shape \(49,\)"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masked(*batch(2, 8), **options)
