"""The losses in TensorFlow: pure functions of logits and targets. Twins: pt/losses.py and flax/losses.py.

Computed in float32 or better. Targets may be NumPy arrays or tensors. Axes: batch, seq, dim, num_labels.
"""

# Keras types the results of its operations as optional: they are not.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from distilbert.checks import IGNORE, check_pairs, check_sequence_labels, check_spans, check_token_labels
from distilbert.config import DistilBertConfig
from distilbert.tf.attention import lowest
from distilbert.tf.pretrained import as_tensor, values

Tensor = Any  # a tf.Tensor, or Keras's symbolic one


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """Mean of -log softmax(logits)[label] over the labels other than -100; 0 when there are none.

    logits: (..., num_labels); labels: (...), integers.

    Raises:
        ValueError: labels of another shape or dtype, or out of range.
    """
    labels = as_tensor("labels", labels)
    check_token_labels(labels, logits, values)
    logits, labels = at_least_float32(logits), ops.cast(labels, "int64")
    counts = ops.not_equal(labels, IGNORE)
    targets = ops.where(counts, labels, ops.zeros_like(labels))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)  # (...)
    count = ops.cast(ops.maximum(ops.count_nonzero(counts), 1), logits.dtype)
    return ops.sum(ops.where(counts, losses, ops.zeros_like(losses))) / count


def sequence_classification_loss(config: DistilBertConfig, logits: Tensor, labels: Any) -> Tensor:
    """Squared error, cross entropy, or binary cross entropy, as `problem_type` says; else as the labels show.

    logits: (batch, num_labels). One label: regression, labels (batch,). Integer labels (batch,): single-label
    classification. Other labels (batch, num_labels): multi-label classification.

    Raises:
        ValueError: the labels do not fit.
    """
    labels = as_tensor("labels", labels)
    problem_type = check_sequence_labels(config, labels, logits)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    logits = at_least_float32(logits)
    labels = ops.reshape(ops.cast(labels, logits.dtype), ops.shape(logits))
    if problem_type == "regression":
        return ops.mean(ops.square(logits - labels))
    return ops.mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def question_answering_loss(
    start_logits: Tensor, end_logits: Tensor, start_positions: Any, end_positions: Any
) -> Tensor:
    """Mean of the cross entropies of start and end; a position outside the sequence does not count.

    logits: (batch, seq); positions: (batch,) or (batch, 1), integers.

    Raises:
        ValueError: positions of another shape or dtype.
    """
    start = as_tensor("start_positions", start_positions)
    end = as_tensor("end_positions", end_positions)
    check_spans(start, end, start_logits)
    start, end = (within(ops.cast(ops.reshape(x, (-1,)), "int64"), ops.shape(start_logits)[1]) for x in (start, end))
    return (cross_entropy(start_logits, start) + cross_entropy(end_logits, end)) / 2


def within(positions: Tensor, seq: Any) -> Tensor:
    """Positions, with -100 for those outside 0 to seq-1. positions: (batch,)."""
    seq = ops.cast(seq, positions.dtype)
    return ops.where((positions >= 0) & (positions < seq), positions, ops.full_like(positions, IGNORE))


def multiple_negatives_ranking_loss(
    anchors: Tensor, positives: Tensor, *, scale: float = 20.0, weights: Tensor | None = None
) -> Tensor:
    """Each anchor's positive against those of the others: cross entropy of the scaled cosine similarities.

    anchors, positives: (batch, dim). weights: (batch,), default 1 / batch each; a pair whose weight is 0 does not
    exist, for the others either. Source: Henderson et al. 2017, section 4.4; Reimers and Gurevych 2019.

    Raises:
        ValueError: the two differ in shape.
    """
    check_pairs(anchors, positives)
    scores = ops.matmul(unit(anchors), ops.transpose(unit(positives))) * scale  # (batch, batch)
    labels = ops.arange(ops.shape(scores)[0])
    if weights is None:
        return cross_entropy(scores, labels)
    scores = ops.where(ops.not_equal(weights, 0), scores, lowest(scores))
    return weighted_cross_entropy(scores, labels, weights)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * -log softmax(logits)[label]. A label whose weight is 0 may be anything.

    logits: (..., num_labels); labels: (...), integers; weights: (...).
    """
    logits = at_least_float32(logits)
    targets = ops.where(ops.not_equal(weights, 0), labels, ops.zeros_like(labels))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)  # (...)
    return ops.sum(ops.cast(weights, losses.dtype) * losses)


def weighted_squared_error(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * (x - y)^2. x and y: of one shape, to which the weights broadcast."""
    x = at_least_float32(x)
    return ops.sum(ops.cast(weights, x.dtype) * ops.square(x - ops.cast(y, x.dtype)))


def weighted_binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * -log of the probability, sigmoid(logits), that each label is as it is, all of one shape."""
    logits = at_least_float32(logits)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=ops.cast(labels, logits.dtype), logits=logits)
    return ops.sum(ops.cast(weights, logits.dtype) * losses)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, temperature: float) -> Tensor:
    """Temperature^2 * sum of weights * KL(softmax(teacher / temperature) || softmax(student / temperature)).

    logits: (..., num_labels); weights: (...). The teacher gets no gradient. Source: Hinton et al. 2015, section 2.
    """
    student = tf.nn.log_softmax(at_least_float32(student_logits) / temperature)
    teacher = tf.nn.log_softmax(at_least_float32(ops.stop_gradient(teacher_logits)) / temperature)
    teacher = ops.cast(teacher, student.dtype)
    share = ops.exp(teacher)  # (..., num_labels)
    divergence = ops.where(share > 0, share * (teacher - student), ops.zeros_like(share))  # nothing where both are -inf
    return temperature**2 * ops.sum(ops.cast(weights, student.dtype) * ops.sum(divergence, -1))


def cosine_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * (1 - cosine of the two); the cosine of a zero vector is 0. The teacher gets no gradient.

    student, teacher: (..., dim); weights: (...).
    """
    student = unit(student)
    cosine = ops.sum(student * ops.cast(unit(ops.stop_gradient(teacher)), student.dtype), -1)  # (...)
    return ops.sum(ops.cast(weights, cosine.dtype) * (1.0 - cosine))


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a zero row stays zero, and its gradient is zero. x: (..., dim)."""
    x = at_least_float32(x)
    squares = ops.sum(x * x, -1, keepdims=True)  # (..., 1)
    return ops.where(squares > 0, x, ops.zeros_like(x)) / ops.sqrt(ops.maximum(squares, 1e-24))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
