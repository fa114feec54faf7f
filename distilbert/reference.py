"""The specification, executable: DistilBERT in float64 NumPy, written from the equations.

Sources: Vaswani et al. 2017 (attention, feed-forward, positions), Devlin et al. 2018 (post-norm encoder, erf GELU),
Sanh et al. 2019 (no token types, no pooler), Reimers and Gurevych 2019 (pooling). Every backend is compared with this
file, never with another backend. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim.

Weights come by canonical name and orientation (see `weight_map`), in any float dtype; all arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilbert.config import LAYER_NORM_EPS, DistilBertConfig, PoolingConfig
from distilbert.outputs import BaseModelOutput, SentenceEmbeddingOutput

Float64 = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]


def erf(x: Float64) -> Float64:
    """The error function, elementwise, to the last digit of the C library's."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def gelu(x: Float64) -> Float64:
    """X times the normal distribution function at x."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_new(x: Float64) -> Float64:
    """The tanh approximation of `gelu`."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: Float64) -> Float64:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def silu(x: Float64) -> Float64:
    """X times its sigmoid."""
    return x * sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": silu,
    "swish": silu,
    "tanh": np.tanh,
}


def linear(x: Float64, weights: Weights, name: str) -> Float64:
    """X W^T + b for the module `name`; the last axis of x changes."""
    return x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"].astype(np.float64)


def layer_norm(x: Float64, weights: Weights, name: str) -> Float64:
    """Zero mean and unit variance over the last axis, then scale and shift."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    scale, shift = weights[f"{name}.weight"].astype(np.float64), weights[f"{name}.bias"].astype(np.float64)
    return centred / np.sqrt(variance + LAYER_NORM_EPS) * scale + shift


def softmax(scores: Float64) -> Float64:
    """Softmax over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def keep_mask(attention_mask: ArrayLike, batch: int, seq: int) -> NDArray[np.bool_]:
    """Which keys each query sees: (batch, 1 or n_heads, 1 or seq, seq) of bool from any accepted mask shape."""
    mask = np.asarray(attention_mask) != 0
    if mask.ndim == 2:
        return mask.reshape(batch, 1, 1, seq)
    return mask.reshape(batch, 1, seq, seq) if mask.ndim == 3 else mask


def embed(
    weights: Weights,
    input_ids: ArrayLike | None,
    position_ids: ArrayLike | None,
    inputs_embeds: ArrayLike | None,
) -> Float64:
    """LayerNorm(word + position): (batch, seq, dim)."""
    words = weights["distilbert.embeddings.word_embeddings.weight"]
    word = words[np.asarray(input_ids)] if inputs_embeds is None else np.asarray(inputs_embeds)
    seq = word.shape[1]
    position_ids = np.arange(seq)[None, :] if position_ids is None else np.asarray(position_ids)
    position = weights["distilbert.embeddings.position_embeddings.weight"][position_ids]
    x = word.astype(np.float64) + position.astype(np.float64)
    return layer_norm(x, weights, "distilbert.embeddings.LayerNorm")


def attend(
    q: Float64, k: Float64, v: Float64, keep: NDArray[np.bool_], head_mask: Float64 | float
) -> tuple[Float64, Float64]:
    """Scaled dot-product attention per head: context (batch, n_heads, seq, head_dim), probabilities (.., seq, seq).

    Dropped scores are replaced by the finite minimum, so a query whose keys are all dropped attends uniformly.
    """
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (batch, n_heads, seq, seq)
    scores = np.where(keep, scores, np.finfo(np.float64).min)
    probabilities = softmax(scores) * head_mask
    return probabilities @ v, probabilities


def split_heads(x: Float64, head_dim: int) -> Float64:
    """(batch, seq, n_heads * head_dim) to (batch, n_heads, seq, head_dim)."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def merge_heads(x: Float64) -> Float64:
    """(batch, n_heads, seq, head_dim) to (batch, seq, n_heads * head_dim)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def self_attention(
    x: Float64,
    weights: Weights,
    name: str,
    config: DistilBertConfig,
    keep: NDArray[np.bool_],
    head_mask: Float64 | float,
) -> tuple[Float64, Float64]:
    """Multi-head self-attention: (batch, seq, dim), and the probabilities."""
    q, k, v = (
        split_heads(linear(x, weights, f"{name}.{part}"), config.head_dim) for part in ("q_lin", "k_lin", "v_lin")
    )
    context, probabilities = attend(q, k, v, keep, head_mask)
    return linear(merge_heads(context), weights, f"{name}.out_lin"), probabilities


