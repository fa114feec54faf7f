"""The losses in TensorFlow: pure functions of logits and targets. Twins: pt/losses.py and flax/losses.py.

Computed in float32 or better. Targets may be NumPy arrays or tensors. Axes: batch, seq, dim, num_labels.
"""

# Keras types the results of its operations as optional: they are not.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOperatorIssue=false
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from distilbert.checks import IGNORE, check_pairs, check_sequence_labels, check_spans, check_token_labels
from distilbert.config import DistilBertConfig
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


def multiple_negatives_ranking_loss(anchors: Tensor, positives: Tensor, *, scale: float = 20.0) -> Tensor:
    """Each anchor's positive against those of the others: cross entropy of the scaled cosine similarities.

    anchors, positives: (batch, dim). Source: Henderson et al. 2017, section 4.4; Reimers and Gurevych 2019.

    Raises:
        ValueError: the two differ in shape.
    """
    check_pairs(anchors, positives)
    scores = ops.matmul(unit(anchors), ops.transpose(unit(positives))) * scale  # (batch, batch)
    return cross_entropy(scores, ops.arange(ops.shape(scores)[0]))


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a zero row stays zero, and its gradient is zero. x: (batch, dim)."""
    x = at_least_float32(x)
    squares = ops.sum(x * x, -1, keepdims=True)  # (batch, 1)
    return ops.where(squares > 0, x, ops.zeros_like(x)) / ops.sqrt(ops.maximum(squares, 1e-24))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
