"""Deliberate faults in the specification: each must make the comparison with a correct backend fail.

A mutant replaces functions of `distilbert.reference` or `distilbert.reference_training`, or alters the weights that
they get. It names a float32 case in which it shows; that case must pass without the mutant and fail with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from conformance.cases import ANSWERS, CHOICES, MASKED_LM, MODEL, OPTIONS, SENTENCE, SEQUENCE, TOKENS, Case
from conformance.comparison import TOLERANCES, Parts, expected, first_failure
from distilbert import reference, reference_losses, reference_objectives, reference_training
from distilbert.checks import IGNORE
from distilbert.config import DenseConfig, PoolingConfig
from distilbert.weight_map import WORD_EMBEDDINGS

Weights = dict[str, Any]
Function = Callable[..., Any]
MODULES: dict[str, ModuleType] = {
    "forward": reference,
    "backward": reference_training,
    "losses": reference_losses,
    "objectives": reference_objectives,
}


class Fault(Protocol):
    """What can be planted, in the specification of the models or of training."""

    @property
    def replace(self) -> Mapping[str, Any]:
        """What stands in place of what, by "module.name"."""
        ...


@dataclass(frozen=True)
class Mutant:
    """A named fault: replacements, by "forward.name" or "backward.name", and a change of the weights."""

    name: str
    replace: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alter: Callable[[Weights], Weights] = lambda weights: weights
    head: str = MODEL
    mask: str = "right padding"
    option: str = "plain"

    @property
    def case(self) -> Case:
        """The case in which it shows."""
        return Case(self.head, self.mask, next(o for o in OPTIONS if o.name == self.option), "float32")


@contextlib.contextmanager
def planted(mutant: Fault) -> Generator[None]:
    """The specification with the mutant's functions in place of its own."""
    places = {key: (MODULES[key.split(".")[0]], key.split(".")[1]) for key in mutant.replace}
    original = {key: getattr(*place) for key, place in places.items()}
    try:
        for key, place in places.items():
            setattr(*place, mutant.replace[key])
        yield
    finally:
        for key, place in places.items():
            setattr(*place, original[key])


def caught(mutant: Mutant, found: Parts) -> str:
    """Where the mutant shows in what a correct backend found for its case; "" if it passes unnoticed."""
    with planted(mutant):
        return first_failure(expected(mutant.case, mutant.alter), found, TOLERANCES["float32"])


def _swapped(weights: Weights, one: str, other: str) -> Weights:
    exchange = {one: other, other: one}
    return {name: weights[".".join(exchange.get(part, part) for part in name.split("."))] for name in weights}


def _changed(ending: str, change: Function) -> Callable[[Weights], Weights]:
    return lambda weights: {name: change(value) if name.endswith(ending) else value for name, value in weights.items()}


def _shifted_positions(weights: Any, input_ids: Any, position_ids: Any, inputs_embeds: Any) -> Any:
    rows = weights["distilbert.embeddings.position_embeddings.weight"]
    moved = {**weights, "distilbert.embeddings.position_embeddings.weight": np.roll(rows, -1, axis=0)}
    return _LOOK_UP(moved, input_ids, position_ids, inputs_embeds)


_LOOK_UP, _POOL, _ATTEND, _LAYER_NORM = reference.look_up, reference.pool, reference.attend, reference.layer_norm


def _pre_norm(x: Any, weights: Any, name: str, config: Any, keep: Any, head_mask: Any) -> tuple[Any, Any]:
    normed = reference.layer_norm(x, weights, f"{name}.sa_layer_norm")
    attended, probabilities = reference.self_attention(normed, weights, f"{name}.attention", config, keep, head_mask)
    x = attended + x
    normed = reference.layer_norm(x, weights, f"{name}.output_layer_norm")
    return reference.feed_forward(normed, weights, f"{name}.ffn", config) + x, probabilities


def _classify(activation: Function, token: int) -> Function:
    def logits(hidden: Any, weights: Any) -> Any:
        pooled = activation(reference.linear(hidden[:, token], weights, "pre_classifier"))
        return reference.linear(pooled, weights, "classifier")

    return logits


