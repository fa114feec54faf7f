"""The specification of training: the gradients of `reference`, by its own backward pass in float64 NumPy, and AdamW.

A function here bears the name of its forward function. It takes the gradient of that function's result and returns that
of its argument x; what the weights get is added to `into`, by canonical name. It can be trusted because it is held to
two things that know nothing of it: central differences of `reference`, and gradients of the reference implementation.
Sources: Rumelhart et al. 1986 (back-propagation), Loshchilov and Hutter 2019 (AdamW). Axes as in `reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilbert import reference, weight_map
from distilbert.checks import IGNORE
from distilbert.config import LAYER_NORM_EPS, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.reference import Float64, Weights, sigmoid

Gradients = dict[str, Float64]


def gelu(x: Float64) -> Float64:
    """The normal distribution function, and x times its density."""
    return 0.5 * (1.0 + reference.erf(x / math.sqrt(2.0))) + x * np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)


def gelu_new(x: Float64) -> Float64:
    """The derivative of the tanh approximation."""
    c = math.sqrt(2.0 / math.pi)
    tanh = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * c * (1.0 + 3 * 0.044715 * x**2)


def quick_gelu(x: Float64) -> Float64:
    """The derivative of x times the sigmoid of 1.702 x."""
    s = sigmoid(1.702 * x)
    return s + 1.702 * x * s * (1.0 - s)


def silu(x: Float64) -> Float64:
    """The derivative of x times its sigmoid."""
    s = sigmoid(x)
    return s + x * s * (1.0 - s)


DERIVATIVES: dict[str, Callable[[Float64], Float64]] = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "quick_gelu": quick_gelu,
    "relu": lambda x: (x > 0).astype(np.float64),
    "silu": silu,
    "swish": silu,
    "tanh": lambda x: 1.0 - np.tanh(x) ** 2,
    "identity": np.ones_like,
}


def add(into: Gradients, name: str, gradient: Float64) -> None:
    """A tensor that is used several times gets the sum."""
    into[name] = into[name] + gradient if name in into else gradient


def linear(
    gradient: Float64, x: Float64, weights: Weights, name: str, into: Gradients, *, bias: bool = True
) -> Float64:
    """Of x W^T + b, or of x W^T."""
    rows = gradient.reshape(-1, gradient.shape[-1])
    add(into, f"{name}.weight", rows.T @ x.reshape(-1, x.shape[-1]))
    if bias:
        add(into, f"{name}.bias", rows.sum(axis=0))
    return gradient @ weights[f"{name}.weight"]


def layer_norm(gradient: Float64, x: Float64, weights: Weights, name: str, into: Gradients) -> Float64:
    """Of scale * normed + shift: mean and variance depend on x too."""
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = 1.0 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
    normed, rows = centred * inverse, tuple(range(x.ndim - 1))
    add(into, f"{name}.weight", (gradient * normed).sum(axis=rows))
    add(into, f"{name}.bias", gradient.sum(axis=rows))
    gradient = gradient * weights[f"{name}.weight"]
    along = (gradient * normed).mean(axis=-1, keepdims=True)
    return inverse * (gradient - gradient.mean(axis=-1, keepdims=True) - normed * along)


def attend(
    gradient: Float64, q: Float64, k: Float64, v: Float64, keep: NDArray[np.bool_], head_mask: Float64
) -> tuple[Float64, Float64, Float64]:
    """Of the context with respect to q, k and v. A dropped score was replaced, so it passes nothing on."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    scores = np.where(keep, q @ k.swapaxes(-1, -2) * scale, np.finfo(np.float64).min)
    probabilities = reference.softmax(scores)
    of_probabilities = gradient @ v.swapaxes(-1, -2) * head_mask  # (batch, n_heads, seq, seq)
    along = (of_probabilities * probabilities).sum(axis=-1, keepdims=True)
    of_scores = np.where(keep, probabilities * (of_probabilities - along), 0.0) * scale
    of_v = (probabilities * head_mask).swapaxes(-1, -2) @ gradient
    return of_scores @ k, of_scores.swapaxes(-1, -2) @ q, of_v


