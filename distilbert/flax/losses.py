"""The losses in JAX: pure functions of logits and targets. Twins: pt/losses.py and tf/losses.py.

Computed in float32 or better. Targets may be NumPy's arrays or JAX's. Axes: batch, seq, dim, num_labels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from distilbert.checks import IGNORE, check_pairs, check_sequence_labels, check_spans, check_token_labels
from distilbert.config import DistilBertConfig
from distilbert.flax.pretrained import as_array, values


def cross_entropy(logits: Array, labels: Any) -> Array:
    """Mean of -log softmax(logits)[label] over the labels other than -100; 0 when there are none.

    logits: (..., num_labels); labels: (...), integers.

    Raises:
        ValueError: labels of another shape or dtype, or out of range.
    """
    labels = as_array("labels", labels)
    check_token_labels(labels, logits, values)
    labels = jnp.asarray(labels, jnp.int32)
    counts = labels != IGNORE
    targets = jnp.where(counts, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), targets)  # (...)
    return jnp.where(counts, losses, 0.0).sum() / jnp.maximum(counts.sum(), 1)


def sequence_classification_loss(config: DistilBertConfig, logits: Array, labels: Any) -> Array:
    """Squared error, cross entropy, or binary cross entropy, as `problem_type` says; else as the labels show.

    logits: (batch, num_labels). One label: regression, labels (batch,). Integer labels (batch,): single-label
    classification. Other labels (batch, num_labels): multi-label classification.

    Raises:
        ValueError: the labels do not fit.
    """
    labels = as_array("labels", labels)
    problem_type = check_sequence_labels(config, labels, logits)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    logits = at_least_float32(logits)
    labels = jnp.asarray(labels, logits.dtype).reshape(logits.shape)
    if problem_type == "regression":
        return jnp.mean((logits - labels) ** 2)
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def question_answering_loss(start_logits: Array, end_logits: Array, start_positions: Any, end_positions: Any) -> Array:
    """Mean of the cross entropies of start and end; a position outside the sequence does not count.

    logits: (batch, seq); positions: (batch,) or (batch, 1), integers.

    Raises:
        ValueError: positions of another shape or dtype.
    """
    start = as_array("start_positions", start_positions)
    end = as_array("end_positions", end_positions)
    check_spans(start, end, start_logits)
    start, end = (within(jnp.asarray(x.reshape(-1), jnp.int32), start_logits.shape[1]) for x in (start, end))
    return (cross_entropy(start_logits, start) + cross_entropy(end_logits, end)) / 2


def within(positions: Array, seq: int) -> Array:
    """Positions, with -100 for those outside 0 to seq-1. positions: (batch,)."""
    return jnp.where((positions >= 0) & (positions < seq), positions, IGNORE)


def multiple_negatives_ranking_loss(
    anchors: Array, positives: Array, *, scale: float = 20.0, weights: Array | None = None
) -> Array:
    """Each anchor's positive against those of the others: cross entropy of the scaled cosine similarities.

    anchors, positives: (batch, dim). weights: (batch,), with which each pair counts, 1 / batch by default; a pair of
    weight 0 does not exist, so that it is no negative of the others either.
    Source: Henderson et al. 2017, section 4.4; Reimers and Gurevych 2019.

    Raises:
        ValueError: the two differ in shape.
    """
    check_pairs(anchors, positives)
    scores = unit(anchors) @ unit(positives).T * scale  # (batch, batch)
    labels = jnp.arange(len(scores))
    if weights is None:
        return cross_entropy(scores, labels)
    scores = jnp.where(weights != 0, scores, jnp.finfo(scores.dtype).min)
    return weighted_cross_entropy(scores, labels, weights)


def weighted_cross_entropy(logits: Array, labels: Array, weights: Array) -> Array:
    """Sum of weights * -log softmax(logits)[label]. A label of weight 0 may be anything.

    logits: (..., classes); labels: (...), integers; weights: (...).
    """
    counts = weights != 0
    targets = jnp.where(counts, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), targets)  # (...)
    return (weights * losses).sum()


def weighted_squared_error(x: Array, y: Array, weights: Array) -> Array:
    """Sum of weights * (x - y)^2. x, y: of one shape; the weights are broadcast to it."""
    return (weights * (at_least_float32(x) - at_least_float32(y)) ** 2).sum()


def weighted_binary_cross_entropy(logits: Array, labels: Array, weights: Array) -> Array:
    """Sum of weights * binary cross entropy of the logits. All of one shape; labels from 0 to 1."""
    logits = at_least_float32(logits)
    return (weights * optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))).sum()


def distillation_loss(student_logits: Array, teacher_logits: Array, weights: Array, *, temperature: float) -> Array:
    """T^2 * sum of weights * KL(softmax(teacher / T) || softmax(student / T)). No gradient reaches the teacher.

    logits: (..., classes); weights: (...). Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    student = jax.nn.log_softmax(at_least_float32(student_logits) / temperature)
    teacher = jax.nn.log_softmax(at_least_float32(jax.lax.stop_gradient(teacher_logits)) / temperature)
    probabilities = jnp.exp(teacher)
    losses = jnp.where(probabilities > 0, probabilities * (teacher - student), 0.0).sum(-1)  # (...)
    return temperature**2 * (weights * losses).sum()


def cosine_loss(student: Array, teacher: Array, weights: Array) -> Array:
    """Sum of weights * (1 - cosine); a zero vector has the cosine 0. No gradient reaches the teacher.

    student, teacher: (..., dim); weights: (...).
    """
    cosines = (unit(student) * unit(jax.lax.stop_gradient(teacher))).sum(-1)  # (...)
    return (weights * (1.0 - cosines)).sum()


def unit(x: Array) -> Array:
    """Rows scaled to length 1; a zero row stays zero, and its gradient is zero. x: (..., dim)."""
    x = at_least_float32(x)
    squares = (x * x).sum(-1, keepdims=True)  # (..., 1)
    return jnp.where(squares > 0, x, 0.0) / jnp.sqrt(jnp.maximum(squares, 1e-24))


def at_least_float32(x: Array) -> Array:
    """Half precision as float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
