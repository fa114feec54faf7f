"""The specification of a training step: the losses of an objective through the whole model, and their gradients.

Sources as in `reference_losses`, which has the losses; the way back through the model is `reference_training`'s. Every
backend's `objectives.py` and its `Trainer.step` are compared with this file. Inputs, targets and weights are those of
`training.batches.Batch`. Axes: rows, choices, seq, dim, n (chosen positions), pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert import reference, reference_losses, reference_training, weight_map
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.reference import Float64, Weights
from distilbert.reference_losses import NOWHERE
from distilbert.reference_training import Gradients
from distilbert.training.batches import Batch
from distilbert.training.objective import Objective
from distilbert.training.trainer import Optimization, StepResult

Arrays = Mapping[str, NDArray[Any]]
Sent = tuple[Any, Float64 | float, Float64 | float]  # a loss, and what it sends back to logits and last hidden states


def model_inputs(task: str, inputs: Arrays) -> dict[str, Any]:
    """Inputs as the encoder takes them: choices are rows."""
    return reference.flatten_choices(inputs) if task == "multiple_choice" else dict(inputs)


def head_outputs(
    task: str,
    config: DistilBertConfig,
    weights: Weights,
    hidden: Float64,
    inputs: Arrays,
    targets: Arrays,
    pooling: PoolingConfig,
) -> Float64:
    """What the head makes of the last hidden states: logits of the task's shape, or the embeddings.

    Masked LM: (n, vocab_size), at the chosen positions only. Question answering: (rows, 2, seq), start then end, and at
    padding the least number, since no answer is there.
    """
    if task == "masked_lm":
        return reference.vocab_logits(hidden.reshape(-1, config.dim)[targets["positions"]], weights, config)
    if task == "question_answering":
        logits = np.moveaxis(reference.linear(hidden, weights, "qa_outputs"), -1, 1)  # (rows, 2, seq)
        return np.where(real_tokens(inputs), logits, NOWHERE)
    if task == "token_classification":
        return reference.linear(hidden, weights, "classifier")
    if task == "sentence_embedding":
        return reference.sentence_vectors(hidden, inputs["attention_mask"], pooling, weights)
    logits = reference.first_token_logits(hidden, weights)
    return logits.reshape(len(inputs["input_ids"]), -1)


def real_tokens(inputs: Arrays) -> NDArray[np.bool_]:
    """Where an answer can begin and end: not at padding. (rows, 1, seq)."""
    return np.asarray(inputs["attention_mask"])[:, None, :] != 0


def of_hidden(
    gradient: Float64,
    task: str,
    config: DistilBertConfig,
    weights: Weights,
    hidden: Float64,
    inputs: Arrays,
    targets: Arrays,
    pooling: PoolingConfig,
    into: Gradients,
) -> Float64:
    """Of `head_outputs` with respect to the last hidden states."""
    if task == "masked_lm":
        rows, positions = hidden.reshape(-1, config.dim), targets["positions"]
        of_rows = np.zeros_like(rows)
        chosen = reference_training.vocab_logits(gradient, rows[positions], weights, config, into)
        np.add.at(of_rows, positions, chosen)
        return of_rows.reshape(hidden.shape)
    if task == "question_answering":
        gradient = np.moveaxis(np.where(real_tokens(inputs), gradient, 0.0), 1, -1)  # (rows, seq, 2)
        return reference_training.linear(gradient, hidden, weights, "qa_outputs", into)
    if task == "token_classification":
        return reference_training.linear(gradient, hidden, weights, "classifier", into)
    if task == "sentence_embedding":
        mask = inputs["attention_mask"]
        return reference_training.sentence_vectors(gradient, hidden, mask, pooling, weights, into)
    gradient = gradient.reshape(len(hidden), -1)
    return reference_training.first_token_logits(gradient, hidden, weights, into)


def task_loss(task: str, logits: Float64, targets: Arrays, weights: Arrays) -> tuple[Any, Float64]:
    """The loss against the labels, and its gradient with respect to `logits`, which may be the embeddings."""
    if task == "question_answering":
        sides = [
            reference_losses.weighted_cross_entropy(logits[:, i], targets[name], weights[name])
            for i, name in enumerate(("start_positions", "end_positions"))
        ]
        return sum(value for value, _ in sides) / 2, np.stack([gradient for _, gradient in sides], axis=1) / 2
    if task == "sentence_embedding":
        anchors, positives = np.split(logits, 2)
        if "labels" in targets:
            loss = reference_losses.pair_cosine_loss(anchors, positives, targets["labels"], weights["labels"])
        else:
            loss = reference_losses.multiple_negatives_ranking_loss(anchors, positives, weights=weights["labels"])
        value, of_halves = loss
        return value, np.concatenate(of_halves)
    losses: dict[str, Callable[..., tuple[Any, Float64]]] = {
        "regression": reference_losses.weighted_squared_error,
        "multi_label_classification": reference_losses.weighted_binary_cross_entropy,
    }
    loss = losses.get(task, reference_losses.weighted_cross_entropy)
    return loss(logits, targets["labels"], weights["labels"])


def divergence(
    task: str, logits: Float64, teacher: Float64, weights: Arrays, temperature: float
) -> tuple[Any, Float64]:
    """The loss against the teacher's distributions: over classes, over the tokens of a row, or of each label alone."""
    if task == "multi_label_classification":
        own, taught = (np.stack([x, np.zeros_like(x)], axis=-1) for x in (logits, teacher))
        value, of_pairs = reference_losses.distillation_loss(own, taught, weights["logits"], temperature=temperature)
        return value, of_pairs[..., 0]
    if task == "question_answering":
        sides = np.repeat(weights["logits"][:, None].astype(np.float64), 2, axis=1) / 2  # (rows, 2)
        return reference_losses.distillation_loss(logits, teacher, sides, temperature=temperature)
    return reference_losses.distillation_loss(logits, teacher, weights["logits"], temperature=temperature)


