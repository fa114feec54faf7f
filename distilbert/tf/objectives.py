"""What a training step minimises, in TensorFlow: one pass through the model, and its losses. Twins: pt/ and flax/.

Axes: rows, choices, seq, dim, n (chosen positions), pairs, num_labels, vocab_size. Arguments are those of a `Batch`.
"""

# Keras types the results of its operations as optional: they are not.
# pyright: reportOptionalOperand=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from keras import ops

from distilbert.tf.attention import lowest
from distilbert.tf.devices import gathered, replica
from distilbert.tf.losses import (
    Tensor,
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
    model: Any,
    inputs: Arrays,
    targets: Arrays,
    weights: Arrays,
    objective: Objective,
    taught: Arrays,
    *,
    training: bool | None = None,
) -> dict[str, Tensor]:
    """The objective's losses by name, each a weighted sum without its alpha; those whose alpha is 0 are left out.

    model: the class that the task trains, run once. taught: from `teach`; {} without a teacher. training: whether
    dropout acts.
    """
    task, alphas = objective.task, objective.alphas
    hidden = bool(objective.alpha_cos)
    found = outputs(model, inputs, targets, task, logits=True, hidden=hidden, training=training)
    parts: dict[str, Tensor] = {}
    if alphas["task"]:
        parts["task"] = task_loss(found, targets, weights, task)
    if alphas["kl"]:
        parts["kl"] = divergence(found["logits"], taught["logits"], weights["logits"], objective)
    if alphas["cos"]:
        counts = ops.reshape(
            weights["hidden"], ops.shape(found["hidden"])[:-1]
        )  # multiple choice: (rows * choices, seq)
        parts["cos"] = cosine_loss(found["hidden"], taught["hidden"], counts)
    if alphas["mse"]:
        parts["mse"] = squared_error(found, taught, weights, task)
    return parts


def total(parts: Mapping[str, Any], objective: Objective) -> Any:
    """The objective: the losses times their alphas, added up; of tensors or of numbers."""
    return sum(objective.alphas[name] * part for name, part in parts.items())


def teach(teacher: Any, inputs: Arrays, targets: Arrays, objective: Objective) -> dict[str, Tensor]:
    """What the objective needs of the teacher, in evaluation mode and without gradients.

    `logits`, if kl or mse is asked for: those of the head, of masked LM at the positions (n, vocab_size), of question
    answering (rows, 2, seq), start and end. `hidden`, if cos is asked for: the last hidden states. Of sentence
    embedding: `hidden`, the embeddings.
    """
    logits, hidden = bool(objective.alpha_kl or objective.alpha_mse), bool(objective.alpha_cos)
    found = outputs(teacher, inputs, targets, objective.task, logits=logits, hidden=hidden, training=False)
    return {name: ops.stop_gradient(array) for name, array in found.items()}


def predictions(model: Any, inputs: Arrays, targets: Arrays, task: str) -> dict[str, Tensor]:
    """What `Trainer.predict` returns, in float32, from a model in evaluation mode."""
    found = outputs(model, inputs, targets, task, logits=True, hidden=False, training=False)
    if task == "sentence_embedding":
        return {"embeddings": at_least_float32(found["hidden"])}
    logits = at_least_float32(found["logits"])
    if task == "question_answering":
        return {"start_logits": logits[:, 0], "end_logits": logits[:, 1]}
    return guesses(logits, targets["labels"]) if task == "masked_lm" else {"logits": logits}


