"""Checks of the models' arguments: one place, one text per mistake, used by all three backends.

Shapes are always checked. Values are checked where they can be read: a backend passes `values(array)`, which returns
a NumPy array, or None for a traced or symbolic array. A dimension that is not known yet is None and passes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distilbert.config import DistilBertConfig

Values = Callable[[Any], "np.ndarray[Any, Any] | None"]
Shape = tuple[int | None, ...]

NO_TOKEN_TYPES = "token_type_ids is not an argument: DistilBERT has no token types. Drop it from the inputs."  # noqa: S105
ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "inputs_embeds",
    "head_mask",
    "output_hidden_states",
    "output_attentions",
)


def check_no_unknown(unknown: Mapping[str, Any]) -> None:
    """Refuse keywords that the models do not have, instead of swallowing them."""
    if not unknown:
        return
    name = next(iter(unknown))
    if name == "token_type_ids":
        raise TypeError(NO_TOKEN_TYPES)
    close = difflib.get_close_matches(name, ARGUMENTS, n=1)
    raise TypeError(f"{name} is not an argument" + (f"; did you mean {close[0]}?" if close else "."))


def check_inputs(
    config: DistilBertConfig,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    inputs_embeds: Any,
    head_mask: Any,
    values: Values,
) -> None:
    """Check the encoder's arguments against the config and each other.

    Raises:
        ValueError: names the argument, what must hold, and what came.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            f"exactly one of input_ids and inputs_embeds must be given, got {_both_or_neither(input_ids)}."
        )
    batch, seq = _check_tokens(config, input_ids, inputs_embeds, values)
    _check_mask(config, attention_mask, batch, seq, values)
    if position_ids is not None:
        _check_shape("position_ids", position_ids, [(batch, seq), (1, seq)], "(batch, seq) or (1, seq)")
        _check_integer("position_ids", position_ids)
        _check_range("position_ids", position_ids, config.max_position_embeddings, "max_position_embeddings", values)
    if head_mask is not None:
        if config.pruned_heads:
            raise ValueError("head_mask cannot be used with pruned_heads: the pruned heads are gone already.")
        shapes: list[Shape] = [(config.n_heads,), (config.n_layers, config.n_heads)]
        _check_shape("head_mask", head_mask, shapes, "(n_heads,) or (n_layers, n_heads)")


def check_pooling_mask(attention_mask: Any) -> None:
    """Pooling needs to know which tokens count, which only a (batch, seq) mask says."""
    if attention_mask is not None and len(attention_mask.shape) != 2:
        raise ValueError(
            f"attention_mask must have the shape (batch, seq) for a sentence embedding, got {_shape(attention_mask)}."
        )


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly those of a model, before the first is assigned.

    Raises:
        ValueError: names what is missing, unknown, or of a wrong shape.
    """
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(f"weights must be those of the model; missing: {missing[:5]}, unknown: {unknown[:5]}.")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {weights[name].shape}.")


def _both_or_neither(input_ids: Any) -> str:
    return "neither" if input_ids is None else "both"


def _check_tokens(
    config: DistilBertConfig, input_ids: Any, inputs_embeds: Any, values: Values
) -> tuple[int | None, int | None]:
    """Check ids or embeddings and return (batch, seq)."""
    name, array, rank = ("input_ids", input_ids, 2) if inputs_embeds is None else ("inputs_embeds", inputs_embeds, 3)
    shape = _shape(array)
    axes = "(batch, seq)" if rank == 2 else f"(batch, seq, dim={config.dim})"
    if len(shape) != rank or (rank == 3 and shape[2] not in (None, config.dim)):
        raise ValueError(f"{name} must have the shape {axes}, got {shape}.")
    if 0 in shape:
        raise ValueError(f"{name} must hold at least one token, got the shape {shape}.")
    batch, seq = shape[:2]
    if seq is not None and seq > config.max_position_embeddings:
        raise ValueError(
            f"{name} has {seq} tokens per row, more than max_position_embeddings={config.max_position_embeddings}: "
            "truncate the text, or split it into windows."
        )
    if rank == 2:
        _check_integer("input_ids", input_ids)
        _check_range("input_ids", input_ids, config.vocab_size, "vocab_size", values)
    return batch, seq


def _check_mask(config: DistilBertConfig, mask: Any, batch: int | None, seq: int | None, values: Values) -> None:
    if mask is None:
        return
    shapes: list[Shape] = [(batch, seq), (batch, seq, seq), (batch, 1, seq, seq)]
    if not config.pruned_heads:  # otherwise the layers differ in their number of heads
        shapes.append((batch, config.n_heads, seq, seq))
    _check_shape("attention_mask", mask, shapes, "(batch, seq), (batch, seq, seq) or (batch, 1 or n_heads, seq, seq)")
    read = values(mask)
    if read is not None and not np.isin(read, (0, 1)).all():
        wrong = read[~np.isin(read, (0, 1))].ravel()[0]
        raise ValueError(f"attention_mask must hold only 1 (keep) and 0 (drop), got {wrong}.")


def _check_shape(name: str, array: Any, allowed: list[Shape], text: str) -> None:
    shape = _shape(array)
    if not any(_matches(shape, one) for one in allowed):
        listed = ", ".join(str(one) for one in allowed)
        raise ValueError(f"{name} must have the shape {text}, here one of {listed}, got {shape}.")


def _matches(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True)
    )


def _check_integer(name: str, array: Any) -> None:
    dtype = str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")
    if dtype not in ("int32", "int64"):
        raise ValueError(f"{name} must be of the dtype int32 or int64, got {dtype}.")


def _check_range(name: str, array: Any, limit: int, limit_name: str, values: Values) -> None:
    read = values(array)
    if read is not None and read.size and not (read.min() >= 0 and read.max() < limit):
        wrong = read.min() if read.min() < 0 else read.max()
        raise ValueError(f"{name} must lie in 0 to {limit - 1} ({limit_name}={limit}), got {wrong}.")


def _shape(array: Any) -> Shape:
    return tuple(array.shape)
