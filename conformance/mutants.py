"""Deliberate faults in the reference: each must make a comparison with a correct backend fail.

A mutant replaces functions of `distilbert.reference`, or alters the weights that the reference gets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distilbert import reference
from distilbert.config import PoolingConfig

Weights = dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """A named fault: replacements of the reference's attributes, and a change of its weights."""

    name: str
    replace: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alter: Callable[[Weights], Weights] = lambda weights: weights


def _swapped(weights: Weights, one: str, other: str) -> Weights:
    exchange = {one: other, other: one}
    return {name: weights[".".join(exchange.get(part, part) for part in name.split("."))] for name in weights}


def _changed(weights: Weights, ending: str, change: Callable[[Any], Any]) -> Weights:
    return {name: change(value) if name.endswith(ending) else value for name, value in weights.items()}


def _shifted_positions(embed: Callable[..., Any]) -> Callable[..., Any]:
    def shifted(weights: Any, input_ids: Any, position_ids: Any, inputs_embeds: Any) -> Any:
        rows = weights["distilbert.embeddings.position_embeddings.weight"]
        moved = {**weights, "distilbert.embeddings.position_embeddings.weight": np.roll(rows, -1, axis=0)}
        return embed(moved, input_ids, position_ids, inputs_embeds)

    return shifted


def _first_token(pool: Callable[..., Any]) -> Callable[..., Any]:
    return lambda hidden, mask, pooling: pool(hidden, mask, PoolingConfig("cls", pooling.normalize))


def _blind_to_mask(pool: Callable[..., Any]) -> Callable[..., Any]:
    return lambda hidden, _mask, pooling: pool(hidden, None, pooling)


def _pre_norm(x: Any, weights: Any, name: str, config: Any, keep: Any, head_mask: Any) -> tuple[Any, Any]:
    normed = reference.layer_norm(x, weights, f"{name}.sa_layer_norm")
    attended, probabilities = reference.self_attention(normed, weights, f"{name}.attention", config, keep, head_mask)
    x = attended + x
    normed = reference.layer_norm(x, weights, f"{name}.output_layer_norm")
    return reference.feed_forward(normed, weights, f"{name}.ffn", config) + x, probabilities


def _unscaled(attend: Callable[..., Any]) -> Callable[..., Any]:
    return lambda q, k, v, keep, head_mask: attend(q * np.sqrt(q.shape[-1]), k, v, keep, head_mask)


MUTANTS = (
    Mutant("tanh GELU", {"ACTIVATIONS": {**reference.ACTIVATIONS, "gelu": reference.gelu_new}}),
    Mutant("LayerNorm epsilon 1e-6", {"LAYER_NORM_EPS": 1e-6}),
    Mutant("mask dropped", {"keep_mask": lambda _mask, batch, seq: np.ones((batch, 1, 1, seq), bool)}),
    Mutant("query and key swapped", alter=lambda weights: _swapped(weights, "q_lin", "k_lin")),
    Mutant("out_lin transposed", alter=lambda weights: _changed(weights, "out_lin.weight", np.transpose)),
    Mutant("positions off by one", {"embed": _shifted_positions(reference.embed)}),
    Mutant("query bias dropped", alter=lambda weights: _changed(weights, "q_lin.bias", np.zeros_like)),
    Mutant("first token pooled", {"pool": _first_token(reference.pool)}),
    Mutant("padding pooled", {"pool": _blind_to_mask(reference.pool)}),
    Mutant("LayerNorm before, not after", {"block": _pre_norm}),
    Mutant("scores not scaled", {"attend": _unscaled(reference.attend)}),
    Mutant("heads merged in the wrong order", {"merge_heads": lambda x: x.reshape(x.shape[0], x.shape[2], -1)}),
)


@contextlib.contextmanager
def planted(mutant: Mutant) -> Generator[None]:
    """The reference with the mutant's functions in place of its own."""
    original = {name: getattr(reference, name) for name in mutant.replace}
    try:
        for name, value in mutant.replace.items():
            setattr(reference, name, value)
        yield
    finally:
        for name, value in original.items():
            setattr(reference, name, value)