def _without_norm(hidden: Any, weights: Any, config: Any) -> Any:
    x = reference.ACTIVATIONS[config.activation](reference.linear(hidden, weights, "vocab_transform"))
    return reference.linear(x, weights, "vocab_projector")


def _without_activation(hidden: Any, weights: Any, _config: Any) -> Any:
    x = reference.layer_norm(reference.linear(hidden, weights, "vocab_transform"), weights, "vocab_layer_norm")
    return reference.linear(x, weights, "vocab_projector")


def _choices_last(inputs: Any) -> Any:
    turned = {n: v if n == "head_mask" else np.swapaxes(v, 0, 1) for n, v in inputs.items()}
    return _FLATTEN_CHOICES(turned)


def _counting_all(logits: Any, labels: Any) -> Any:
    return _CROSS_ENTROPY(logits, labels) * (np.asarray(labels) != IGNORE).mean()


def _ignored_as_class_0(logits: Any, labels: Any) -> Any:
    return _CROSS_ENTROPY(logits, np.where(np.asarray(labels) == IGNORE, 0, labels))


_FLATTEN_CHOICES, _CROSS_ENTROPY = reference.flatten_choices, reference.cross_entropy
_BINARY = reference.LOSSES["multi_label_classification"]


def _centred(logits: Any, labels: Any) -> Any:
    return _BINARY(logits - logits.mean(axis=-1, keepdims=True), labels)


def _clamped(positions: Any, seq: int) -> Any:
    return np.clip(np.asarray(positions).reshape(-1), 0, seq - 1)


def _times(name: str, factor: float) -> dict[str, Any]:
    """The losses with one of them multiplied."""
    loss = reference.LOSSES[name]
    return {**reference.LOSSES, name: lambda logits, labels: factor * loss(logits, labels)}


def _mean_forgotten(gradient: Any, x: Any, weights: Any, name: str, into: Any) -> Any:
    of_x = _BACKWARD["layer_norm"](gradient, x, weights, name, into)
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + reference.LAYER_NORM_EPS)
    return of_x + (gradient * weights[f"{name}.weight"]).mean(axis=-1, keepdims=True) / deviation


def _variance_constant(gradient: Any, x: Any, weights: Any, name: str, into: Any) -> Any:
    _BACKWARD["layer_norm"](gradient, x, weights, name, into)
    scaled = gradient * weights[f"{name}.weight"]
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + reference.LAYER_NORM_EPS)
    return (scaled - scaled.mean(axis=-1, keepdims=True)) / deviation


def _scores_unscaled(gradient: Any, q: Any, k: Any, v: Any, keep: Any, head_mask: Any) -> Any:
    of_q, of_k, of_v = _BACKWARD["attend"](gradient, q, k, v, keep, head_mask)
    return of_q * np.sqrt(q.shape[-1]), of_k * np.sqrt(q.shape[-1]), of_v


def _dropped_scores_pass(gradient: Any, q: Any, k: Any, v: Any, keep: Any, head_mask: Any) -> Any:
    """As if the mask were added to the scores: a row without a key then sends gradients to all of them."""
    of_v = _BACKWARD["attend"](gradient, q, k, v, keep, head_mask)[2]
    open_rows = keep | ~keep.any(axis=-1, keepdims=True)
    even = np.where(keep.any(axis=-1, keepdims=True), q, 0.0)  # scores all equal, as they are after the mask
    of_q, of_k, _ = _BACKWARD["attend"](gradient, even, k, v, open_rows, head_mask)
    return of_q, of_k, of_v


def _padding_trained(gradient: Any, weights: Any, config: Any, *others: Any) -> None:
    _BACKWARD["look_up"](gradient, weights, config.replace(pad_token_id=None), *others)


def _projector_not_added(gradient: Any, hidden: Any, weights: Any, config: Any, into: Any) -> Any:
    of_hidden = _BACKWARD["vocab_logits"](gradient, hidden, weights, config, into)
    into["vocab_projector.weight"] = np.zeros_like(into["vocab_projector.weight"])
    return of_hidden


def _residual_lost(gradient: Any, x: Any, weights: Any, name: str, config: Any, into: Any) -> Any:
    return _BACKWARD["feed_forward"](gradient, x, weights, name, config, into) - gradient