def self_attention(
    gradient: Float64,
    x: Float64,
    weights: Weights,
    name: str,
    config: DistilBertConfig,
    keep: NDArray[np.bool_],
    head_mask: Float64,
    into: Gradients,
) -> Float64:
    """Of multi-head self-attention."""
    parts = [f"{name}.{part}" for part in ("q_lin", "k_lin", "v_lin")]
    q, k, v = (reference.split_heads(reference.linear(x, weights, part), config.head_dim) for part in parts)
    context = reference.merge_heads(reference.attend(q, k, v, keep, head_mask)[0])
    of_context = linear(gradient, context, weights, f"{name}.out_lin", into)
    of_heads = attend(reference.split_heads(of_context, config.head_dim), q, k, v, keep, head_mask)
    merged = map(reference.merge_heads, of_heads)
    return sum((linear(g, x, weights, part, into) for g, part in zip(merged, parts, strict=True)), np.zeros_like(x))


def feed_forward(
    gradient: Float64, x: Float64, weights: Weights, name: str, config: DistilBertConfig, into: Gradients
) -> Float64:
    """Of lin2(activation(lin1(x)))."""
    inner = reference.linear(x, weights, f"{name}.lin1")
    activated = reference.ACTIVATIONS[config.activation](inner)
    of_activated = linear(gradient, activated, weights, f"{name}.lin2", into)
    return linear(of_activated * DERIVATIVES[config.activation](inner), x, weights, f"{name}.lin1", into)


def block(
    gradient: Float64,
    x: Float64,
    weights: Weights,
    name: str,
    config: DistilBertConfig,
    keep: NDArray[np.bool_],
    head_mask: Float64,
    into: Gradients,
) -> Float64:
    """Of one post-norm layer: each residual passes the gradient on beside its branch."""
    before = reference.self_attention(x, weights, f"{name}.attention", config, keep, head_mask)[0] + x
    middle = reference.layer_norm(before, weights, f"{name}.sa_layer_norm")
    after = reference.feed_forward(middle, weights, f"{name}.ffn", config) + middle
    gradient = layer_norm(gradient, after, weights, f"{name}.output_layer_norm", into)
    gradient = gradient + feed_forward(gradient, middle, weights, f"{name}.ffn", config, into)
    gradient = layer_norm(gradient, before, weights, f"{name}.sa_layer_norm", into)
    return gradient + self_attention(gradient, x, weights, f"{name}.attention", config, keep, head_mask, into)


def look_up(
    gradient: Float64,
    weights: Weights,
    config: DistilBertConfig,
    input_ids: ArrayLike | None,
    position_ids: ArrayLike | None,
    into: Gradients,
) -> None:
    """Of word + position: every use of a row adds to it, but the row of padding gets nothing from being looked up."""
    words = np.zeros(weights[weight_map.WORD_EMBEDDINGS].shape)
    if input_ids is not None:
        np.add.at(words, np.asarray(input_ids), gradient)
        if config.pad_token_id is not None:
            words[config.pad_token_id] = 0.0
    add(into, weight_map.WORD_EMBEDDINGS, words)
    positions = np.zeros(weights[weight_map.POSITION_EMBEDDINGS].shape)
    rows = np.arange(gradient.shape[1])[None, :] if position_ids is None else np.asarray(position_ids)
    np.add.at(positions, np.broadcast_to(rows, gradient.shape[:2]), gradient)
    add(into, weight_map.POSITION_EMBEDDINGS, positions)