def guesses(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of masked tokens: the one that is likeliest, and -log of the probability of the one that was there.

    logits: (n, vocab_size); labels and results: (n,).
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return {"tokens": ops.argmax(logits, -1), "losses": losses}


def outputs(
    model: Any,
    inputs: Arrays,
    targets: Arrays,
    task: str,
    *,
    logits: bool,
    hidden: bool,
    training: bool | None,
) -> dict[str, Tensor]:
    """The `logits` and the last `hidden` states of one pass, each if asked for; of embeddings always `hidden`."""
    if task == "masked_lm":
        return masked_outputs(model, inputs, targets, logits=logits, hidden=hidden, training=training)
    states = hidden and task != "sentence_embedding"
    output = model(**inputs, output_hidden_states=states, output_attentions=False, training=training)
    if task == "sentence_embedding":
        return {"hidden": output.embeddings}
    found: dict[str, Tensor] = {}
    if logits and task == "question_answering":
        found["logits"] = answer_logits(output, inputs["attention_mask"])
    elif logits:
        found["logits"] = output.logits
    if hidden:
        found["hidden"] = output.hidden_states[-1]
    return found


def answer_logits(output: Any, attention_mask: Tensor) -> Tensor:
    """Logits of start and end, (rows, 2, seq); the least there is at padding, where no answer can be."""
    logits = ops.stack([output.start_logits, output.end_logits], 1)
    return ops.where(ops.equal(attention_mask, 0)[:, None], lowest(logits), logits)


def masked_outputs(
    model: Any, inputs: Arrays, targets: Arrays, *, logits: bool, hidden: bool, training: bool | None
) -> dict[str, Tensor]:
    """As `outputs`, of a masked LM, whose logits are computed at the chosen positions only."""
    output = model.distilbert(**inputs, output_hidden_states=False, output_attentions=False, training=training)
    states = output.last_hidden_state  # (rows, seq, dim)
    found: dict[str, Tensor] = {}
    if logits:
        chosen = tf.gather(ops.reshape(states, (-1, states.shape[-1])), targets["positions"])  # (n, dim)
        found["logits"] = model.vocab_logits(chosen)  # (n, vocab_size)
    if hidden:
        found["hidden"] = states
    return found


def task_loss(found: Arrays, targets: Arrays, weights: Arrays, task: str) -> Tensor:
    """The loss against the labels, or the ranking loss of pairs."""
    if task == "sentence_embedding":
        return pair_loss(found["hidden"], targets, weights["labels"])
    logits = found["logits"]
    if task == "question_answering":
        ends = ("start_positions", "end_positions")
        return sum(weighted_cross_entropy(logits[:, i], targets[n], weights[n]) for i, n in enumerate(ends)) / 2
    if task == "multi_label_classification":
        return weighted_binary_cross_entropy(logits, targets["labels"], weights["labels"])
    if task == "regression":
        return weighted_squared_error(logits, targets["labels"], weights["labels"])
    return weighted_cross_entropy(logits, targets["labels"], weights["labels"])


def pair_loss(embeddings: Tensor, targets: Arrays, weights: Tensor) -> Tensor:
    """Of anchors and their positives: the ranking loss, or the squared error of their cosines where these are given.

    embeddings: (2 * pairs, dim), anchors first; weights: (pairs,).
    """
    if "labels" not in targets:
        return shared_ranking_loss(embeddings, weights)
    anchors, positives = tf.split(embeddings, 2)
    cosines = ops.sum(unit(anchors) * unit(positives), -1)  # (pairs,)
    return weighted_squared_error(cosines, targets["labels"], weights)


def shared_ranking_loss(embeddings: Tensor, weights: Tensor) -> Tensor:
    """An equal share of the ranking loss over the pairs of all devices, so that all are each other's negatives."""
    anchors, positives = (gathered(half) for half in tf.split(embeddings, 2))  # (devices * pairs, dim)
    return multiple_negatives_ranking_loss(anchors, positives, weights=gathered(weights)) / replica()[1]


def divergence(student: Tensor, teacher: Tensor, weights: Tensor, objective: Objective) -> Tensor:
    """T^2 KL(teacher || student) of the logits. Each of several labels is a distribution over yes and no."""
    if objective.task == "question_answering":
        weights = ops.broadcast_to(weights[:, None] / 2, ops.shape(student)[:-1])  # (rows, 2)
    elif objective.task == "multi_label_classification":
        student, teacher = (ops.stack([x, ops.zeros_like(x)], -1) for x in (student, teacher))
    return distillation_loss(student, teacher, weights, temperature=objective.temperature)


def squared_error(found: Arrays, taught: Arrays, weights: Arrays, task: str) -> Tensor:
    """Of embeddings, or of logits: summed over classes, and over start and end of answers divided by 2."""
    if task == "sentence_embedding":
        return weighted_squared_error(found["hidden"], taught["hidden"], weights["hidden"][:, None])
    counts = weights["logits"]
    if task == "question_answering":
        counts = counts[:, None, None] / 2  # for start and end
    elif task not in ("multi_label_classification", "regression"):
        counts = counts[..., None]  # one weight for all classes
    return weighted_squared_error(found["logits"], taught["logits"], counts)