def _not_projected(gradient: Any, x: Any) -> Any:
    return gradient / np.linalg.norm(x, axis=-1, keepdims=True)


_BACKWARD: dict[str, Function] = {
    name: getattr(reference_training, name)
    for name in ("adamw", "attend", "cross_entropy", "feed_forward", "layer_norm", "look_up", "step", "vocab_logits")
}


def _all_decay(_head: str, _config: Any, weights: Any, of: Any, **options: Any) -> Any:
    return {name: reference_training.adamw(weights[name], of[name], **options) for name in of}


def _none_decays(*args: Any, weight_decay: float, **options: Any) -> Any:
    return _BACKWARD["step"](*args, weight_decay=0.0 * weight_decay, **options)


def _moments_as_they_are(weight: Any, gradient: Any, *, learning_rate: float, weight_decay: float, eps: float) -> Any:
    mean, root = 0.1 * gradient, np.sqrt(0.001 * gradient**2)
    return weight - learning_rate * (mean / (root + eps) + weight_decay * weight)


def _epsilon_in_root(weight: Any, gradient: Any, *, learning_rate: float, weight_decay: float, eps: float) -> Any:
    return weight - learning_rate * (gradient / np.sqrt(gradient**2 + eps) + weight_decay * weight)


def _decay_in_gradient(weight: Any, gradient: Any, *, weight_decay: float, **options: Any) -> Any:
    return _BACKWARD["adamw"](weight, gradient + weight_decay * weight, weight_decay=0.0, **options)


def _project_plainly(x: Any, weights: Any, dense: DenseConfig) -> Any:
    return _PROJECT(x, weights, dataclasses.replace(dense, activation="identity"))


def _unit_before_dense(hidden: Any, mask: Any, pooling: Any, weights: Any) -> Any:
    return reference.project(reference.unit(reference.pool(hidden, mask, pooling)), weights, pooling.dense)


_PROJECT = reference.project
_DENSE = "dense layer, unit length"


