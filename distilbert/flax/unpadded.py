"""The encoder on rows into which sequences are packed. Twins: pt/unpadded.py and tf/unpadded.py.

XLA compiles a program for each shape. So the sequences of a batch share rows of a length, a segment each, and rows come
in a bounded set of shapes. Sources: Krell et al. 2021, arXiv 2107.02027 (packing); Vaswani et al. 2017 (attention).
Axes: rows, length (of a row, in tokens), tokens = rows * length, segments (the most in a row), sequences, dim,
features = n_heads * head_dim, hidden_dim. Activations stand features first: (dim, tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from distilbert.checkpoint.tensors import Array as HostArray
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig
from distilbert.flax.model import ACTIVATIONS
from distilbert.flax.products import Product, product, table
from distilbert.inference import Tokens

Integers = NDArray[np.int64]

WINDOW = 16  # programs' tokens that are packed together
ATTENTION = 1 / 2500  # what a token more in a row adds to the cost of each of its tokens [measured]
CALL = 10  # what a program costs beside its tokens, in tokens [measured]
LEAST, SHARE = 8, 4  # tokens of the shortest row, and of a row for each segment


@dataclass(frozen=True, slots=True)
class Rows:
    """Sequences packed into rows, for one run of a program.

    Attributes:
        inputs: ids, positions, and the number of each token's segment in its row, -1 where none is: (3, rows, length),
            int32.
        cells: where each token of the batch stands, counted through all rows, (total,).
        places: of these tokens in the padded batch, (total,).
        segments: where each sequence stands, counted through the segments of all rows, (sequences,).
        rows: which row of the batch each sequence is, (sequences,).
    """

    inputs: NDArray[np.int32]
    cells: Integers
    places: Integers
    segments: Integers
    rows: NDArray[np.int32]


def steps(quantum: int, last: int, most: int) -> tuple[int, ...]:
    """Multiples of `quantum` to the first that is not below `last`, at most `most` from a power of two to the next."""
    found = [quantum]
    while found[-1] < last:
        found.append(found[-1] + max(quantum, (1 << found[-1].bit_length()) // 2 // most))
    return tuple(found)


def segments_of(length: int) -> int:
    """The most segments in a row of that length: a head's results have a bounded set of shapes too."""
    return max(1, length // SHARE)


@dataclass(frozen=True)
class Shapes:
    """The shapes of programs: rows of certain lengths, certain numbers of them, `budget` tokens or a single row."""

    max_position_embeddings: int
    budget: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of a row, rising; the last holds the longest sequence."""
        return steps(LEAST, self.max_position_embeddings, 8)

    def counts(self, length: int) -> tuple[int, ...]:
        """How many rows of that length a program may have, rising."""
        most = max(1, self.budget // length)
        return tuple(count for count in steps(1, most, 4) if count <= most)

    def all(self) -> tuple[tuple[int, int], ...]:
        """Every (rows, length)."""
        return tuple((count, length) for length in self.lengths for count in self.counts(length))

    def pack(self, tokens: Tokens) -> Iterator[Rows]:
        """The batch in rows of the length that costs least, in as many runs as it takes."""
        for window in tokens.chunks(WINDOW * self.budget):
            _, length, places = min(
                (self._fit(window, length) for length in self._candidates(window)), key=itemgetter(0)
            )
            start, row = 0, places[:, 0]
            for count in self._runs(int(row.max()) + 1, length):
                chosen = (row >= start) & (row < start + count)
                yield packed(window, places - [start, 0, 0], chosen, (count, length))
                start += count

    def _candidates(self, tokens: Tokens) -> list[int]:
        """Lengths worth a try."""
        longest = int(tokens.lengths[0])
        fitting = [length for length in self.lengths if length >= longest]
        return fitting[:1] if len(tokens.lengths) == 1 else [n for n in fitting if n <= max(64, 4 * longest)]

    def _fit(self, tokens: Tokens, length: int) -> tuple[float, int, Integers]:
        """Cost, length, and the place of each sequence: its row, where it starts there, and its number in the row."""
        places = first_fit(tokens.lengths.tolist(), length, segments_of(length))
        runs = self._runs(int(places[:, 0].max()) + 1, length)
        return sum(runs) * length * (1 + length * ATTENTION) + len(runs) * CALL, length, places

    def _runs(self, rows: int, length: int) -> list[int]:
        """The numbers of rows of the programs that hold so many."""
        counts = self.counts(length)
        full, rest = divmod(rows, counts[-1])
        return [counts[-1]] * full + [next(count for count in counts if count >= rest)] * (rest > 0)


def first_fit(sizes: list[int], length: int, most: int) -> Integers:
    """For each sequence the first row with room for it: (sequences, 3) of row, start and number in the row."""
    room: list[int] = []
    members: list[int] = []
    places: list[tuple[int, int, int]] = []
    for size in sizes:
        row = next((i for i, left in enumerate(room) if left >= size and members[i] < most), len(room))
        if row == len(room):
            room.append(length)
            members.append(0)
        places.append((row, length - room[row], members[row]))
        room[row] -= size
        members[row] += 1
    return np.array(places, np.int64)


def packed(tokens: Tokens, places: Integers, chosen: NDArray[np.bool_], shape: tuple[int, int]) -> Rows:
    """The chosen sequences in rows of a shape (rows, length), at their places (sequences, 3)."""
    of_tokens = np.repeat(chosen, tokens.lengths)
    (row, start, number), lengths = places[chosen].T, tokens.lengths[chosen]
    begins = np.cumsum(lengths) - lengths
    cells = np.repeat(row * shape[1] + start - begins, lengths) + np.arange(lengths.sum())
    inputs = np.zeros((3, shape[0] * shape[1]), np.int32)
    inputs[2] = -1
    inputs[:, cells] = tokens.ids[of_tokens], tokens.positions[of_tokens], np.repeat(number, lengths)
    segments = row * segments_of(shape[1]) + number
    return Rows(inputs.reshape(3, *shape), cells, tokens.places[of_tokens], segments, tokens.rows[chosen])


class Norm(NamedTuple):
    """LayerNorm's weights, (dim,) each."""

    weight: Any
    bias: Any

    def __call__(self, x: Array) -> Array:
        """With two-pass statistics. x: (dim, tokens), float32."""
        x = x - x.mean(0)
        return x * jax.lax.rsqrt((x * x).mean(0) + LAYER_NORM_EPS) * self.weight[:, None] + self.bias[:, None]


class Layer(NamedTuple):
    """The weights of one block. qkv holds three layers, the queries scaled."""

    qkv: Product
    out_lin: Product
    sa_layer_norm: Norm
    lin1: Product
    lin2: Product
    output_layer_norm: Norm


class Encoder(NamedTuple):
    """The weights of the encoder."""

    word_embeddings: Any
    position_embeddings: Any
    LayerNorm: Norm
    layers: tuple[Layer, ...]


def encoder(config: DistilBertConfig, weights: Mapping[str, HostArray], precision: str) -> Encoder:
    """The encoder's weights, from a model's by canonical name."""
    name = "distilbert.embeddings."
    words, places = (table(weights[f"{name}{kind}_embeddings.weight"], precision) for kind in ("word", "position"))
    layers = (f"distilbert.transformer.layer.{i}." for i in range(config.n_layers))
    blocks = tuple(layer(weights, prefix, config.head_dim, precision) for prefix in layers)
    return Encoder(words, places, norm(weights, f"{name}LayerNorm"), blocks)


def layer(weights: Mapping[str, HostArray], prefix: str, head_dim: int, precision: str) -> Layer:
    """One block's weights."""
    factors = {"q": head_dim**-0.5, "k": 1.0, "v": 1.0}
    kernel, bias = (
        np.concatenate(
            [weights[f"{prefix}attention.{x}_lin.{leaf}"].astype(np.float32) * f for x, f in factors.items()]
        )
        for leaf in ("weight", "bias")
    )
    return Layer(
        product(kernel, bias, precision),
        dense(weights, f"{prefix}attention.out_lin", precision),
        norm(weights, f"{prefix}sa_layer_norm"),
        dense(weights, f"{prefix}ffn.lin1", precision),
        dense(weights, f"{prefix}ffn.lin2", precision),
        norm(weights, f"{prefix}output_layer_norm"),
    )


def dense(weights: Mapping[str, HostArray], name: str, precision: str) -> Product:
    """A dense layer by its canonical name."""
    return product(weights[f"{name}.weight"], weights.get(f"{name}.bias"), precision)


def norm(weights: Mapping[str, HostArray], name: str) -> Norm:
    """A LayerNorm by its canonical name."""
    return Norm(weights[f"{name}.weight"].astype(np.float32), weights[f"{name}.bias"].astype(np.float32))


@dataclass(frozen=True)
class Arithmetic:
    """How a program computes: the activation's name, the kernel of attention, and `units`, see `Product`.

    `attention` makes of keep, (rows, 1, length, length), what makes of queries, keys and values the context:
    (3 * features, tokens) to (features, tokens).
    """

    activation: str
    attention: Callable[[Array], Callable[[Array], Array]]
    units: bool

    def encode(self, weights: Encoder, inputs: Array, *, firsts: bool) -> Array:
        """Hidden states of packed rows. inputs: (3, rows, length), see `Rows`; result: (dim, tokens).

        `firsts`: those of the first token of each segment only, (dim, rows * segments).
        """
        ids, positions, segments = inputs
        words, places = weights.word_embeddings[ids.ravel()], weights.position_embeddings[positions.ravel()]
        x = weights.LayerNorm((words.astype(jnp.float32) + places.astype(jnp.float32)).T)  # (dim, tokens)
        attend = self.attention(segments[:, None, :, None] == segments[:, None, None, :])
        *blocks, last = weights.layers
        for block in blocks:
            x = self._block(block, x, attend(block.qkv(x, units=self.units)))
        context = attend(last.qkv(x, units=self.units))  # (features, tokens)
        if firsts:
            cells = first_cells(segments)
            x, context = x[:, cells], context[:, cells]
        return self._block(last, x, context)

    def _block(self, weights: Layer, x: Array, context: Array) -> Array:
        """What follows the attention. x: (dim, tokens); context: (features, tokens)."""
        x = weights.sa_layer_norm(weights.out_lin(context, units=self.units) + x)
        inner = activate(self.activation, weights.lin1(x, units=self.units))  # (hidden_dim, tokens)
        return weights.output_layer_norm(weights.lin2(inner, units=self.units) + x)


def first_cells(segments: Array) -> Array:
    """The cell of each segment's first token, (rows * segments,); the row's first where there is no such segment."""
    rows, length = segments.shape
    column = jnp.argmax(members(segments), -1)  # (rows, segments)
    return (column + length * jnp.arange(rows, dtype=column.dtype)[:, None]).ravel()


def segment_cells(segments: Array) -> Array:
    """Each token's segment, counted through the segments of all rows, (tokens,); beyond the last where it has none."""
    rows, length = segments.shape
    cells = segments + segments_of(length) * jnp.arange(rows, dtype=segments.dtype)[:, None]
    return jnp.where(segments < 0, rows * segments_of(length), cells).ravel()


def members(segments: Array) -> Array:
    """Which tokens of its row each segment has. segments: (rows, length); result: (rows, segments, length)."""
    return segments[:, None] == jnp.arange(segments_of(segments.shape[1]), dtype=segments.dtype)[:, None]


def activate(name: str, x: Array) -> Array:
    """The activation in float32. The error function is cheaper here than the complement that `model.gelu` takes."""
    if name != "gelu":
        return ACTIVATIONS[name](x)
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(0.5**0.5)))


