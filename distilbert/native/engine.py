"""A model with any head on the compiled library: from tokens to the head's results, in NumPy arrays.

Sources: as for encoder.c, which computes the encoder and all products. What little is between them is here. Axes: total
(tokens), rows, dim, width (of a result), vocab_size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert.config import LAYER_NORM_EPS, DistilBertConfig, PoolingConfig
from distilbert.inference import (
    ANSWERS,
    EMBEDDING,
    FIRST_TOKEN_HEADS,
    MASKED_LM,
    MODEL,
    Tokens,
    check_finite,
    reads_first_token,
)
from distilbert.native.library import KINDS, Handle, check, lacks, library
from distilbert.reference import ACTIVATIONS as EXACT_ACTIVATIONS

Floats = NDArray[np.float32]
Weights = Mapping[str, NDArray[Any]]

ACTIVATIONS = {"identity": 0, "gelu": 1, "relu": 2}
BUDGET = 1024  # tokens of one pass: what is between products then stays in the processor's cache
ALIGNMENT = 64  # bytes
LONGEST_SUM = (2**31 - 1) // (255 * 127)  # products of bytes that 32 bits hold the sum of
TINY = 1e-12  # what a length of 0 is taken for, as in the models
LAYERS = (
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1",
    "ffn.lin2", "output_layer_norm",
)  # fmt: skip


def lacks_for(config: DistilBertConfig, precision: str) -> str:
    """Why a model of that config cannot be computed here in that precision; empty if it can."""
    if config.activation not in ("gelu", "relu"):
        return f"it has no activation {config.activation!r}"
    if precision == "bfloat16" and (config.head_dim % 2 or config.hidden_dim % 2):
        return (
            f"products take pairs, and heads have {config.head_dim} features, or the layers between {config.hidden_dim}"
        )
    if precision == "int8" and max(config.hidden_dim, config.dim) > LONGEST_SUM:
        return f"sums of more than {LONGEST_SUM} products of bytes overflow"
    return lacks(precision)


class Engine:
    """A model's weights, copied into the library's form. Several threads may call it: they wait for each other.

    Args:
        config: of the model, for which `lacks_for` is empty.
        head: name of its class.
        pooling: of a sentence embedding.
        weights: by canonical name in canonical orientation, of any dtype.
        precision: of the products of the encoder, and of those over the vocabulary. Other heads are float32.
        threads: that pack the weights.

    Raises:
        ValueError: int8, and a weight that is not finite. MemoryError: there is none.
    """

    def __init__(
        self,
        config: DistilBertConfig,
        head: str,
        pooling: PoolingConfig | None,
        weights: Weights,
        precision: str,
        threads: int,
    ) -> None:
        check_finite(weights.values(), precision)
        self.config, self.pooling = config, pooling
        self.budget = BUDGET
        self._encoder = new_encoder(config, weights, precision, threads)
        self._first_only = reads_first_token(head, pooling)
        self.per_row = self._first_only or head == EMBEDDING
        self._head = head_of(head, config, pooling, weights, precision, threads)
        self.width = self._head.width

    def __call__(self, tokens: Tokens, threads: int) -> Floats:
        """The head's result for each token, (total, width), or for each row, (rows, width), in their order."""
        parts = [self._head(self._encode(part, threads), part, threads) for part in tokens.chunks(self.budget)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.width), np.float32), *parts])

    def _encode(self, tokens: Tokens, threads: int) -> Floats:
        """Hidden states (total, dim), or (rows, dim) of the first tokens."""
        x = aligned_empty((len(tokens.ids), self.config.dim))
        rows = len(tokens.lengths)
        arrays = [np.ascontiguousarray(array, np.int32) for array in (tokens.ids, tokens.positions, tokens.lengths)]
        places = [array.ctypes.data for array in arrays]
        encode = functions().distilbert_encode
        check(encode(self._encoder.address, *places, rows, self._first_only, threads, x.ctypes.data))
        return x[:rows] if self._first_only else x


def head_of(
    head: str, config: DistilBertConfig, pooling: PoolingConfig | None, weights: Weights, precision: str, threads: int
) -> Head:
    """What follows the encoder in a model of the class `head`."""

    def linear(name: str, activation: str = "identity", precision: str = "float32") -> Linear:
        return Linear(weights[f"{name}.weight"], weights.get(f"{name}.bias"), activation, precision, threads)

    if head == MASKED_LM:
        norm = [float32(weights[f"vocab_layer_norm.{leaf}"]) for leaf in ("weight", "bias")]
        transform = linear("vocab_transform", config.activation, precision)
        return VocabLogits(transform, norm, linear("vocab_projector", precision=precision))
    if head in FIRST_TOKEN_HEADS:
        return Logits(linear("pre_classifier", "relu"), linear("classifier"))
    if pooling is not None:
        return Pooling(pooling, config.dim, linear("pooling.dense") if pooling.dense else None)
    if head == MODEL:
        return Head(config.dim)
    return Logits(linear("qa_outputs" if head == ANSWERS else "classifier"))