def squared_difference(task: str, logits: Float64, teacher: Float64, weights: Arrays) -> tuple[Any, Float64]:
    """The squared difference of the logits, summed over classes or real tokens; or of the embeddings, over dim."""
    if task == "sentence_embedding":
        counted = weights["hidden"][:, None]
    elif task == "question_answering":
        counted = weights["logits"][:, None, None] / 2
    elif task in ("regression", "multi_label_classification"):
        counted = weights["logits"]
    else:
        counted = weights["logits"][..., None]
    return reference_losses.weighted_squared_error(logits, teacher, counted)


def teach(
    config: DistilBertConfig,
    weights: Weights,
    inputs: Arrays,
    targets: Arrays,
    objective: Objective,
    *,
    pooling: PoolingConfig | None = None,
) -> dict[str, Float64]:
    """What a teacher gives: `logits` and `hidden`, where the objective asks for them.

    `hidden`: last hidden states; of sentence embeddings the embeddings, which are their `logits` too.
    """
    hidden = reference.model(config, weights, **model_inputs(objective.task, inputs)).last_hidden_state
    logits = head_outputs(objective.task, config, weights, hidden, inputs, targets, pooling or PoolingConfig())
    if objective.task == "sentence_embedding":
        return {"hidden": logits} if objective.alpha_cos or objective.alpha_mse else {}
    wanted = {"logits": objective.alpha_kl or objective.alpha_mse, "hidden": objective.alpha_cos}
    return {name: array for name, array in (("logits", logits), ("hidden", hidden)) if wanted[name]}


def losses(
    objective: Objective,
    logits: Float64,
    hidden: Float64,
    targets: Arrays,
    weights: Arrays,
    taught: Arrays,
) -> dict[str, Sent]:
    """Every loss whose alpha is not 0, by name. The hidden states count for multiple choice as rows of choices."""
    task, found = objective.task, dict[str, Sent]()
    embeds = task == "sentence_embedding"
    teacher: Any = taught.get("hidden" if embeds else "logits")
    if objective.alpha_task:
        found["task"] = (*task_loss(task, logits, targets, weights), 0.0)
    if objective.alpha_kl:
        found["kl"] = (*divergence(task, logits, teacher, weights, objective.temperature), 0.0)
    if objective.alpha_cos and embeds:
        found["cos"] = (*reference_losses.cosine_loss(logits, teacher, weights["hidden"]), 0.0)
    elif objective.alpha_cos:
        tokens = weights["hidden"].reshape(hidden.shape[:2])
        value, of_hidden_states = reference_losses.cosine_loss(hidden, taught["hidden"], tokens)
        found["cos"] = (value, 0.0, of_hidden_states)
    if objective.alpha_mse:
        found["mse"] = (*squared_difference(task, logits, teacher, weights), 0.0)
    return found


