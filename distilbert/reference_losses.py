"""The specification of the training losses: weighted sums in float64 NumPy, each with its own gradient.

A function returns its value and the gradient with respect to its first argument, which the model in training computes;
the teacher gets none. The weights of a step sum to 1, so a sum is a mean (see `training.batches`). It can be trusted
because central differences know nothing of it. Every backend's `losses.py` has the same functions.
Sources: Hinton et al. 2015, arXiv 1503.02531 (temperature); Sanh et al. 2019, arXiv 1910.01108, section 3 (the three
losses); Henderson et al. 2017, section 4.4 (ranking loss). Axes: dim, classes, pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from distilbert import reference, reference_training
from distilbert.reference import Float64

NOWHERE = -1e300  # the logit of a class that does not exist: finite after division by any sensible temperature

Loss = tuple[Any, Float64]  # its value, and its gradient


def log_softmax(logits: Float64) -> Float64:
    """The logarithm of the softmax over the last axis, exact where the softmax itself is 0."""
    exponents = logits - logits.max(axis=-1, keepdims=True)
    return exponents - np.log(np.exp(exponents).sum(axis=-1, keepdims=True))


def weighted_cross_entropy(logits: Float64, labels: ArrayLike, weights: ArrayLike) -> Loss:
    """Sum of weight * -log softmax(logits)[label]. logits: (..., classes); labels, weights: (...).

    A label may be out of range where its weight is 0.
    """
    weights = np.asarray(weights, np.float64)[..., None]
    wanted = np.arange(logits.shape[-1]) == np.asarray(labels)[..., None]  # (..., classes)
    value = -(weights * np.where(wanted, log_softmax(logits), 0.0)).sum()
    return value, weights * (reference.softmax(logits) - wanted)


def weighted_squared_error(x: Float64, y: ArrayLike, weights: ArrayLike) -> Loss:
    """Sum of weight * (x - y)^2; the weights are broadcast."""
    difference, weights = x - np.asarray(y, np.float64), np.asarray(weights, np.float64)
    return (weights * difference**2).sum(), 2.0 * weights * difference


def weighted_binary_cross_entropy(logits: Float64, labels: ArrayLike, weights: ArrayLike) -> Loss:
    """Sum of weight * (-label log s - (1 - label) log(1 - s)), s the sigmoid of the logit. All of one shape."""
    labels, weights = np.asarray(labels, np.float64), np.asarray(weights, np.float64)
    losses = np.maximum(logits, 0.0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
    return (weights * losses).sum(), weights * (reference.sigmoid(logits) - labels)


def distillation_loss(
    student_logits: Float64, teacher_logits: Float64, weights: ArrayLike, *, temperature: float
) -> Loss:
    """T^2 times the sum of weight * KL(softmax(teacher / T) || softmax(student / T)).

    logits: (..., classes); weights: (...). The factor T^2 keeps the size of the gradients, which have 1 / T twice.
    """
    weights = np.asarray(weights, np.float64)
    student, teacher = log_softmax(student_logits / temperature), log_softmax(teacher_logits / temperature)
    divergence = (np.exp(teacher) * (teacher - student)).sum(axis=-1)  # (...)
    gradient = temperature * weights[..., None] * (np.exp(student) - np.exp(teacher))
    return temperature**2 * (weights * divergence).sum(), gradient


def cosine_loss(student: Float64, teacher: Float64, weights: ArrayLike) -> Loss:
    """Sum of weight * (1 - cosine). vectors: (..., dim); weights: (...). A zero vector has the cosine 0."""
    weights, direction = np.asarray(weights, np.float64), reference.unit(teacher)
    cosine = (reference.unit(student) * direction).sum(axis=-1)  # (...)
    return (weights * (1.0 - cosine)).sum(), reference_training.unit(-weights[..., None] * direction, student)


def multiple_negatives_ranking_loss(
    anchors: Float64, positives: Float64, *, scale: float = 20.0, weights: ArrayLike | None = None
) -> tuple[Any, tuple[Float64, Float64]]:
    """Cross entropy of the scaled cosines of the pairs that exist, weighted; gradients of anchors and of positives.

    vectors: (pairs, dim); weights: (pairs,), 1 / pairs without them. A pair of weight 0 is nobody's negative either.
    """
    pairs = len(anchors)
    weights = np.full(pairs, 1.0 / max(pairs, 1)) if weights is None else np.asarray(weights, np.float64)
    left, right, exist = reference.unit(anchors), reference.unit(positives), weights > 0
    scores = np.where(exist, left @ right.T * scale, NOWHERE)  # (pairs, pairs)
    value, of_scores = weighted_cross_entropy(scores, np.arange(pairs), weights)
    of_scores = np.where(exist, of_scores, 0.0) * scale
    of_anchors = reference_training.unit(of_scores @ right, anchors)
    return value, (of_anchors, reference_training.unit(of_scores.T @ left, positives))


def pair_cosine_loss(
    anchors: Float64, positives: Float64, labels: ArrayLike, weights: ArrayLike
) -> tuple[Any, tuple[Float64, Float64]]:
    """Squared error of each pair's cosine against the one it should have; gradients of anchors and of positives.

    vectors: (pairs, dim); labels, weights: (pairs,).
    """
    left, right = reference.unit(anchors), reference.unit(positives)
    value, of_cosine = weighted_squared_error((left * right).sum(axis=-1), labels, weights)
    of_anchors = reference_training.unit(of_cosine[:, None] * right, anchors)
    return value, (of_anchors, reference_training.unit(of_cosine[:, None] * left, positives))