def feed_forward(x: Float64, weights: Weights, name: str, config: DistilBertConfig) -> Float64:
    """lin2(activation(lin1(x)))."""
    return linear(ACTIVATIONS[config.activation](linear(x, weights, f"{name}.lin1")), weights, f"{name}.lin2")


def block(
    x: Float64,
    weights: Weights,
    name: str,
    config: DistilBertConfig,
    keep: NDArray[np.bool_],
    head_mask: Float64 | float,
) -> tuple[Float64, Float64]:
    """One post-norm layer: (batch, seq, dim), and the attention probabilities."""
    attended, probabilities = self_attention(x, weights, f"{name}.attention", config, keep, head_mask)
    x = layer_norm(attended + x, weights, f"{name}.sa_layer_norm")
    x = layer_norm(feed_forward(x, weights, f"{name}.ffn", config) + x, weights, f"{name}.output_layer_norm")
    return x, probabilities


def model(
    config: DistilBertConfig,
    weights: Weights,
    input_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
    *,
    position_ids: ArrayLike | None = None,
    inputs_embeds: ArrayLike | None = None,
    head_mask: ArrayLike | None = None,
) -> BaseModelOutput:
    """The encoder, with every hidden state and every attention map, as `DistilBertModel` returns them."""
    x = embed(weights, input_ids, position_ids, inputs_embeds)
    batch, seq = x.shape[:2]
    keep = keep_mask(np.ones((batch, seq)) if attention_mask is None else attention_mask, batch, seq)
    factors = np.ones((1, 1)) if head_mask is None else np.asarray(head_mask, np.float64)
    factors = np.broadcast_to(np.atleast_2d(factors), (config.n_layers, factors.shape[-1]))  # (n_layers, n_heads or 1)
    hidden_states, attentions = [x], list[Float64]()
    for i in range(config.n_layers):
        x, probabilities = block(
            x, weights, f"distilbert.transformer.layer.{i}", config, keep, factors[i][None, :, None, None]
        )
        hidden_states.append(x)
        attentions.append(probabilities)
    return BaseModelOutput(x, tuple(hidden_states), tuple(attentions))


def pool(hidden: Float64, attention_mask: ArrayLike | None, pooling: PoolingConfig) -> Float64:
    """One vector per row, (batch, dim), from the token vectors (batch, seq, dim) whose mask (batch, seq) is 1.

    A row without any kept token gives the zero vector, except in mode cls.
    """
    mask = np.ones(hidden.shape[:2]) if attention_mask is None else np.asarray(attention_mask, np.float64)
    count = mask.sum(axis=1, keepdims=True)  # (batch, 1)
    total = (hidden * mask[:, :, None]).sum(axis=1)
    if pooling.mode == "cls":
        pooled = hidden[:, 0]
    elif pooling.mode == "max":
        pooled = np.where(mask[:, :, None] != 0, hidden, np.finfo(np.float64).min).max(axis=1)
        pooled = np.where(count != 0, pooled, 0.0)
    else:
        pooled = total / np.maximum(count if pooling.mode == "mean" else np.sqrt(count), 1e-9)
    if pooling.normalize:
        pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    return pooled


def sentence_embedding(
    config: DistilBertConfig, weights: Weights, pooling: PoolingConfig, *args: Any, **inputs: Any
) -> SentenceEmbeddingOutput:
    """The encoder and the pooling, as `DistilBertForSentenceEmbedding` returns them; inputs as for `model`."""
    output = model(config, weights, *args, **inputs)
    mask = args[1] if len(args) > 1 else inputs.get("attention_mask")
    embeddings = pool(output.last_hidden_state, mask, pooling)
    return SentenceEmbeddingOutput(embeddings, output.hidden_states, output.attentions)
