"""The encoder on unpadded tokens in TensorFlow: embeddings, layers, attention. Twins: pt/unpadded.py, flax/unpadded.py.

Linear layers and norms see real tokens only. For attention alone, heads are gathered into groups of rows of similar
length, so that a group is padded to its own longest row. Axes: total, dim, rows, length, n_heads, head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from distilbert.checkpoint.tensors import Array
from distilbert.config import DistilBertConfig
from distilbert.tf.products import LayerNorm, Linear, QuantizedLinear, constant, new_linear

Tensor = Any  # a tf.Tensor, known or traced

SHORT, BLOCK = 32, 64  # see `width`
GROUPS = 4  # of rows padded to one length, in a batch of unlike lengths
LINEAR = 64  # scores of one query that cost as much as gathering its heads
DROPPED = -1e9  # added to the score of a padded key: its probability is 0


class Rows(NamedTuple):
    """The rows of a batch, in falling order of their lengths.

    Attributes:
        lengths: (rows,), int32.
        cuts: where groups begin, and the end, (GROUPS + 1,), int32: see `cheapest_cuts`.
    """

    lengths: Any
    cuts: Any


class Encoder:
    """Hidden states of unpadded tokens, from a model's weights by canonical name."""

    def __init__(self, config: DistilBertConfig, weights: Mapping[str, Array], precision: str) -> None:
        base = "distilbert.embeddings."
        table = tf.bfloat16 if precision == "int8" else tf.float32
        self.words = constant(weights[base + "word_embeddings.weight"], table)
        self.positions = constant(weights[base + "position_embeddings.weight"], tf.float32)
        self.norm = layer_norm(weights, base + "LayerNorm")
        self.layers = [Layer(config, weights, layer, precision) for layer in range(config.n_layers)]

    def __call__(self, ids: Tensor, positions: Tensor, rows: Rows, some: Tensor | None = None) -> Tensor:
        """(total, dim), float32. With `some`, indices of tokens, of those only."""
        x = self.norm(
            tf.cast(tf.gather(self.words, ids), tf.float32) + tf.gather(self.positions, positions)
        )  # (total, dim)
        for layer in self.layers[:-1]:
            x = layer(x, rows)
        return self.layers[-1](x, rows, some)


class Layer:
    """One post-norm layer: q, k and v in one product, attention in groups, feed-forward."""

    def __init__(self, config: DistilBertConfig, weights: Mapping[str, Array], layer: int, precision: str) -> None:
        base = f"distilbert.transformer.layer.{layer}."
        self.n_heads, self.head_dim, self.activation = config.heads_of(layer), config.head_dim, config.activation
        scale = {"q_lin": 1 / math.sqrt(self.head_dim)}  # of the scores
        weight, bias = (
            np.concatenate([scale.get(name, 1) * weights[f"{base}attention.{name}.{leaf}"].astype(np.float32)
                            for name in ("q_lin", "k_lin", "v_lin")])
            for leaf in ("weight", "bias")
        )  # fmt: skip
        self.qkv = new_linear(weight, bias, precision)
        self.out_lin = linear(weights, base + "attention.out_lin", precision)
        self.sa_layer_norm = layer_norm(weights, base + "sa_layer_norm")
        self.lin1 = linear(weights, base + "ffn.lin1", precision)
        self.lin2 = linear(weights, base + "ffn.lin2", precision)
        self.output_layer_norm = layer_norm(weights, base + "output_layer_norm")

    def __call__(self, x: Tensor, rows: Rows, some: Tensor | None = None) -> Tensor:
        """Hidden states to hidden states, (total, dim); with `some`, indices of tokens, to those only."""
        context = attend(self.qkv(x), rows, self.n_heads, self.head_dim)  # (total, n_heads * head_dim)
        if some is not None:
            x, context = tf.gather(x, some), tf.gather(context, some)
        x = self.sa_layer_norm(tf.cast(self.out_lin(context), tf.float32) + x)
        return self.output_layer_norm(tf.cast(self.lin2(self.lin1(x, self.activation)), tf.float32) + x)


def linear(weights: Mapping[str, Array], name: str, precision: str) -> Linear | QuantizedLinear:
    """The linear layer of that canonical name; one without a bias gets zeros."""
    weight = weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias")
    return new_linear(weight, np.zeros(len(weight)) if bias is None else bias, precision)


def layer_norm(weights: Mapping[str, Array], name: str) -> LayerNorm:
    """The LayerNorm of that canonical name."""
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"])


