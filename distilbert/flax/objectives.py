"""What a training step minimises, in JAX: one pass through the model, and its losses. Twins: pt/ and tf/.

Arguments are those of a `Batch`, as arrays. Axes: rows, choices, seq, dim, n (chosen positions), pairs, num_labels,
vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from distilbert.flax.losses import (
    at_least_float32,
    cosine_loss,
    distillation_loss,
    multiple_negatives_ranking_loss,
    unit,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
    weighted_squared_error,
)
from distilbert.training.objective import Objective

Arrays = Mapping[str, Any]


def losses(
    model: Any, inputs: Arrays, targets: Arrays, weights: Arrays, objective: Objective, taught: Arrays
) -> dict[str, Array]:
    """The objective's losses by name, each a weighted sum without its alpha; those whose alpha is 0 are left out.

    model: the class that the task trains, run once, in the mode it is in. taught: from `teach`; {} without a teacher.
    """
    task, alphas = objective.task, objective.alphas
    found = outputs(model, inputs, targets, task, logits=True, hidden=bool(objective.alpha_cos))
    parts: dict[str, Array] = {}
    if alphas["task"]:
        parts["task"] = task_loss(found, targets, weights, task)
    if alphas["kl"]:
        parts["kl"] = divergence(found["logits"], taught["logits"], weights["logits"], objective)
    if alphas["cos"]:
        counts = weights["hidden"].reshape(found["hidden"].shape[:-1])  # of multiple choice (rows * choices, seq)
        parts["cos"] = cosine_loss(found["hidden"], taught["hidden"], counts)
    if alphas["mse"]:
        parts["mse"] = squared_error(found, taught, weights, task)
    return parts


def total(parts: Mapping[str, Any], objective: Objective) -> Any:
    """The objective: the losses, arrays or numbers, times their alphas, added up."""
    return sum(objective.alphas[name] * part for name, part in parts.items())


def teach(teacher: Any, inputs: Arrays, targets: Arrays, objective: Objective) -> dict[str, Array]:
    """What the objective needs of the teacher, in evaluation mode and without gradients.

    `logits`, if kl or mse is asked for: those of the head, of masked LM at the positions (n, vocab_size), of question
    answering (rows, 2, seq), start and end. `hidden`, if cos is asked for: the last hidden states. Of sentence
    embedding: `hidden`, the embeddings.
    """
    logits, hidden = bool(objective.alpha_kl or objective.alpha_mse), bool(objective.alpha_cos)
    with teacher.evaluating() as model:
        found = outputs(model, inputs, targets, objective.task, logits=logits, hidden=hidden)
    return {name: jax.lax.stop_gradient(array) for name, array in found.items()}


def predictions(model: Any, inputs: Arrays, targets: Arrays, task: str) -> dict[str, Array]:
    """What `Trainer.predict` returns, in float32, from a model in the mode it is in."""
    found = outputs(model, inputs, targets, task, logits=True, hidden=False)
    if task == "sentence_embedding":
        return {"embeddings": at_least_float32(found["hidden"])}
    logits = at_least_float32(found["logits"])
    if task == "question_answering":
        return {"start_logits": logits[:, 0], "end_logits": logits[:, 1]}
    return guesses(logits, targets["labels"]) if task == "masked_lm" else {"logits": logits}


def guesses(logits: Array, labels: Array) -> dict[str, Array]:
    """Of masked tokens: the one that is likeliest, and -log of the probability of the one that was there.

    logits: (n, vocab_size); labels and results: (n,).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"tokens": logits.argmax(-1), "losses": losses}


