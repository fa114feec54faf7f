"""Deliberate faults in the specification of training: each must show in what a correct backend finds for its case.

They are those that training scripts have: means of means, a temperature forgotten, padding that counts, clipping of the
wrong thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.comparison import TRAINING_TOLERANCES, Parts, first_failure
from conformance.loss_cases import RANKING, LossCase, loss_cases
from conformance.mutants import planted
from conformance.objective_cases import ObjectiveCase, StepCase, objective_cases, step_cases
from distilbert import reference, reference_losses, reference_objectives, reference_training

Function = Callable[..., Any]
TrainingCase = LossCase | ObjectiveCase | StepCase


@dataclass(frozen=True)
class TrainingMutant:
    """A named fault: replacements, by "losses.name", "objectives.name" or "backward.name", and where it shows."""

    name: str
    replace: Mapping[str, Any]
    case: TrainingCase


def caught(mutant: TrainingMutant, found: Parts) -> str:
    """Where the mutant shows in what a correct backend found for its case; "" if it passes unnoticed."""
    with planted(mutant):
        return first_failure(mutant.case.expected(), found, TRAINING_TOLERANCES[mutant.case.dtype])


def _loss(function: str, what: str) -> LossCase:
    cases = (c for c in loss_cases() if (c.function, c.what, c.dtype) == (function, what, "float32"))
    return next(case for case in cases if case.options.get("temperature", 2.0) == 2.0)


def _objective(task: str, what: str = "all losses", dtype: str = "float64") -> ObjectiveCase:
    return next(c for c in objective_cases() if (c.objective.task, c.what, c.dtype) == (task, what, dtype))


_LOSS: dict[str, Function] = {
    name: getattr(reference_losses, name)
    for name in (
        "cosine_loss",
        "distillation_loss",
        RANKING,
        "pair_cosine_loss",
        "weighted_binary_cross_entropy",
        "weighted_cross_entropy",
        "weighted_squared_error",
    )
}
_OBJECTIVE: dict[str, Function] = {
    name: getattr(reference_objectives, name)
    for name in ("distillation", "divergence", "head_outputs", "squared_difference", "summed", "task_loss")
}
_ADAMW = reference_training.adamw


def _times(found: Any, factor: float) -> Any:
    value, gradient = found
    scaled = tuple(factor * g for g in gradient) if isinstance(gradient, tuple) else factor * gradient
    return factor * value, scaled


def _even(weights: Any) -> Any:
    return np.full(np.shape(weights), 1.0 / max(np.size(weights), 1))


def _evenly(name: str) -> Function:
    """The loss with its weights, the last argument, ignored: everything counts alike."""
    return lambda *args, **options: _LOSS[name](*args[:-1], _even(args[-1]), **options)


def _ranked_evenly(anchors: Any, positives: Any, **_: Any) -> Any:
    return _LOSS[RANKING](anchors, positives)


def _mean_of_part(name: str) -> Function:
    """The loss as the mean over the micro-batch, whatever share of the step that is."""
    return lambda *args, **options: _times(_LOSS[name](*args, **options), 1.0 / (np.sum(args[-1]) or 1.0))


def _temperature_not_squared(*args: Any, temperature: float) -> Any:
    return _times(_LOSS["distillation_loss"](*args, temperature=temperature), temperature**-2)


def _other_way_round(student: Any, teacher: Any, weights: Any, *, temperature: float) -> Any:
    value = _LOSS["distillation_loss"](teacher, student, weights, temperature=temperature)[0]
    return value, _LOSS["distillation_loss"](student, teacher, weights, temperature=temperature)[1]


def _student_alone(student: Any, teacher: Any, weights: Any, *, temperature: float) -> Any:
    return _LOSS["distillation_loss"](student, teacher * temperature, weights, temperature=temperature)


def _teacher_alone(student: Any, teacher: Any, weights: Any, *, temperature: float) -> Any:
    value, gradient = _LOSS["distillation_loss"](student * temperature, teacher, weights, temperature=temperature)
    return value, gradient * temperature


def _clipped_softmax(student: Any, teacher: Any, weights: Any, *, temperature: float) -> Any:
    """The divergence as Keras has it, of probabilities of at least 1e-7."""
    p, q = (np.maximum(reference.softmax(x / temperature), 1e-7) for x in (teacher, student))
    value = temperature**2 * (np.asarray(weights) * (p * np.log(p / q)).sum(axis=-1)).sum()
    return value, _LOSS["distillation_loss"](student, teacher, weights, temperature=temperature)[1]


def _teacher_taught(student: Any, teacher: Any, weights: Any) -> Any:
    value, of_student = _LOSS["cosine_loss"](student, teacher, weights)
    return value, (of_student, _LOSS["cosine_loss"](teacher, student, weights)[1])


def _zero_vector_agrees(student: Any, teacher: Any, weights: Any) -> Any:
    value, gradient = _LOSS["cosine_loss"](student, teacher, weights)
    lost = ~(student.any(axis=-1) & teacher.any(axis=-1))
    return value - (weights * lost).sum(), gradient


def _dot_product(student: Any, teacher: Any, weights: Any) -> Any:
    length = np.linalg.norm(teacher, axis=-1)
    value, gradient = _LOSS["cosine_loss"](student, teacher, weights * length)
    return value + (weights * (1.0 - length)).sum(), gradient


def _filled_rows_are_negatives(anchors: Any, positives: Any, *, scale: float = 20.0, weights: Any = None) -> Any:
    scores = reference.unit(anchors) @ reference.unit(positives).T * scale
    gradients = _LOSS[RANKING](anchors, positives, scale=scale, weights=weights)[1]
    return _LOSS["weighted_cross_entropy"](scores, np.arange(len(scores)), weights)[0], gradients


def _several_labels_compete(logits: Any, labels: Any, weights: Any) -> Any:
    return _LOSS["weighted_binary_cross_entropy"](logits - logits.mean(axis=-1, keepdims=True), labels, weights)


def _rounded_labels(logits: Any, labels: Any, weights: Any) -> Any:
    return _LOSS["weighted_binary_cross_entropy"](logits, np.round(labels), weights)


def _next_token(task: str, config: Any, weights: Any, hidden: Any, inputs: Any, targets: Any, pooling: Any) -> Any:
    targets = {**targets, "positions": targets["positions"] + 1}
    return _OBJECTIVE["head_outputs"](task, config, weights, hidden, inputs, targets, pooling)


def _mean_over_all_tokens(task: str, logits: Any, targets: Any, weights: Any) -> Any:
    """As if the other positions had losses of 0."""
    return _times(_OBJECTIVE["task_loss"](task, logits, targets, weights), len(targets["positions"]) / 48)


def _averaged_over_classes(task: str, logits: Any, *others: Any) -> Any:
    return _times(_OBJECTIVE["squared_difference"](task, logits, *others), 1.0 / logits.shape[-1])


def _answers_at_padding(inputs: Any) -> Any:
    return np.ones_like(inputs["attention_mask"], bool)[:, None, :]


def _labels_as_classes(_task: str, logits: Any, teacher: Any, weights: Any, temperature: float) -> Any:
    rows = weights["logits"].sum(axis=-1)
    return reference_losses.distillation_loss(logits, teacher, rows, temperature=temperature)


def _ends_added(task: str, *others: Any) -> Any:
    return _times(_OBJECTIVE["task_loss"](task, *others), 2.0)


def _ends_swapped(task: str, logits: Any, targets: Any, weights: Any) -> Any:
    value, gradient = _OBJECTIVE["task_loss"](task, logits[:, ::-1], targets, weights)
    return value, gradient[:, ::-1]


def _pairs_side_by_side(task: str, embeddings: Any, targets: Any, weights: Any) -> Any:
    """Each anchor next to its positive, instead of all anchors first."""
    value, gradient = _OBJECTIVE["task_loss"](
        task, np.concatenate([embeddings[::2], embeddings[1::2]]), targets, weights
    )
    return value, gradient.reshape(2, -1, gradient.shape[-1]).swapaxes(0, 1).reshape(gradient.shape)


def _half_the_error(*args: Any) -> Any:
    return _times(_LOSS["pair_cosine_loss"](*args), 0.5)


def _alphas_forgotten(*args: Any, **options: Any) -> Any:
    objective = args[5]
    ones = {f"alpha_{name}": float(alpha > 0) for name, alpha in objective.alphas.items()}
    return _OBJECTIVE["distillation"](*args[:5], replace(objective, **ones), *args[6:], **options)


def _by_value(gradients: Any, max_norm: Any) -> Any:
    return {name: np.clip(gradient, -max_norm, max_norm) for name, gradient in gradients.items()}


def _each_alone(gradients: Any, max_norm: Any) -> Any:
    lengths = {name: max(float(np.linalg.norm(gradient)), max_norm) for name, gradient in gradients.items()}
    return {name: gradient * max_norm / lengths[name] for name, gradient in gradients.items()}


def _always_scaled(gradients: Any, max_norm: Any) -> Any:
    """To length 1 where nothing is clipped."""
    factor = (max_norm or 1.0) / reference_objectives.global_norm(gradients)
    return {name: factor * gradient for name, gradient in gradients.items()}


def _averaged(gradients: Any) -> Any:
    return {name: gradient / len(gradients) for name, gradient in _OBJECTIVE["summed"](gradients).items()}


def _swapped_betas(*tensors: Any, betas: Any, **options: Any) -> Any:
    return _ADAMW(*tensors, betas=betas[::-1], **options)


def _corrected_as_first(
    weight: Any, *gradients: Any, learning_rate: Any, weight_decay: Any, betas: Any, eps: Any
) -> Any:
    mean = reference_training.moment(gradients, betas[0]) / (1.0 - betas[0])
    square = reference_training.moment([g**2 for g in gradients], betas[1]) / (1.0 - betas[1])
    return weight - learning_rate * (mean / (np.sqrt(square) + eps) + weight_decay * weight)


def _earlier_forgotten(weight: Any, gradient: Any, *_: Any, **options: Any) -> Any:
    return _ADAMW(weight, gradient, **options)


_DISTILLATION = _loss("distillation_loss", "ragged weights")
_MASKED = _objective("masked_lm", dtype="float32")
_CLIPPED, _FREE = step_cases()

LOSSES = (
    TrainingMutant("temperature not squared", {"losses.distillation_loss": _temperature_not_squared}, _DISTILLATION),
    TrainingMutant("divergence the other way round", {"losses.distillation_loss": _other_way_round}, _DISTILLATION),
    TrainingMutant("temperature of the student alone", {"losses.distillation_loss": _student_alone}, _DISTILLATION),
    TrainingMutant("temperature of the teacher alone", {"losses.distillation_loss": _teacher_alone}, _DISTILLATION),
    TrainingMutant(
        "softmax clipped at 1e-7",
        {"losses.distillation_loss": _clipped_softmax},
        _loss("distillation_loss", "a vocabulary"),
    ),
    *(
        TrainingMutant(f"weights ignored by {name}", {f"losses.{name}": _evenly(name)}, _loss(name, "ragged weights"))
        for name in _LOSS
        if name not in (RANKING, "pair_cosine_loss")
    ),
    TrainingMutant(
        f"weights ignored by {RANKING}", {f"losses.{RANKING}": _ranked_evenly}, _loss(RANKING, "ragged weights")
    ),
    TrainingMutant(
        "filled rows are negatives", {f"losses.{RANKING}": _filled_rows_are_negatives}, _loss(RANKING, "filled up")
    ),
    TrainingMutant(
        "teacher is taught", {"losses.cosine_loss": _teacher_taught}, _loss("cosine_loss", "ragged weights")
    ),
    TrainingMutant(
        "a zero vector agrees with all",
        {"losses.cosine_loss": _zero_vector_agrees},
        _loss("cosine_loss", "zero and opposite vectors"),
    ),
    TrainingMutant(
        "teacher's length counts", {"losses.cosine_loss": _dot_product}, _loss("cosine_loss", "ragged weights")
    ),
    TrainingMutant(
        "labels compete",
        {"losses.weighted_binary_cross_entropy": _several_labels_compete},
        _loss("weighted_binary_cross_entropy", "ragged weights"),
    ),
    TrainingMutant(
        "soft labels rounded",
        {"losses.weighted_binary_cross_entropy": _rounded_labels},
        _loss("weighted_binary_cross_entropy", "soft labels"),
    ),
)
OBJECTIVES = (
    TrainingMutant("logits of the next token", {"objectives.head_outputs": _next_token}, _MASKED),
    TrainingMutant(
        "mean over all tokens",
        {"objectives.task_loss": _mean_over_all_tokens},
        _MASKED,
    ),
    TrainingMutant(
        "cosine of padding too",
        {"losses.cosine_loss": _evenly("cosine_loss")},
        _MASKED,
    ),
    TrainingMutant(
        "alphas forgotten in the gradient",
        {"objectives.distillation": _alphas_forgotten},
        _MASKED,
    ),
    *(
        TrainingMutant(
            f"mse averaged in {task}", {"objectives.squared_difference": _averaged_over_classes}, _objective(task)
        )
        for task in ("masked_lm", "token_classification", "sentence_embedding")
    ),
    TrainingMutant(
        "answers at padding", {"objectives.real_tokens": _answers_at_padding}, _objective("question_answering")
    ),
    TrainingMutant(
        "labels as classes of one distribution",
        {"objectives.divergence": _labels_as_classes},
        _objective("multi_label_classification"),
    ),
    TrainingMutant("start and end added", {"objectives.task_loss": _ends_added}, _objective("question_answering")),
    TrainingMutant("ends exchanged", {"objectives.task_loss": _ends_swapped}, _objective("question_answering")),
    TrainingMutant(
        "pairs side by side", {"objectives.task_loss": _pairs_side_by_side}, _objective("sentence_embedding")
    ),
    TrainingMutant(
        "error of cosines halved",
        {"losses.pair_cosine_loss": _half_the_error},
        _objective("sentence_embedding", "cosines given"),
    ),
)
STEPS = (
    *(
        TrainingMutant(f"mean of means of {name}", {f"losses.{name}": _mean_of_part(name)}, _FREE)
        for name in ("weighted_cross_entropy", "distillation_loss", "cosine_loss")
    ),
    TrainingMutant("micro-batches averaged", {"objectives.summed": _averaged}, _FREE),
    TrainingMutant("last micro-batch alone", {"objectives.summed": lambda gradients: gradients[-1]}, _FREE),
    TrainingMutant("clipped by value", {"objectives.clipped": _by_value}, _CLIPPED),
    TrainingMutant("each tensor clipped alone", {"objectives.clipped": _each_alone}, _CLIPPED),
    TrainingMutant("not clipped at all", {"objectives.clipped": lambda gradients, _: gradients}, _CLIPPED),
    TrainingMutant("gradients always scaled", {"objectives.clipped": _always_scaled}, _FREE),
    TrainingMutant("betas exchanged", {"backward.adamw": _swapped_betas}, _CLIPPED),
    TrainingMutant("moments corrected as in the first step", {"backward.adamw": _corrected_as_first}, _CLIPPED),
    TrainingMutant("earlier steps forgotten", {"backward.adamw": _earlier_forgotten}, _CLIPPED),
)
TRAINING_MUTANTS = (*LOSSES, *OBJECTIVES, *STEPS)