def attend(qkv: Tensor, rows: Rows, n_heads: int, head_dim: int) -> Tensor:
    """Attention within rows. qkv: (total, 3 * n_heads * head_dim), q scaled; result: (total, n_heads * head_dim)."""
    heads, lengths, starts = tf.reshape(qkv, (-1, head_dim)), rows.lengths, tf.cumsum(rows.lengths, exclusive=True)
    tokens = tf.range(tf.shape(qkv)[0])

    def one_length() -> Tensor:
        return attend_group(heads, tf.reshape(tokens, (tf.size(lengths), -1)), tokens, None, n_heads)

    def similar_lengths() -> Tensor:
        parts = [slice(rows.cuts[i], rows.cuts[i + 1]) for i in range(GROUPS)]
        groups = [padded_group(lengths[part], starts[part]) for part in parts]
        return tf.concat([attend_group(heads, *group, n_heads) for group in groups], 0)

    unpadded = (lengths[0] == lengths[-1]) & (width(lengths[0]) == lengths[0])
    return tf.cond(unpadded, one_length, similar_lengths)


def width(longest: Any) -> Any:
    """What a group with that longest row is padded to, so that a row's result does not depend on its group.

    oneDNN's softmax sums blocks of 64 in another order than what is left over; up to 32 the two are the same.
    """
    whole = -(-longest // BLOCK) * BLOCK
    return (tf if tf.is_tensor(longest) else np).where(longest > SHORT, whole, longest)


def padded_group(lengths: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as a group: `tokens`, `places`, `bias` of `attend_group`. lengths, and starts among all tokens: (rows,)."""
    column = tf.range(width(tf.reduce_max(tf.concat([lengths, [1]], 0))))
    real = column < lengths[:, None]  # (rows, length)
    places = tf.cast(tf.where(tf.reshape(real, (-1,)))[:, 0], tf.int32)
    return tf.where(real, starts[:, None] + column, 0), places, tf.where(real, 0.0, DROPPED)[:, None]


def attend_group(heads: Tensor, tokens: Tensor, places: Tensor, bias: Tensor | None, n_heads: int) -> Tensor:
    """Attention within the rows of a group, softmax in float32.

    heads: q, k and v of all tokens, (total * 3 * n_heads, head_dim); tokens: which lie where, (rows, length), any where
    it is padded; places: the others, counted through the rows, (real,); bias: for scores, (rows, 1, length).
    Result: (real, n_heads * head_dim).
    """
    head_dim = heads.shape[1]
    gathered = tf.gather(heads, tokens * (3 * n_heads) + tf.range(3 * n_heads)[:, None, None])
    q, k, v = tf.split(gathered, 3)  # (n_heads, rows, length, head_dim)
    scores = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32)  # (n_heads, rows, length, length)
    probabilities = tf.nn.softmax(scores if bias is None else scores + bias)
    context = tf.matmul(tf.cast(probabilities, v.dtype), v)  # (n_heads, rows, length, head_dim)
    places = places[:, None] + tf.range(n_heads) * tf.size(tokens)  # (real, n_heads)
    return tf.reshape(tf.gather(tf.reshape(context, (-1, head_dim)), places), (-1, n_heads * head_dim))


def cheapest_cuts(lengths: Array, groups: int) -> list[int]:
    """Where to cut falling lengths into groups: groups + 1 indices from 0 to their number.

    The cost of a group is its rows times the square of its width, with something for what grows as the length.
    """
    ends = np.flatnonzero(np.diff(lengths, append=0)) + 1  # of the runs of one length, (runs,)
    begins = np.concatenate(([0], ends[:-1]))
    longest = width(lengths[begins].astype(np.int64))
    rows = np.maximum(ends - begins[:, None], 0)  # from run i to run j, (runs, runs)
    costs = np.where(rows > 0, rows * (longest * (longest + LINEAR))[:, None], np.iinfo(np.int64).max // 2)
    best, choices = costs[0], []  # of the runs up to each
    for _ in range(groups - 1):
        totals = np.concatenate((costs[:1], best[:-1, None] + costs[1:]))  # by where the last group begins
        choices.append(totals.argmin(0))
        best = totals.min(0)
    cuts = [len(lengths)]
    run = len(ends)
    for choice in reversed(choices):
        run = int(choice[run - 1]) if run else 0
        cuts.append(int(begins[run]) if run else 0)
    return [0, *reversed(cuts)]