def model(
    gradient: Float64,
    config: DistilBertConfig,
    weights: Weights,
    hidden_states: tuple[Float64, ...],
    into: Gradients,
    input_ids: ArrayLike | None = None,
    attention_mask: ArrayLike | None = None,
    *,
    position_ids: ArrayLike | None = None,
    inputs_embeds: ArrayLike | None = None,
    head_mask: ArrayLike | None = None,
) -> None:
    """Of the last hidden state, from the hidden states that `reference.model` returned for the same inputs."""
    batch, seq = gradient.shape[:2]
    keep = reference.keep_mask(np.ones((batch, seq)) if attention_mask is None else attention_mask, batch, seq)
    factors = reference.head_factors(config, head_mask)
    for i in reversed(range(config.n_layers)):
        name = f"distilbert.transformer.layer.{i}"
        gradient = block(gradient, hidden_states[i], weights, name, config, keep, factors[i], into)
    x = reference.look_up(weights, input_ids, position_ids, inputs_embeds)
    gradient = layer_norm(gradient, x, weights, "distilbert.embeddings.LayerNorm", into)
    look_up(gradient, weights, config, input_ids, position_ids, into)


def cross_entropy(logits: Float64, labels: ArrayLike) -> Float64:
    """With respect to the logits: (softmax - one-hot) / count where a label counts."""
    labels = np.asarray(labels)
    counts = labels != IGNORE
    wanted = np.arange(logits.shape[-1]) == np.where(counts, labels, 0)[..., None]
    return (reference.softmax(logits) - wanted) * counts[..., None] / max(int(counts.sum()), 1)


def squared_error(logits: Float64, labels: ArrayLike) -> Float64:
    """With respect to the logits."""
    return 2.0 * (logits - np.asarray(labels, np.float64).reshape(logits.shape)) / logits.size


def binary_cross_entropy(logits: Float64, labels: ArrayLike) -> Float64:
    """With respect to the logits."""
    return (sigmoid(logits) - np.asarray(labels, np.float64)) / logits.size


LOSSES: dict[str, Callable[[Float64, ArrayLike], Float64]] = {
    "regression": squared_error,
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
}


def unit(gradient: Float64, x: Float64) -> Float64:
    """Of the rows scaled to length 1: what points along a row is lost, and a zero row gets nothing."""
    length, direction = np.linalg.norm(x, axis=-1, keepdims=True), reference.unit(x)
    of_x = gradient - direction * (gradient * direction).sum(axis=-1, keepdims=True)
    return np.where(length > 0, of_x / np.where(length > 0, length, 1.0), 0.0)


def ranking_loss(embeddings: Float64, scale: float = 20.0) -> Float64:
    """With respect to embeddings whose first half are the anchors, and the second their positives."""
    anchors, positives = np.split(embeddings, 2)
    scores = reference.unit(anchors) @ reference.unit(positives).T * scale
    of_scores = cross_entropy(scores, np.arange(len(anchors))) * scale
    of_anchors = unit(of_scores @ reference.unit(positives), anchors)
    return np.concatenate([of_anchors, unit(of_scores.T @ reference.unit(anchors), positives)])


def pool(gradient: Float64, hidden: Float64, attention_mask: ArrayLike | None, pooling: PoolingConfig) -> Float64:
    """Of the pooled vectors with respect to the token vectors."""
    mask = np.ones(hidden.shape[:2]) if attention_mask is None else np.asarray(attention_mask, np.float64)
    count = mask.sum(axis=1, keepdims=True)  # (batch, 1)
    if pooling.mode in ("mean", "mean_sqrt_len"):
        gradient = gradient / np.maximum(count if pooling.mode == "mean" else np.sqrt(count), 1e-9)
        return gradient[:, None, :] * mask[:, :, None]
    if pooling.mode == "cls":
        chosen = np.zeros((hidden.shape[0], 1, hidden.shape[2]), int)
    else:
        kept = np.where(mask[:, :, None] != 0, hidden, np.finfo(np.float64).min)
        chosen, gradient = kept.argmax(axis=1)[:, None, :], gradient * (count != 0)
    of_hidden = np.zeros_like(hidden)
    np.put_along_axis(of_hidden, chosen, gradient[:, None, :], axis=1)
    return of_hidden