def plain_attention(keep: Array, *, head_dim: int) -> Callable[[Array], Array]:
    """The kernel for CPUs. A dropped score is replaced by the finite minimum, the lesser of it and its bound."""
    largest = np.finfo(np.float32).max
    bound = jax.lax.optimization_barrier(jnp.where(keep, largest, -largest))  # computed once, not in each layer

    def attend(qkv: Array) -> Array:
        q, k, v = heads_of(qkv, keep, head_dim)
        q, k, v = q.transpose(2, 0, 1, 3), k.transpose(2, 0, 3, 1), v.transpose(2, 0, 1, 3)
        scores = jnp.minimum(k @ q, bound)  # (rows, n_heads, length of keys, length of queries)
        scores = jnp.exp(scores - scores.max(-2, keepdims=True))
        context = (v @ scores) / scores.sum(-2, keepdims=True)  # (rows, n_heads, head_dim, length)
        return context.transpose(1, 2, 0, 3).reshape(-1, qkv.shape[1])

    return attend


def jax_attention(keep: Array, *, head_dim: int, implementation: Any, dtype: Any) -> Callable[[Array], Array]:
    """JAX's own kernel, for accelerators: "cudnn" on GPUs in half precision; None is what XLA makes of it."""

    def attend(qkv: Array) -> Array:
        q, k, v = (x.transpose(2, 3, 0, 1).astype(dtype) for x in heads_of(qkv, keep, head_dim))
        mask = jnp.broadcast_to(keep, (len(q), q.shape[2], *keep.shape[2:]))  # cuDNN's does not broadcast
        context = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, implementation=implementation)
        return context.transpose(2, 3, 0, 1).reshape(-1, qkv.shape[1]).astype(jnp.float32)

    return attend


def heads_of(qkv: Array, keep: Array, head_dim: int) -> list[Array]:
    """Queries, keys and values, (n_heads, head_dim, rows, length) each, from (3 * features, tokens)."""
    rows, _, length, _ = keep.shape
    return [x.reshape(-1, head_dim, rows, length) for x in jnp.split(qkv, 3)]