def new_encoder(config: DistilBertConfig, weights: Weights, precision: str, threads: int) -> Handle:
    """The encoder's weights in the library."""
    lib, kind, activation = functions(), KINDS[precision], ACTIVATIONS[config.activation]
    sizes = config.n_layers, config.dim, config.hidden_dim, config.head_dim
    encoder = Handle(lib.distilbert_new(kind, *sizes, activation, LAYER_NORM_EPS), lib.distilbert_free)

    def given(name: str) -> Floats:
        return float32(weights[f"distilbert.{name}"])

    words, positions = given("embeddings.word_embeddings.weight"), given("embeddings.position_embeddings.weight")
    norm = [given(f"embeddings.LayerNorm.{leaf}") for leaf in ("weight", "bias")]
    tables = words.ctypes.data, len(words), positions.ctypes.data, len(positions)
    places = [array.ctypes.data for array in norm]
    check(lib.distilbert_set_embeddings(encoder.address, *tables, *places, threads))
    for layer in range(config.n_layers):
        parts = [given(f"transformer.layer.{layer}.{name}.{leaf}") for name in LAYERS for leaf in ("weight", "bias")]
        addresses = (ctypes.c_void_p * len(parts))(*(part.ctypes.data for part in parts))
        check(lib.distilbert_set_layer(encoder.address, layer, config.heads_of(layer), addresses, threads))
    return encoder


class Linear:
    """activation(x weight^T + bias), by the library. weight: (out_features, in_features); bias: (out_features,)."""

    def __init__(
        self, weight: NDArray[Any], bias: NDArray[Any] | None, activation: str, precision: str, threads: int
    ) -> None:
        weight = float32(weight)
        bias = np.zeros(len(weight), np.float32) if bias is None else float32(bias)
        lib, sizes = functions(), weight.shape[::-1]
        address = lib.distilbert_new_linear(
            KINDS[precision], *sizes, ACTIVATIONS[activation], weight.ctypes.data, bias.ctypes.data, threads
        )
        self.width, self.inner = weight.shape
        self._handle = Handle(address, lib.distilbert_free_linear)

    def __call__(self, x: Floats, threads: int) -> Floats:
        """x: (count, in_features); result: (count, out_features)."""
        if x.ndim != 2 or x.shape[1] != self.inner:
            raise ValueError(f"x must have {self.inner} columns, got the shape {x.shape}.")
        x, result = float32(x), aligned_empty((len(x), self.width))
        apply = functions().distilbert_linear
        check(apply(self._handle.address, x.ctypes.data, len(x), threads, result.ctypes.data))
        return result


class Head:
    """What follows the encoder, from hidden states (total or rows, dim) to results (total or rows, width)."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, x: Floats, tokens: Tokens, threads: int) -> Floats:
        """The hidden states themselves, for the encoder without a head."""
        del tokens, threads
        return x


class Logits(Head):
    """One layer after the other."""

    def __init__(self, *layers: Linear) -> None:
        super().__init__(layers[-1].width)
        self.layers = layers

    def __call__(self, x: Floats, tokens: Tokens, threads: int) -> Floats:
        """The logits of each token, or of each row from its first token."""
        del tokens
        for layer in self.layers:
            x = layer(x, threads)
        return x


class VocabLogits(Head):
    """Logits over the vocabulary."""

    def __init__(self, transform: Linear, norm: list[Floats], projector: Linear) -> None:
        super().__init__(projector.width)
        self.transform, self.norm, self.projector = transform, norm, projector

    def __call__(self, x: Floats, tokens: Tokens, threads: int) -> Floats:
        """The logits of each token."""
        del tokens
        return self.projector(normalized(self.transform(x, threads), *self.norm), threads)


class Pooling(Head):
    """One vector of each row, from its tokens' hidden states, or from that of its first token. See `heads.Pooling`."""

    def __init__(self, config: PoolingConfig, dim: int, dense: Linear | None) -> None:
        super().__init__(config.width(dim))
        self.config, self.dense = config, dense

    def __call__(self, x: Floats, tokens: Tokens, threads: int) -> Floats:
        """The vector of each row."""
        if self.config.mode != "cls":
            x = np.stack([self._pool(part) for part in np.split(x, tokens.starts[1:-1])])
        if self.config.dense is not None and self.dense is not None:
            x = float32(EXACT_ACTIVATIONS[self.config.dense.activation](self.dense(x, threads).astype(np.float64)))
        return unit(x) if self.config.normalize else x

    def _pool(self, x: Floats) -> Floats:
        """One row, (length, dim), to (dim,)."""
        if self.config.mode == "max":
            return x.max(0)
        return x.sum(0) / np.float32(len(x) if self.config.mode == "mean" else len(x) ** 0.5)


def normalized(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """LayerNorm over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(LAYER_NORM_EPS)) * weight + bias


def unit(x: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    return x / np.sqrt(np.maximum((x * x).sum(-1, keepdims=True), np.float32(TINY**2)))


def functions() -> ctypes.CDLL:
    """The library, where it is known to be there.

    Raises:
        RuntimeError: it is not.
    """
    found = library()
    if found is None:
        raise RuntimeError("this package's own kernels are not there.")
    return found


def float32(x: NDArray[Any]) -> Floats:
    """The numbers one after the other, as the library takes them; the array itself if it is so already."""
    return np.ascontiguousarray(x, np.float32)


def aligned_empty(shape: tuple[int, int]) -> Floats:
    """Memory at a cache line's start, where JAX takes it over without a copy."""
    size = 4 * shape[0] * shape[1]
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def aligned_zeros(shape: tuple[int, int]) -> Floats:
    """As `aligned_empty`, filled with zeros."""
    result = aligned_empty(shape)
    result[:] = 0
    return result