def project(gradient: Float64, x: Float64, weights: Weights, dense: DenseConfig, into: Gradients) -> Float64:
    """Of the dense layer behind a pooling."""
    inner = reference.linear(x, weights, "pooling.dense", bias=dense.bias)
    gradient = gradient * DERIVATIVES[dense.activation](inner)
    return linear(gradient, x, weights, "pooling.dense", into, bias=dense.bias)


def sentence_vectors(
    gradient: Float64,
    hidden: Float64,
    attention_mask: ArrayLike | None,
    pooling: PoolingConfig,
    weights: Weights,
    into: Gradients,
) -> Float64:
    """Of the sentence vectors with respect to the token vectors."""
    pooled = reference.pool(hidden, attention_mask, pooling)
    if pooling.normalize:
        gradient = unit(
            gradient, pooled if pooling.dense is None else reference.project(pooled, weights, pooling.dense)
        )
    if pooling.dense is not None:
        gradient = project(gradient, pooled, weights, pooling.dense, into)
    return pool(gradient, hidden, attention_mask, pooling)


def vocab_logits(
    gradient: Float64, hidden: Float64, weights: Weights, config: DistilBertConfig, into: Gradients
) -> Float64:
    """Of the masked LM's logits."""
    inner = reference.linear(hidden, weights, "vocab_transform")
    activated = reference.ACTIVATIONS[config.activation](inner)
    normed = reference.layer_norm(activated, weights, "vocab_layer_norm")
    gradient = linear(gradient, normed, weights, "vocab_projector", into)
    gradient = layer_norm(gradient, activated, weights, "vocab_layer_norm", into)
    return linear(gradient * DERIVATIVES[config.activation](inner), hidden, weights, "vocab_transform", into)


def first_token_logits(gradient: Float64, hidden: Float64, weights: Weights, into: Gradients) -> Float64:
    """Of the classifier's logits, which come from the first token."""
    inner = reference.linear(hidden[:, 0], weights, "pre_classifier")
    gradient = linear(gradient, np.maximum(inner, 0.0), weights, "classifier", into)
    of_hidden = np.zeros_like(hidden)
    of_hidden[:, 0] = linear(gradient * (inner > 0), hidden[:, 0], weights, "pre_classifier", into)
    return of_hidden


def objective(output: Any) -> Float64:
    """What is differentiated: the head's loss.

    The encoder has none, so the mean square of its last hidden state stands in; for sentence embeddings it is the
    ranking loss of the first half of the rows against the second.
    """
    if hasattr(output, "loss"):
        return output.loss
    if hasattr(output, "embeddings"):
        anchors, positives = np.split(output.embeddings, 2)
        return reference.multiple_negatives_ranking_loss(anchors, positives)
    return (output.last_hidden_state**2).mean()


def gradients(
    head: str,
    config: DistilBertConfig,
    weights: Weights,
    inputs: Mapping[str, Any],
    *,
    pooling: PoolingConfig | None = None,
) -> Gradients:
    """The gradient of `objective` with respect to every tensor that training changes, by canonical name.

    Args:
        head: a class of `weight_map.HEADS`.
        config: its configuration, dropout not acting.
        weights: by canonical name, a tied projector under both of its names.
        inputs: the call's arguments, targets included.
        pooling: of `DistilBertForSentenceEmbedding`.
    """
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    targets = ("labels", "start_positions", "end_positions")
    given = {name: value for name, value in inputs.items() if name not in targets}
    if head == "DistilBertForMultipleChoice":
        given = reference.flatten_choices(given)
    into: Gradients = {}
    hidden_states = reference.model(config, weights, **given).hidden_states
    gradient = _of_last_hidden(head, config, weights, hidden_states[-1], inputs, pooling or PoolingConfig(), into)
    model(gradient, config, weights, hidden_states, into, **given)
    for name in weight_map.tied(config, head):
        add(into, weight_map.WORD_EMBEDDINGS, into.pop(name))
    return {name: into[name] for name in weight_map.trained(config, head, pooling)}


