"""The specification, executable: DistilBERT in float64 NumPy, written from the equations.

Sources: Vaswani et al. 2017 (attention, feed-forward, positions), Devlin et al. 2018 (post-norm encoder, erf GELU,
heads), Sanh et al. 2019 (no token types, no pooler), Reimers and Gurevych 2019 (pooling), Henderson et al. 2017
(ranking loss). Every backend is compared with this file, never with another backend; `reference_training` has its
gradients. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim, vocab_size, num_labels, num_choices.

Weights come by canonical name and orientation (see `weight_map`), in any float dtype; all arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilbert.checks import IGNORE
from distilbert.config import LAYER_NORM_EPS, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceOutput,
    QuestionAnsweringOutput,
    SentenceEmbeddingOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    with_loss,
)

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
    "identity": lambda x: x,
}


def linear(x: Float64, weights: Weights, name: str, *, bias: bool = True) -> Float64:
    """X W^T + b for the module `name`, or without b; the last axis of x changes."""
    product = x @ weights[f"{name}.weight"].astype(np.float64).T
    return product + weights[f"{name}.bias"].astype(np.float64) if bias else product


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


def look_up(
    weights: Weights,
    input_ids: ArrayLike | None,
    position_ids: ArrayLike | None,
    inputs_embeds: ArrayLike | None,
) -> Float64:
    """Word + position: (batch, seq, dim)."""
    words = weights["distilbert.embeddings.word_embeddings.weight"]
    word = words[np.asarray(input_ids)] if inputs_embeds is None else np.asarray(inputs_embeds)
    seq = word.shape[1]
    position_ids = np.arange(seq)[None, :] if position_ids is None else np.asarray(position_ids)
    position = weights["distilbert.embeddings.position_embeddings.weight"][position_ids]
    return word.astype(np.float64) + position.astype(np.float64)


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


def head_factors(config: DistilBertConfig, head_mask: ArrayLike | None) -> Float64:
    """What each layer's probabilities are multiplied by: (n_layers, 1, n_heads or 1, 1, 1)."""
    factors = np.ones((1, 1)) if head_mask is None else np.atleast_2d(np.asarray(head_mask, np.float64))
    return np.broadcast_to(factors, (config.n_layers, factors.shape[-1]))[:, None, :, None, None]


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
    x = look_up(weights, input_ids, position_ids, inputs_embeds)
    x = layer_norm(x, weights, "distilbert.embeddings.LayerNorm")
    batch, seq = x.shape[:2]
    keep = keep_mask(np.ones((batch, seq)) if attention_mask is None else attention_mask, batch, seq)
    factors, hidden_states, attentions = head_factors(config, head_mask), [x], list[Float64]()
    for i in range(config.n_layers):
        x, probabilities = block(x, weights, f"distilbert.transformer.layer.{i}", config, keep, factors[i])
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
    return pooled


def project(x: Float64, weights: Weights, dense: DenseConfig) -> Float64:
    """The dense layer behind a pooling: (batch, dim) to (batch, out_features)."""
    return ACTIVATIONS[dense.activation](linear(x, weights, "pooling.dense", bias=dense.bias))


def sentence_vectors(
    hidden: Float64, attention_mask: ArrayLike | None, pooling: PoolingConfig, weights: Weights
) -> Float64:
    """Token vectors pooled, then through the dense layer if there is one, then scaled to length 1 if asked for."""
    x = pool(hidden, attention_mask, pooling)
    x = x if pooling.dense is None else project(x, weights, pooling.dense)
    return unit(x) if pooling.normalize else x


def cross_entropy(logits: Float64, labels: ArrayLike) -> Any:
    """Mean of -log softmax(logits)[label] over the labels other than -100; 0 when there are none."""
    labels = np.asarray(labels)
    counts = labels != IGNORE
    exponents = logits - logits.max(axis=-1, keepdims=True)
    log_softmax = exponents - np.log(np.exp(exponents).sum(axis=-1, keepdims=True))  # (..., num_labels)
    picked = np.take_along_axis(log_softmax, np.where(counts, labels, 0)[..., None], axis=-1)[..., 0]
    return -picked[counts].sum() / max(int(counts.sum()), 1)


def squared_error(logits: Float64, labels: ArrayLike) -> Any:
    """Mean of the squared differences; labels of (batch, num_labels), or (batch,) for one label."""
    return ((logits - np.asarray(labels, np.float64).reshape(logits.shape)) ** 2).mean()


def binary_cross_entropy(logits: Float64, labels: ArrayLike) -> Any:
    """Mean over (batch, num_labels) of -label log s(logit) - (1 - label) log(1 - s(logit)), s the sigmoid."""
    labels = np.asarray(labels, np.float64)
    return (np.maximum(logits, 0.0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))).mean()


LOSSES: dict[str, Callable[[Float64, ArrayLike], Any]] = {
    "regression": squared_error,
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
}