def outputs(model: Any, inputs: Arrays, targets: Arrays, task: str, *, logits: bool, hidden: bool) -> dict[str, Array]:
    """The `logits` and the last `hidden` states of one pass, each if asked for; of embedding: `hidden`, the vectors."""
    if task == "masked_lm":
        return masked_outputs(model, inputs, targets, logits=logits, hidden=hidden)
    output = model(**inputs, output_hidden_states=hidden and task != "sentence_embedding")
    if task == "sentence_embedding":
        return {"hidden": output.embeddings}
    found: dict[str, Array] = {}
    if logits and task == "question_answering":
        found["logits"] = answer_logits(output, inputs["attention_mask"])
    elif logits:
        found["logits"] = output.logits
    if hidden:
        found["hidden"] = output.hidden_states[-1]
    return found


def answer_logits(output: Any, attention_mask: Array) -> Array:
    """Logits of start and end, (rows, 2, seq); the least there is at padding, where no answer can be."""
    logits = jnp.stack([output.start_logits, output.end_logits], 1)
    return jnp.where(attention_mask[:, None] == 0, jnp.finfo(logits.dtype).min, logits)


def masked_outputs(model: Any, inputs: Arrays, targets: Arrays, *, logits: bool, hidden: bool) -> dict[str, Array]:
    """As `outputs`, of a masked LM, whose logits are computed at the chosen positions only."""
    states = model.distilbert(**inputs, output_hidden_states=False).last_hidden_state  # (rows, seq, dim)
    found: dict[str, Array] = {}
    if logits:
        chosen = states.reshape(-1, states.shape[-1])[targets["positions"]]  # (n, dim)
        found["logits"] = model.vocab_logits(chosen)  # (n, vocab_size)
    if hidden:
        found["hidden"] = states
    return found


def task_loss(found: Arrays, targets: Arrays, weights: Arrays, task: str) -> Array:
    """The loss against the labels, or the ranking loss of pairs."""
    if task == "sentence_embedding":
        return pair_loss(found["hidden"], targets, weights["labels"])
    logits = found["logits"]
    if task == "question_answering":
        start, end = "start_positions", "end_positions"
        of_start = weighted_cross_entropy(logits[:, 0], targets[start], weights[start])
        return (of_start + weighted_cross_entropy(logits[:, 1], targets[end], weights[end])) / 2
    if task == "multi_label_classification":
        return weighted_binary_cross_entropy(logits, targets["labels"], weights["labels"])
    if task == "regression":
        return weighted_squared_error(logits, targets["labels"], weights["labels"])
    return weighted_cross_entropy(logits, targets["labels"], weights["labels"])


def pair_loss(embeddings: Array, targets: Arrays, weights: Array) -> Array:
    """Of anchors and their positives: the ranking loss, or the squared error of their cosines where these are given.

    embeddings: (2 * pairs, dim), anchors first; weights: (pairs,).
    """
    anchors, positives = jnp.split(embeddings, 2)
    if "labels" not in targets:
        return multiple_negatives_ranking_loss(anchors, positives, weights=weights)
    cosines = (unit(anchors) * unit(positives)).sum(-1)  # (pairs,)
    return weighted_squared_error(cosines, targets["labels"], weights)


def divergence(student: Array, teacher: Array, weights: Array, objective: Objective) -> Array:
    """T^2 KL(teacher || student) of the logits. Each of several labels is a distribution over yes and no."""
    if objective.task == "question_answering":
        weights = weights[:, None] / 2  # (rows, 1), for start and end
    elif objective.task == "multi_label_classification":
        student, teacher = (jnp.stack([x, jnp.zeros_like(x)], -1) for x in (student, teacher))
    return distillation_loss(student, teacher, weights, temperature=objective.temperature)


def squared_error(found: Arrays, taught: Arrays, weights: Arrays, task: str) -> Array:
    """Of embeddings, or of logits: summed over classes, and over start and end of answers divided by 2."""
    if task == "sentence_embedding":
        return weighted_squared_error(found["hidden"], taught["hidden"], weights["hidden"][:, None])
    counts = weights["logits"]
    if task == "question_answering":
        counts = counts[:, None, None] / 2  # for start and end
    elif task not in ("multi_label_classification", "regression"):
        counts = counts[..., None]  # one weight for all classes
    return weighted_squared_error(found["logits"], taught["logits"], counts)
