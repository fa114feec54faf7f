"""Order, learning rate and weights of a run: pure functions, held to what they promise."""

import numpy as np
import pytest

from distilbert.training.batches import Batch, normalized
from distilbert.training.planning import Plan, by_length, cut, full_size
from distilbert.training.randomness import derive, generator
from distilbert.training.schedule import learning_rate

LENGTHS = np.random.default_rng(0).integers(3, 200, 1000).astype(np.int32)


def plan(**options):
    return Plan(LENGTHS, **{"seed": 1, "batch_size": 16, **options})


def all_batches(of):
    return [batch for step in range(1, of.total_steps + 1) for batch in of.batches(step)]


@pytest.mark.parametrize("options", [{}, {"token_budget": 1024}, {"group_by_length": False}, {"accumulation": 3}])
def test_an_epoch_takes_every_example_once(options):
    taken = np.concatenate(all_batches(plan(**options)))
    assert sorted(taken) == list(range(1000))
    assert list(taken) != sorted(taken)


def test_batches_keep_within_their_budget():
    for batch in all_batches(plan(token_budget=1024, batch_size=64)):
        assert len(batch) <= 64
        assert len(batch) == 1 or len(batch) * LENGTHS[batch].max() <= 1024


def test_an_example_above_the_budget_is_a_batch_of_its_own():
    batches = list(cut(np.arange(3), np.array([5, 900, 5]), 8, 100))
    assert [list(batch) for batch in batches] == [[0], [1], [2]]


def test_full_batches_have_the_batch_size_unless_a_budget_cuts_them():
    assert full_size(100, 16, None) == plan().full == 16 == max(map(len, all_batches(plan())))
    assert full_size(5, 16, None) == 5
    assert full_size(100, 16, 512) == plan(token_budget=512).full == 0


def test_grouping_leaves_little_padding():
    def padding(of):
        return sum(len(batch) * LENGTHS[batch].max() for batch in all_batches(of)) / LENGTHS.sum()

    assert padding(plan()) < 1.1
    assert padding(plan(group_by_length=False)) > 1.5


def test_the_order_is_a_function_of_the_seed_and_the_epoch():
    one, again, other = plan(epochs=2), plan(epochs=2), plan(epochs=2, seed=2)
    steps = range(1, one.total_steps + 1)
    backwards = {step: again.batches(step) for step in reversed(steps)}  # a step asks for nothing before it
    for step in steps:
        assert [list(b) for b in one.batches(step)] == [list(b) for b in backwards[step]]
    assert any(list(one.batches(step)[0]) != list(other.batches(step)[0]) for step in steps)
    half = one.total_steps // 2
    assert list(one.batches(1)[0]) != list(one.batches(half + 1)[0])


def test_steps_of_epochs_and_parts_of_them():
    assert plan().total_steps == 63
    assert plan(accumulation=4).total_steps == 16
    assert [len(plan(accumulation=4).batches(step)) for step in (1, 15, 16)] == [4, 4, 3]
    assert list(plan(epochs=1.5).epoch_ends) == [63, 95]
    assert list(plan(epochs=5, max_steps=100).epoch_ends) == [63, 100]
    assert plan(epochs=0.001).total_steps == 1


def test_sorting_by_length_keeps_the_order_of_equals():
    assert list(by_length(np.array([3, 0, 2, 1]), np.array([5, 5, 1, 5]))) == [2, 3, 0, 1]


def test_the_learning_rate_rises_and_falls_and_loses_no_step():
    rates = [learning_rate(step, peak=1.0, warmup_steps=4, total_steps=10) for step in range(1, 11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert np.allclose(rates[4:], [6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert learning_rate(1, peak=1.0, warmup_steps=0, total_steps=10) == 1.0
    assert learning_rate(10, peak=1.0, warmup_steps=0, total_steps=10) == pytest.approx(0.1)
    assert learning_rate(9, peak=2.0, warmup_steps=2, total_steps=10, schedule="constant") == 2.0


def test_randomness_differs_by_purpose_and_path():
    seeds = {derive(0, p, *path) for p in ("dropout", "masks") for path in ((), (1,), (2,), (1, 0), (1, 1), (2, 1))}
    assert len(seeds) == 12
    assert derive(7, "masks", 3) == derive(7, "masks", 3) != derive(8, "masks", 3)
    assert generator(0, "order", 1).randint(1 << 30) == generator(0, "order", 1).randint(1 << 30)


def batch(rows, seq, **arrays):
    inputs = {
        name: np.arange(rows * seq, dtype=np.int32).reshape(rows, seq) for name in ("input_ids", "attention_mask")
    }
    return Batch(inputs, **arrays)


def test_weights_sum_to_one_over_a_step():
    parts = [batch(2, 3, weights={"labels": np.ones(2, np.float32)}), batch(3, 4, weights={"labels": np.ones(3)})]
    found = normalized(parts)
    assert sum(part.weights["labels"].sum() for part in found) == pytest.approx(1.0)
    nothing = normalized([batch(2, 3, weights={"labels": np.zeros(2, np.float32)})])
    assert not nothing[0].weights["labels"].any()


def test_shares_of_rows_hold_each_once():
    whole = batch(5, 3, targets={"labels": np.arange(5)}, weights={"labels": np.ones(5), "hidden": np.ones((5, 3))})
    parts = whole.split(2)
    assert [part.rows for part in parts] == [3, 3]
    counted = np.concatenate([part.targets["labels"][part.weights["labels"] > 0] for part in parts])
    assert sorted(counted) == [0, 1, 2, 3, 4]
    assert not parts[1].weights["hidden"][2].any()
    for part in parts:
        assert (part.inputs["input_ids"] == whole.inputs["input_ids"][part.targets["labels"]]).all()
    assert [part.rows for part in batch(1, 3, weights={"labels": np.ones(1)}).split(3)] == [1, 1, 1]


def test_shares_of_chosen_positions_stay_with_their_rows():
    positions = np.array([1, 3, 4, 8, 13], np.int32)  # of 5 rows of 3
    targets = {"positions": positions, "labels": positions * 10}
    whole = batch(5, 3, targets=targets, weights={"labels": np.ones(5, np.float32), "hidden": np.ones((5, 3))})
    found = []
    for part in whole.split(2):
        ids = part.inputs["input_ids"].reshape(-1)[part.targets["positions"]]
        assert (ids * 10 == part.targets["labels"]).all()
        found += list(ids)
    assert sorted(found) == [1, 3, 4, 8, 13]


def test_shares_of_pairs_keep_anchor_and_positive_together():
    weights = {"labels": np.ones(3, np.float32), "hidden": np.ones(6, np.float32)}
    whole = batch(6, 2, weights=weights, paired=True)
    for part, pairs in zip(whole.split(2), ([0, 1], [2, 0]), strict=True):
        first = part.inputs["input_ids"][:, 0] // 2
        assert list(first) == [*pairs, *(pair + 3 for pair in pairs)]
    assert list(whole.split(2)[1].weights["labels"]) == [1, 0]
    assert list(whole.split(2)[1].weights["hidden"]) == [1, 0, 1, 0]