def problem_type(config: DistilBertConfig, labels: ArrayLike) -> str:
    """What kind of sequence classification it is: as the config says, else as num_labels and the labels' dtype show."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    integers = np.issubdtype(np.asarray(labels).dtype, np.integer)
    return "single_label_classification" if integers else "multi_label_classification"


def within(positions: ArrayLike, seq: int) -> NDArray[np.int64]:
    """Positions of (batch,) or (batch, 1) as labels of (batch,): -100 for those outside 0 to seq-1."""
    positions = np.asarray(positions, np.int64).reshape(-1)
    return np.where((positions >= 0) & (positions < seq), positions, IGNORE)


def multiple_negatives_ranking_loss(anchors: Float64, positives: Float64, scale: float = 20.0) -> Any:
    """Cross entropy of the scaled cosines of all pairs, (batch, batch); the right ones stand on the diagonal."""
    return cross_entropy(unit(anchors) @ unit(positives).T * scale, np.arange(len(anchors)))


def unit(x: Float64) -> Float64:
    """Rows scaled to length 1; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def vocab_logits(hidden: Float64, weights: Weights, config: DistilBertConfig) -> Float64:
    """The masked LM's logits: (batch, seq, dim) to (batch, seq, vocab_size)."""
    x = ACTIVATIONS[config.activation](linear(hidden, weights, "vocab_transform"))
    return linear(layer_norm(x, weights, "vocab_layer_norm"), weights, "vocab_projector")


def first_token_logits(hidden: Float64, weights: Weights) -> Float64:
    """The classifier's logits from the first token: (batch, seq, dim) to (batch, num_labels)."""
    pooled = np.maximum(linear(hidden[:, 0], weights, "pre_classifier"), 0.0)  # (batch, dim)
    return linear(pooled, weights, "classifier")


def flatten_choices(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs per token of (batch, num_choices, ...) as (batch * num_choices, ...)."""

    def flat(name: str, value: Any) -> Any:
        return value if value is None or name == "head_mask" else np.asarray(value).reshape(-1, *np.shape(value)[2:])

    return {name: flat(name, value) for name, value in inputs.items()}


def masked_lm(config: DistilBertConfig, weights: Weights, *, labels: ArrayLike | None = None, **inputs: Any) -> Any:
    """As `DistilBertForMaskedLM` returns it; inputs as for `model`."""
    hidden, *states = model(config, weights, **inputs)
    logits = vocab_logits(hidden, weights, config)
    return with_loss(MaskedLMOutput(logits, *states), None if labels is None else cross_entropy(logits, labels))


def sequence_classification(
    config: DistilBertConfig, weights: Weights, *, labels: ArrayLike | None = None, **inputs: Any
) -> Any:
    """As `DistilBertForSequenceClassification` returns it; inputs as for `model`."""
    hidden, *states = model(config, weights, **inputs)
    logits = first_token_logits(hidden, weights)  # (batch, num_labels)
    loss = None if labels is None else LOSSES[problem_type(config, labels)](logits, labels)
    return with_loss(SequenceClassifierOutput(logits, *states), loss)


def question_answering(
    config: DistilBertConfig,
    weights: Weights,
    *,
    start_positions: ArrayLike | None = None,
    end_positions: ArrayLike | None = None,
    **inputs: Any,
) -> Any:
    """As `DistilBertForQuestionAnswering` returns it; inputs as for `model`."""
    hidden, *states = model(config, weights, **inputs)
    start, end = np.moveaxis(linear(hidden, weights, "qa_outputs"), -1, 0)  # (batch, seq) each
    output = QuestionAnsweringOutput(start, end, *states)
    if start_positions is None or end_positions is None:
        return output
    losses = (cross_entropy(x, within(p, x.shape[1])) for x, p in ((start, start_positions), (end, end_positions)))
    return with_loss(output, sum(losses) / 2)


def token_classification(
    config: DistilBertConfig, weights: Weights, *, labels: ArrayLike | None = None, **inputs: Any
) -> Any:
    """As `DistilBertForTokenClassification` returns it; inputs as for `model`."""
    hidden, *states = model(config, weights, **inputs)
    logits = linear(hidden, weights, "classifier")  # (batch, seq, num_labels)
    return with_loss(TokenClassifierOutput(logits, *states), None if labels is None else cross_entropy(logits, labels))


def multiple_choice(
    config: DistilBertConfig, weights: Weights, *, labels: ArrayLike | None = None, **inputs: Any
) -> Any:
    """As `DistilBertForMultipleChoice` returns it; inputs as for `model`, but of (batch, num_choices, ...)."""
    tokens: Any = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
    hidden, *states = model(config, weights, **flatten_choices(inputs))
    logits = first_token_logits(hidden, weights).reshape(-1, np.shape(tokens)[1])  # (batch, num_choices)
    return with_loss(MultipleChoiceOutput(logits, *states), None if labels is None else cross_entropy(logits, labels))


def sentence_embedding(
    config: DistilBertConfig, weights: Weights, *, pooling: PoolingConfig | None = None, **inputs: Any
) -> SentenceEmbeddingOutput:
    """As `DistilBertForSentenceEmbedding` returns it; inputs as for `model`."""
    hidden, *states = model(config, weights, **inputs)
    vectors = sentence_vectors(hidden, inputs.get("attention_mask"), pooling or PoolingConfig(), weights)
    return SentenceEmbeddingOutput(vectors, *states)


HEADS: dict[str, Callable[..., Any]] = {
    "DistilBertModel": model,
    "DistilBertForMaskedLM": masked_lm,
    "DistilBertForSequenceClassification": sequence_classification,
    "DistilBertForQuestionAnswering": question_answering,
    "DistilBertForTokenClassification": token_classification,
    "DistilBertForMultipleChoice": multiple_choice,
    "DistilBertForSentenceEmbedding": sentence_embedding,
}