def distillation(
    config: DistilBertConfig,
    weights: Weights,
    inputs: Arrays,
    targets: Arrays,
    loss_weights: Arrays,
    objective: Objective,
    taught: Arrays | None = None,
    *,
    pooling: PoolingConfig | None = None,
) -> tuple[dict[str, Any], Gradients]:
    """The losses by name, without their alphas, and the gradient of the objective for every tensor that is trained.

    Args:
        config: the student's, dropout not acting.
        weights: the student's, by canonical name, a tied projector under both of its names.
        inputs: of a batch, as `targets` and `loss_weights`.
        targets: what the task wants.
        loss_weights: with what each loss counts where.
        objective: which losses.
        taught: what `teach` returned; nothing without a teacher.
        pooling: of `DistilBertForSentenceEmbedding`.
    """
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    task, given, into = objective.task, model_inputs(objective.task, inputs), Gradients()
    pooling = pooling or PoolingConfig()
    hidden_states = reference.model(config, weights, **given).hidden_states
    hidden = hidden_states[-1]
    logits = head_outputs(task, config, weights, hidden, inputs, targets, pooling)
    found = losses(objective, logits, hidden, targets, loss_weights, taught or {})
    gradient, beside = np.zeros_like(logits), np.zeros_like(hidden)
    for name, (_, to_logits, to_hidden) in found.items():
        gradient = gradient + objective.alphas[name] * to_logits
        beside = beside + objective.alphas[name] * to_hidden
    back = of_hidden(gradient, task, config, weights, hidden, inputs, targets, pooling, into)
    reference_training.model(back + beside, config, weights, hidden_states, into, **given)
    for name in weight_map.tied(config, objective.head):
        reference_training.add(into, weight_map.WORD_EMBEDDINGS, into.pop(name))
    parts = {name: value for name, (value, *_) in found.items()}
    return parts, {name: into[name] for name in weight_map.trained(config, objective.head, pooling)}


def global_norm(gradients: Gradients) -> float:
    """The length of all gradients as one vector."""
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))


def clipped(gradients: Gradients, max_norm: float | None) -> Gradients:
    """Gradients whose global norm is larger than `max_norm` scaled down to it."""
    norm = global_norm(gradients)
    factor = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
    return {name: factor * gradient for name, gradient in gradients.items()}


def summed(gradients: Sequence[Gradients]) -> Gradients:
    """The gradients of all micro-batches: a sum, since the weights sum to 1 over the step."""
    return {name: np.sum([of[name] for of in gradients], axis=0) for name in gradients[0]}


def step(
    config: DistilBertConfig,
    weights: Weights,
    batches: Sequence[Batch],
    objective: Objective,
    optimization: Optimization,
    learning_rate: float,
    earlier: Sequence[Gradients] = (),
    *,
    pooling: PoolingConfig | None = None,
) -> tuple[StepResult, Gradients, dict[str, Float64]]:
    """One step of training: what it found, the clipped gradients, and every trained tensor after it.

    batches: the micro-batches, weights normalized over them, each with what the teacher gave. earlier: the clipped
    gradients of the steps before, latest first.
    """
    found = [
        distillation(
            config, weights, batch.inputs, batch.targets, batch.weights, objective, batch.teacher, pooling=pooling
        )
        for batch in batches
    ]
    parts = {name: float(sum(values[name] for values, _ in found)) for name in found[0][0]}
    gradients = summed([of for _, of in found])
    loss = sum(objective.alphas[name] * value for name, value in parts.items())
    of = clipped(gradients, optimization.max_grad_norm)
    after = reference_training.step(
        objective.head,
        config,
        weights,
        of,
        *earlier,
        learning_rate=learning_rate,
        weight_decay=optimization.weight_decay,
        betas=optimization.betas,
        eps=optimization.eps,
        pooling=pooling,
    )
    return StepResult(loss, parts, global_norm(gradients)), of, after
