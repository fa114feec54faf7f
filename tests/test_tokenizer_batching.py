"""Batches by length: every item once, limits held, order restored, and never more than a window read ahead."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilbert.errors import DataError
from distilbert.tokenization.batching import Batch, length_sorted_batches, pack, restore_order

LENGTHS = st.lists(st.integers(0, 40), max_size=80)
LIMITS = st.fixed_dictionaries(
    {"window": st.integers(1, 30)},
    optional={"batch_size": st.integers(1, 9), "token_budget": st.integers(40, 200)},
).filter(lambda limits: len(limits) > 1)


def items(lengths):
    return [(i,) * length for i, length in enumerate(lengths)]


@given(LENGTHS, LIMITS)
def test_every_item_once_within_the_limits(lengths, limits):
    batches = list(length_sorted_batches(items(lengths), **limits))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    for batch in batches:
        assert batch.items == [items(lengths)[i] for i in batch.indices]
        assert 1 <= len(batch.items) <= limits.get("batch_size", len(lengths))
        assert len(batch.items) * max(map(len, batch.items)) <= limits.get("token_budget", 10**9)


@given(LENGTHS, LIMITS)
def test_the_longest_come_first_inside_a_window_and_equals_keep_their_order(lengths, limits):
    order = [i for batch in length_sorted_batches(lengths, key=int, **limits) for i in batch.indices]
    window = limits["window"]
    assert order == sorted(range(len(lengths)), key=lambda i: (i // window, -lengths[i], i))


@given(LENGTHS, LIMITS)
def test_no_batch_is_cut_short_without_need(lengths, limits):
    batches = list(length_sorted_batches(lengths, key=int, **limits))
    for batch, following in itertools.pairwise(batches):
        if batch.indices[0] // limits["window"] == following.indices[0] // limits["window"]:
            rows = len(batch.items) + 1
            full = rows > limits.get("batch_size", 10**9)
            assert full or rows * batch.items[0] > limits.get("token_budget", 10**9)


@given(LENGTHS, st.integers(40, 200), st.integers(1, 9), st.integers(1, 30))
def test_without_padding_an_item_s_own_tokens_count(lengths, budget, rows, window):
    limits = {"token_budget": budget, "batch_size": rows, "window": window}
    batches = list(length_sorted_batches(lengths, key=int, padded=False, **limits))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    assert all(sum(batch.items) <= budget and 1 <= len(batch.items) <= rows for batch in batches)
    for batch, following in itertools.pairwise(batches):
        if batch.indices[0] // window == following.indices[0] // window:
            assert len(batch.items) == rows or sum(batch.items) + following.items[0] > budget


@given(LENGTHS, LIMITS)
def test_equal_inputs_give_equal_batches(lengths, limits):
    first, second = (list(length_sorted_batches(iter(items(lengths)), **limits)) for _ in range(2))
    assert first == second


@given(LENGTHS, LIMITS)
def test_order_is_restored(lengths, limits):
    batches = length_sorted_batches(items(lengths), **limits)
    results = ((batch.indices, np.array([len(item) for item in batch.items])) for batch in batches)
    assert list(restore_order(results)) == lengths


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 60))
def test_a_stream_without_end_is_read_a_window_ahead_at_most(window, batch_size, count):
    read = 0

    def stream():
        nonlocal read
        for read in itertools.count(1):
            yield "x" * (read % 7)

    batches = length_sorted_batches(stream(), batch_size=batch_size, window=window)
    assert read == 0
    for given_out, _ in enumerate(itertools.islice(restore_order(batches), count)):
        assert given_out < read <= (given_out // window + 1) * window


def test_a_window_is_given_back_in_order_before_the_next_is_read():
    read = []

    def stream():
        for text in ("a", "bbb", "cc", "d"):
            read.append(text)
            yield text

    results = restore_order(length_sorted_batches(stream(), batch_size=1, window=2))
    assert (next(results), next(results), read) == ("a", "bbb", ["a", "bbb"])
    assert list(results) == ["cc", "d"]


def test_lengths_may_be_anything_that_key_measures():
    assert list(length_sorted_batches(["a b", "a b c d"], batch_size=2, key=lambda text: text.count(" ") + 1)) == [
        Batch([1, 0], ["a b c d", "a b"])
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "give batch_size, token_budget or both"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"token_budget": -5}, ValueError, "token_budget must be a whole number of at least 1, got -5"),
        ({"batch_size": 1, "window": 0}, ValueError, "window must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be a whole number of at least 1, got 2.0"),
        ({"token_budget": True}, ValueError, "token_budget must be a whole number of at least 1, got True"),
    ],
)
def test_wrong_limits_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        length_sorted_batches(["a"], **arguments)


def test_an_item_longer_than_the_budget_is_named():
    batches = length_sorted_batches(["a", "b", "c" * 9], token_budget=8, window=2)
    assert next(batches).indices == [0, 1]
    with pytest.raises(DataError, match="item 2 has 9 tokens, more than token_budget=8: truncate it"):
        next(batches)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([([0, 0], "ab")], "got 0 again"),
        ([([0], "a"), ([0], "b")], "got 0 again"),
        ([([0, 2], "ab")], "got 2 but never 1"),
        ([([0, 1], "a")], "shorter"),
    ],
)
def test_lost_and_doubled_results_are_noticed(results, message):
    with pytest.raises(ValueError, match=message):
        list(restore_order(results))


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), max_size=9))
def test_packing(ids):
    packed = pack(ids)
    assert (packed.ids.dtype, packed.lengths.dtype) == (np.int32, np.int32)
    assert packed.ids.tolist() == [i for row in ids for i in row]
    assert packed.lengths.tolist() == [len(row) for row in ids]
    ends = packed.cumulative_lengths
    assert ends.dtype == packed.position_ids.dtype == np.int32
    assert [packed.ids[a:b].tolist() for a, b in itertools.pairwise(ends)] == ids
    assert packed.position_ids.tolist() == [i for row in ids for i in range(len(row))]


@pytest.mark.parametrize(("ids", "error"), [([1, 2], TypeError), ([[0.5]], TypeError), ([[1], [2**31]], ValueError)])
def test_what_cannot_be_packed(ids, error):
    with pytest.raises(error, match=r"ids must"):
        pack(ids)