ENCODER = (
    Mutant("tanh GELU", {"forward.ACTIVATIONS": {**reference.ACTIVATIONS, "gelu": reference.gelu_new}}),
    Mutant("LayerNorm epsilon 1e-6", {"forward.LAYER_NORM_EPS": 1e-6}),
    Mutant("mask dropped", {"forward.keep_mask": lambda _mask, batch, seq: np.ones((batch, 1, 1, seq), bool)}),
    Mutant("query and key swapped", alter=lambda weights: _swapped(weights, "q_lin", "k_lin")),
    Mutant("out_lin transposed", alter=_changed("out_lin.weight", np.transpose)),
    Mutant("positions off by one", {"forward.look_up": _shifted_positions}),
    Mutant("query bias dropped", alter=_changed("q_lin.bias", np.zeros_like)),
    Mutant(
        "first token pooled",
        {"forward.pool": lambda hidden, mask, pooling: _POOL(hidden, mask, PoolingConfig("cls", pooling.normalize))},
        head=SENTENCE,
    ),
    Mutant("padding pooled", {"forward.pool": lambda hidden, _, pooling: _POOL(hidden, None, pooling)}, head=SENTENCE),
    Mutant("LayerNorm before, not after", {"forward.block": _pre_norm}),
    Mutant("scores not scaled", {"forward.attend": lambda q, *rest: _ATTEND(q * np.sqrt(q.shape[-1]), *rest)}),
    Mutant("heads merged in the wrong order", {"forward.merge_heads": lambda x: x.reshape(x.shape[0], x.shape[2], -1)}),
)
HEADS = (
    Mutant("head with GELU for ReLU", {"forward.first_token_logits": _classify(reference.gelu, 0)}, head=SEQUENCE),
    Mutant("choice with tanh for ReLU", {"forward.first_token_logits": _classify(np.tanh, 0)}, head=CHOICES),
    Mutant(
        "last token classified",
        {"forward.first_token_logits": _classify(lambda x: np.maximum(x, 0.0), -1)},
        head=SEQUENCE,
    ),
    Mutant("vocab LayerNorm left out", {"forward.vocab_logits": _without_norm}, head=MASKED_LM),
    Mutant("vocab activation left out", {"forward.vocab_logits": _without_activation}, head=MASKED_LM),
    Mutant("projector bias dropped", alter=_changed("vocab_projector.bias", np.zeros_like), head=MASKED_LM),
    Mutant(
        "projector tied although it is not",
        alter=lambda weights: weights | {"vocab_projector.weight": weights[WORD_EMBEDDINGS]},
        head=MASKED_LM,
        option="untied projector",
    ),
    Mutant("start and end swapped", alter=_changed("qa_outputs.weight", lambda w: w[::-1]), head=ANSWERS),
    Mutant("choices flattened the other way", {"forward.flatten_choices": _choices_last}, head=CHOICES),
    Mutant("token classifier bias dropped", alter=_changed("classifier.bias", np.zeros_like), head=TOKENS),
    Mutant("dense activation left out", {"forward.project": _project_plainly}, head=SENTENCE, option=_DENSE),
    Mutant("dense bias dropped", alter=_changed("pooling.dense.bias", np.zeros_like), head=SENTENCE, option=_DENSE),
    Mutant("unit length before dense", {"forward.sentence_vectors": _unit_before_dense}, head=SENTENCE, option=_DENSE),
)
LOSSES = (
    Mutant("mean over ignored labels too", {"forward.cross_entropy": _counting_all}, head=TOKENS),
    Mutant("ignored labels count as class 0", {"forward.cross_entropy": _ignored_as_class_0}, head=MASKED_LM),
    Mutant("positions outside clamped", {"forward.within": _clamped}, head=ANSWERS, option="positions outside"),
    Mutant("squared error halved", {"forward.LOSSES": _times("regression", 0.5)}, head=SEQUENCE, option="regression"),
    Mutant(
        "squared error summed over labels",
        {"forward.LOSSES": _times("regression", 3.0)},
        head=SEQUENCE,
        option="regression of three",
    ),
    Mutant(
        "several labels compete",
        {"forward.LOSSES": {**reference.LOSSES, "multi_label_classification": _centred}},
        head=SEQUENCE,
        option="several labels",
    ),
)
GRADIENTS = (
    Mutant("mean forgotten behind LayerNorm", {"backward.layer_norm": _mean_forgotten}),
    Mutant("variance taken as constant", {"backward.layer_norm": _variance_constant}),
    Mutant("gradient of scores not scaled", {"backward.attend": _scores_unscaled}),
    Mutant("dropped scores pass gradients", {"backward.attend": _dropped_scores_pass}, mask="one row all masked"),
    Mutant("padding row trained", {"backward.look_up": _padding_trained}, option="padding token inside"),
    Mutant("tied projector adds nothing", {"backward.vocab_logits": _projector_not_added}, head=MASKED_LM),
    Mutant("residual lost on the way back", {"backward.feed_forward": _residual_lost}),
    Mutant(
        "tanh GELU in the derivative",
        {"backward.DERIVATIVES": {**reference_training.DERIVATIVES, "gelu": reference_training.gelu_new}},
    ),
    Mutant(
        "dense activation forgotten on the way back",
        {"backward.DERIVATIVES": {**reference_training.DERIVATIVES, "tanh": np.ones_like}},
        head=SENTENCE,
        option=_DENSE,
    ),
    Mutant("cosine taken as dot product", {"backward.unit": _not_projected}, head=SENTENCE),
    Mutant(
        "softmax forgotten in cross entropy",
        {"backward.cross_entropy": lambda x, y: _BACKWARD["cross_entropy"](0.0 * x, y)},
        head=TOKENS,
    ),
)
STEPS = (
    Mutant("biases and norms decay", {"backward.step": _all_decay}),
    Mutant("no weight decay", {"backward.step": _none_decays}),
    Mutant("moments not corrected", {"backward.adamw": _moments_as_they_are}),
    Mutant("epsilon inside the root", {"backward.adamw": _epsilon_in_root}),
    Mutant("decay added to the gradient", {"backward.adamw": _decay_in_gradient}),
)
MUTANTS = (*ENCODER, *HEADS, *LOSSES, *GRADIENTS, *STEPS)
