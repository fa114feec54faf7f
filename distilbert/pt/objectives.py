"""What a training step minimises, in PyTorch: one pass through the model, and its losses. Twins: tf/ and flax/.

Arguments are those of a `Batch`, as tensors. Axes: rows, choices, seq, dim, n (chosen positions), pairs, num_labels,
vocab_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the framework's own name

from distilbert.pt.devices import gathered, place
from distilbert.pt.losses import (
    at_least_float32,
    cosine_loss,
    distillation_loss,
    multiple_negatives_ranking_loss,
    unit,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
    weighted_squared_error,
)
from distilbert.pt.packed import packed
from distilbert.training.objective import Objective

Tensors = Mapping[str, Tensor]


def losses(
    model: Any, inputs: Tensors, targets: Tensors, weights: Tensors, objective: Objective, taught: Tensors
) -> dict[str, Tensor]:
    """The objective's losses by name, each a weighted sum without its alpha; those whose alpha is 0 are left out.

    model: the class that the task trains, run once, in the mode it is in. taught: from `teach`; {} without a teacher.
    In a session of several processes they are this one's shares, which add up to those of the whole batch.
    """
    task, alphas = objective.task, objective.alphas
    logits = bool(objective.alpha_task or objective.alpha_kl or objective.alpha_mse) and task != "sentence_embedding"
    found = on_kept_tokens(model, inputs, targets, task, logits=logits, hidden=bool(objective.alpha_cos))
    parts: dict[str, Tensor] = {}
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
    """The objective: the losses, tensors or numbers, times their alphas, added up."""
    return sum(objective.alphas[name] * part for name, part in parts.items())


@torch.no_grad()
def teach(teacher: Any, inputs: Tensors, targets: Tensors, objective: Objective) -> dict[str, Tensor]:
    """What the objective needs of the teacher, which is put in evaluation mode; without gradients.

    `logits`, if kl or mse is asked for: those of the head, of masked LM at the positions (n, vocab_size), of question
    answering (rows, 2, seq), start and end. `hidden`, if cos is asked for: the last hidden states. Of sentence
    embedding: `hidden`, the embeddings.
    """
    task = objective.task
    logits = bool(objective.alpha_kl or objective.alpha_mse) and task != "sentence_embedding"
    return on_kept_tokens(teacher.eval(), inputs, targets, task, logits=logits, hidden=bool(objective.alpha_cos))


def predictions(model: Any, inputs: Tensors, targets: Tensors, task: str) -> dict[str, Tensor]:
    """What `Trainer.predict` returns, in float32, from a model in the mode it is in."""
    found = outputs(model, inputs, targets, task, logits=task != "sentence_embedding", hidden=False)
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
    return {"tokens": logits.argmax(-1), "losses": F.cross_entropy(logits, labels.long(), reduction="none")}


def on_kept_tokens(
    model: Any, inputs: Tensors, targets: Tensors, task: str, *, logits: bool, hidden: bool
) -> dict[str, Tensor]:
    """As `outputs`, without computing padding."""
    with packed(model):
        return outputs(model, inputs, targets, task, logits=logits, hidden=hidden)


def outputs(
    model: Any, inputs: Tensors, targets: Tensors, task: str, *, logits: bool, hidden: bool
) -> dict[str, Tensor]:
    """The `logits` and the last `hidden` states of one pass, each if asked for; of embeddings always `hidden`."""
    if task == "masked_lm":
        return masked_outputs(model, inputs, targets, logits=logits, hidden=hidden)
    output = model(**inputs, output_hidden_states=hidden and task != "sentence_embedding")
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
    logits = torch.stack([output.start_logits, output.end_logits], 1)
    return logits.masked_fill(attention_mask[:, None] == 0, torch.finfo(logits.dtype).min)


def masked_outputs(model: Any, inputs: Tensors, targets: Tensors, *, logits: bool, hidden: bool) -> dict[str, Tensor]:
    """As `outputs`, of a masked LM, whose logits are computed at the chosen positions only."""
    states = model.distilbert(**inputs, output_hidden_states=False).last_hidden_state  # (rows, seq, dim)
    found: dict[str, Tensor] = {}
    if logits:
        chosen = states.flatten(0, 1).index_select(0, targets["positions"])  # (n, dim)
        found["logits"] = model.vocab_logits(chosen)  # (n, vocab_size)
    if hidden:
        found["hidden"] = states
    return found


def task_loss(found: Tensors, targets: Tensors, weights: Tensors, task: str) -> Tensor:
    """The loss against the labels, or the ranking loss of pairs."""
    if task == "sentence_embedding":
        return pair_loss(found["hidden"], targets, weights["labels"])
    logits = found["logits"]
    if task == "question_answering":
        ends = enumerate(("start_positions", "end_positions"))
        start, end = (weighted_cross_entropy(logits[:, i], targets[name], weights[name]) for i, name in ends)
        return (start + end) / 2
    if task == "multi_label_classification":
        return weighted_binary_cross_entropy(logits, targets["labels"], weights["labels"])
    if task == "regression":
        return weighted_squared_error(logits, targets["labels"], weights["labels"])
    return weighted_cross_entropy(logits, targets["labels"], weights["labels"])


def pair_loss(embeddings: Tensor, targets: Tensors, weights: Tensor) -> Tensor:
    """Of anchors and their positives: the ranking loss, or the squared error of their cosines where these are given.

    embeddings: (2 * pairs, dim), anchors first; weights: (pairs,).
    """
    if "labels" not in targets:
        return shared_ranking_loss(embeddings, weights)
    anchors, positives = embeddings.chunk(2)
    cosines = (unit(anchors) * unit(positives)).sum(-1)  # (pairs,)
    return weighted_squared_error(cosines, targets["labels"], weights)


def shared_ranking_loss(embeddings: Tensor, weights: Tensor) -> Tensor:
    """An equal share of the ranking loss over the pairs of all processes, so that all are each other's negatives."""
    halves = gathered(embeddings).unflatten(1, (2, -1))  # (processes, 2, pairs, dim)
    anchors, positives = halves[:, 0].flatten(0, 1), halves[:, 1].flatten(0, 1)  # (processes * pairs, dim)
    loss = multiple_negatives_ranking_loss(anchors, positives, weights=gathered(weights).flatten())
    return loss / place().processes


def divergence(student: Tensor, teacher: Tensor, weights: Tensor, objective: Objective) -> Tensor:
    """T^2 KL(teacher || student) of the logits. Each of several labels is a distribution over yes and no."""
    if objective.task == "question_answering":
        weights = weights[:, None] / 2  # (rows, 1), for start and end
    elif objective.task == "multi_label_classification":
        student, teacher = (torch.stack([x, torch.zeros_like(x)], -1) for x in (student, teacher))
    return distillation_loss(student, teacher, weights, temperature=objective.temperature)


def squared_error(found: Tensors, taught: Tensors, weights: Tensors, task: str) -> Tensor:
    """Of embeddings, or of logits: summed over classes, and over start and end of answers divided by 2."""
    if task == "sentence_embedding":
        return weighted_squared_error(found["hidden"], taught["hidden"], weights["hidden"][:, None])
    counts = weights["logits"]
    if task == "question_answering":
        counts = counts[:, None, None] / 2  # for start and end
    elif task not in ("multi_label_classification", "regression"):
        counts = counts[..., None]  # one weight for all classes
    return weighted_squared_error(found["logits"], taught["logits"], counts)