def _of_last_hidden(
    head: str,
    config: DistilBertConfig,
    weights: Weights,
    hidden: Float64,
    inputs: Mapping[str, Any],
    pooling: PoolingConfig,
    into: Gradients,
) -> Float64:
    """The gradient of the objective with respect to the last hidden state."""
    labels: Any = inputs.get("labels")
    if head == "DistilBertForMaskedLM":
        of_logits = cross_entropy(reference.vocab_logits(hidden, weights, config), labels)
        return vocab_logits(of_logits, hidden, weights, config, into)
    if head == "DistilBertForSequenceClassification":
        logits = reference.first_token_logits(hidden, weights)
        of_logits = LOSSES[reference.problem_type(config, labels)](logits, labels)
        return first_token_logits(of_logits, hidden, weights, into)
    if head == "DistilBertForMultipleChoice":
        logits = reference.first_token_logits(hidden, weights)
        of_logits = cross_entropy(logits.reshape(len(labels), -1), labels).reshape(logits.shape)
        return first_token_logits(of_logits, hidden, weights, into)
    if head == "DistilBertForTokenClassification":
        of_logits = cross_entropy(reference.linear(hidden, weights, "classifier"), labels)
        return linear(of_logits, hidden, weights, "classifier", into)
    if head == "DistilBertForQuestionAnswering":
        logits = np.moveaxis(reference.linear(hidden, weights, "qa_outputs"), -1, 0)  # (2, batch, seq)
        labels = [reference.within(inputs[f"{end}_positions"], hidden.shape[1]) for end in ("start", "end")]
        of_logits = np.stack([cross_entropy(*pair) / 2 for pair in zip(logits, labels, strict=True)], axis=-1)
        return linear(of_logits, hidden, weights, "qa_outputs", into)
    if head == "DistilBertForSentenceEmbedding":
        mask = inputs.get("attention_mask")
        of_vectors = ranking_loss(reference.sentence_vectors(hidden, mask, pooling, weights))
        return sentence_vectors(of_vectors, hidden, mask, pooling, weights, into)
    return 2.0 * hidden / hidden.size


def moment(values: Sequence[Float64], beta: float) -> Float64:
    """The running mean after the steps whose values are given, latest first; it started at zero."""
    return (1.0 - beta) * sum((beta**age * value for age, value in enumerate(values)), np.zeros_like(values[0]))


def adamw(
    weight: Float64,
    gradient: Float64,
    *earlier: Float64,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Float64:
    """A tensor after a step of AdamW. earlier: its gradients in the steps before, latest first."""
    gradients = (gradient, *earlier)
    mean, square = moment(gradients, betas[0]), moment([g**2 for g in gradients], betas[1])
    mean, square = (x / (1.0 - beta ** len(gradients)) for x, beta in zip((mean, square), betas, strict=True))
    return weight - learning_rate * (mean / (np.sqrt(square) + eps) + weight_decay * weight)


def step(
    head: str,
    config: DistilBertConfig,
    weights: Weights,
    *of: Gradients,
    weight_decay: float,
    pooling: PoolingConfig | None = None,
    **options: Any,
) -> dict[str, Float64]:
    """Every trained tensor after one step against its gradients in `of`, latest first; only kernels of layers decay."""
    specs = weight_map.trained(config, head, pooling)
    decays = {name: weight_decay if spec.is_kernel else 0.0 for name, spec in specs.items()}
    return {
        name: adamw(weights[name].astype(np.float64), *(g[name] for g in of), weight_decay=decays[name], **options)
        for name in specs
    }
