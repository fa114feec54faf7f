"""The losses in PyTorch: pure functions of logits and targets. Twins: tf/losses.py and flax/losses.py.

Computed in float32 or better. Targets may be NumPy arrays or tensors. Axes: batch, seq, dim, num_labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the framework's own name

from distilbert.checks import IGNORE, check_pairs, check_sequence_labels, check_spans, check_token_labels
from distilbert.config import DistilBertConfig
from distilbert.pt.pretrained import as_tensor, values


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """Mean of -log softmax(logits)[label] over the labels other than -100; 0 when there are none.

    logits: (..., num_labels); labels: (...), integers.

    Raises:
        ValueError: labels of another shape or dtype, or out of range.
    """
    labels = as_tensor("labels", labels, logits.device)
    check_token_labels(labels, logits, values)
    logits, labels = at_least_float32(logits).reshape(-1, logits.shape[-1]), labels.flatten().long()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def sequence_classification_loss(config: DistilBertConfig, logits: Tensor, labels: Any) -> Tensor:
    """Squared error, cross entropy, or binary cross entropy, as `problem_type` says; else as the labels show.

    logits: (batch, num_labels). One label: regression, labels (batch,). Integer labels (batch,): single-label
    classification. Other labels (batch, num_labels): multi-label classification.

    Raises:
        ValueError: the labels do not fit.
    """
    labels = as_tensor("labels", labels, logits.device)
    problem_type = check_sequence_labels(config, labels, logits)
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    logits = at_least_float32(logits)
    labels = labels.to(logits.dtype).reshape(logits.shape)
    if problem_type == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)


def question_answering_loss(
    start_logits: Tensor, end_logits: Tensor, start_positions: Any, end_positions: Any
) -> Tensor:
    """Mean of the cross entropies of start and end; a position outside the sequence does not count.

    logits: (batch, seq); positions: (batch,) or (batch, 1), integers.

    Raises:
        ValueError: positions of another shape or dtype.
    """
    start = as_tensor("start_positions", start_positions, start_logits.device)
    end = as_tensor("end_positions", end_positions, start_logits.device)
    check_spans(start, end, start_logits)
    start, end = (within(x.reshape(-1).long(), start_logits.shape[1]) for x in (start, end))
    return (cross_entropy(start_logits, start) + cross_entropy(end_logits, end)) / 2


def within(positions: Tensor, seq: int) -> Tensor:
    """Positions, with -100 for those outside 0 to seq-1. positions: (batch,)."""
    return positions.where((positions >= 0) & (positions < seq), IGNORE)


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
    with torch.autocast(anchors.device.type, enabled=False):
        scores = unit(anchors) @ unit(positives).T * scale  # (batch, batch)
    labels = torch.arange(len(scores), device=scores.device)
    if weights is None:
        return cross_entropy(scores, labels)
    return weighted_cross_entropy(scores.where(weights != 0, torch.finfo(scores.dtype).min), labels, weights)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * -log softmax(logits)[label]. A label whose weight is 0 may be anything.

    logits: (..., num_labels); labels: (...), integers; weights: (...).
    """
    logits, weights = at_least_float32(logits).reshape(-1, logits.shape[-1]), weights.flatten()
    labels = labels.flatten().long().where(weights != 0, IGNORE)
    return (weights * F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")).sum()


def weighted_squared_error(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * (x - y)^2. x and y: of one shape, to which the weights broadcast."""
    return (weights * (at_least_float32(x) - at_least_float32(y)) ** 2).sum()


def weighted_binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * -log of the probability, sigmoid(logits), that each label is as it is, all of one shape."""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), weights.to(logits), reduction="sum")


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, temperature: float) -> Tensor:
    """Temperature^2 * sum of weights * KL(softmax(teacher / temperature) || softmax(student / temperature)).

    logits: (..., num_labels); weights: (...). The teacher gets no gradient. Source: Hinton et al. 2015, section 2.
    """
    student = (at_least_float32(student_logits) / temperature).log_softmax(-1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(-1)
    share = teacher.exp()  # (..., num_labels)
    divergence = (share * (teacher - student)).where(share > 0, 0.0).sum(-1)  # where both are -inf, nothing
    return temperature**2 * (weights * divergence).sum()


def cosine_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * (1 - cosine of the two); the cosine of a zero vector is 0. The teacher gets no gradient.

    student, teacher: (..., dim); weights: (...).
    """
    cosine = (unit(student) * unit(teacher.detach())).sum(-1)
    return (weights * (1.0 - cosine)).sum()


def unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a zero row stays zero, and its gradient is zero. x: (batch, dim)."""
    x = at_least_float32(x)
    squares = (x * x).sum(-1, keepdim=True)  # (batch, 1)
    return x.where(squares > 0, 0.0) / squares.clamp(min=1e-24).sqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
