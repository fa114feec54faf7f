"""Changes of a trained model's shape: its vocabulary, its positions, its attention heads.

Functions of (config, canonical weights) that return the new config and the tensors that change, in their dtype, so that
the three backends do the same. Rows that stay keep their bits; new rows follow the rule of `initialization`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert.config import DistilBertConfig
from distilbert.initialization import initial_tensor
from distilbert.weight_map import (
    POSITION_EMBEDDINGS,
    PROJECTOR_BIAS,
    TIED_PROJECTOR,
    WORD_EMBEDDINGS,
    TensorSpec,
    tensor_specs,
    tied,
)

Weights = Mapping[str, NDArray[Any]]
Change = tuple[DistilBertConfig, dict[str, NDArray[Any]]]


def resize_vocabulary(
    config: DistilBertConfig,
    head: str,
    weights: Weights,
    new_num_tokens: int,
    pad_to_multiple_of: int | None,
    seed: int,
) -> Change:
    """The word embeddings, and the projector and its bias where there is one, with `new_num_tokens` rows.

    Raises:
        ValueError: a size is not positive, or pad_token_id would lie outside.
    """
    _check_positive("new_num_tokens", new_num_tokens)
    _check_seed(seed)
    if pad_to_multiple_of is not None:
        _check_positive("pad_to_multiple_of", pad_to_multiple_of)
        new_num_tokens = -(-new_num_tokens // pad_to_multiple_of) * pad_to_multiple_of
    config = config.replace(vocab_size=int(new_num_tokens))
    names = (WORD_EMBEDDINGS, TIED_PROJECTOR, PROJECTOR_BIAS)
    changed = _resized(config, head, weights, names, seed)
    return config, changed | dict.fromkeys(tied(config, head), changed[WORD_EMBEDDINGS])


def resize_positions(
    config: DistilBertConfig, head: str, weights: Weights, new_num_positions: int, seed: int
) -> Change:
    """The position table with `new_num_positions` rows; new ones are the sinusoid's where the config asks for it.

    Raises:
        ValueError: the size is not positive.
    """
    _check_positive("new_num_position_embeddings", new_num_positions)
    _check_seed(seed)
    config = config.replace(max_position_embeddings=int(new_num_positions))
    return config, _resized(config, head, weights, [POSITION_EMBEDDINGS], seed)


def prune_heads(config: DistilBertConfig, head: str, weights: Weights, heads: Mapping[int, Iterable[int]]) -> Change:
    """The attention projections of some layers without some heads, which are numbered as in the unpruned model.

    Raises:
        ConfigError: there is no such layer or head, or a layer would be left without one.
    """
    before, more = config.pruned_heads, config.replace(pruned_heads=heads).pruned_heads
    after = {layer: {*before.get(layer, ()), *more.get(layer, ())} for layer in before.keys() | more.keys()}
    pruned = config.replace(pruned_heads={layer: gone for layer, gone in after.items() if gone})
    changed: dict[str, NDArray[Any]] = {}
    for name, spec in tensor_specs(pruned, head).items():
        if spec.layer is not None and weights[name].shape != spec.shape:
            left = [h for h in range(config.n_heads) if h not in before.get(spec.layer, ())]
            keep = np.repeat([h not in pruned.pruned_heads[spec.layer] for h in left], config.head_dim)
            changed[name] = weights[name].compress(keep, spec.module.shape.index("attention_dim"))
    return pruned, changed


def _resized(
    config: DistilBertConfig, head: str, weights: Weights, names: Iterable[str], seed: int
) -> dict[str, NDArray[Any]]:
    specs = tensor_specs(config, head)
    return {name: _with_rows(config, specs[name], weights[name], seed) for name in names if name in specs}


def _with_rows(config: DistilBertConfig, spec: TensorSpec, old: NDArray[Any], seed: int) -> NDArray[Any]:
    """The first rows of `old`, and below them initial ones, which no other tensor has for any seed."""
    random = np.random.RandomState([seed, zlib.crc32(spec.name.encode())])
    new = initial_tensor(config, spec, random).astype(old.dtype)
    kept = min(len(old), len(new))
    new[:kept] = old[:kept]
    return new


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def _check_seed(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 1 << 32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {value!r}.")
