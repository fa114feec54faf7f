"""Checks of the models' arguments: one place, one text per mistake, used by all three backends.

Shapes are always checked. Values are checked where they can be read: a backend passes `values(array)`, which returns
a NumPy array, or None for a traced or symbolic array. A dimension that is not known yet is None and passes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distilbert.config import DistilBertConfig

Values = Callable[[Any], "np.ndarray[Any, Any] | None"]
Shape = tuple[int | None, ...]

IGNORE = -100  # the label of a position that does not count
_WEIGHT_DTYPES = ("float16", "bfloat16", "float32", "float64")

NO_TOKEN_TYPES = "token_type_ids is not an argument: DistilBERT has no token types. Drop it from the inputs."  # noqa: S105
ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "inputs_embeds",
    "head_mask",
    "labels",
    "start_positions",
    "end_positions",
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
    suggestion = f"; did you mean {close[0]}?" if close and close[0] != name else " of this class."
    raise TypeError(f"{name} is not an argument{suggestion}")


def no_array(name: str, value: Any) -> str:
    """What is said of an argument that cannot be made an array."""
    kind = type(value).__name__
    hint = "; pad its rows to one length" if isinstance(value, list | tuple) else ""
    return f"{name} must be an array of numbers, got a {kind} that is none{hint}."


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
        raise ValueError(_one_of_two(input_ids))
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


def check_choices(input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any) -> int | None:
    """Check that every per-token argument of multiple choice has the axes (batch, num_choices, ...).

    Returns num_choices. What else must hold is checked on the flattened arguments, by `check_inputs`.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(_one_of_two(input_ids))
    name, array = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    rank = 3 if inputs_embeds is None else 4
    if len(_shape(array)) != rank:
        axes = "(batch, num_choices, seq)" if rank == 3 else "(batch, num_choices, seq, dim)"
        raise ValueError(f"{name} must have the shape {axes}, got {_shape(array)}.")
    leading = _shape(array)[:2]
    for name, other, ranks in (("attention_mask", attention_mask, (3, 4, 5)), ("position_ids", position_ids, (3,))):
        if other is not None and not (len(_shape(other)) in ranks and _matches(_shape(other)[:2], leading)):
            wanted = f"(batch={leading[0]}, num_choices={leading[1]}, seq)"
            raise ValueError(f"{name} must have the shape {wanted}, as {rank - 1}-D input has, got {_shape(other)}.")
    return leading[1]


def check_token_labels(labels: Any, logits: Any, values: Values) -> None:
    """Labels of classes: integers of the shape of the logits without their last axis, in range or -100.

    Raises:
        ValueError: names what must hold, and what came.
    """
    shape, num_classes = _shape(logits)[:-1], _shape(logits)[-1]
    if not _matches(_shape(labels), shape):
        raise ValueError(f"labels must have the shape {shape}, got {_shape(labels)}.")
    if not _is_integer(labels):
        raise ValueError(f"labels must be integers, got the dtype {_dtype_name(labels)}.")
    read = values(labels)
    if read is not None and num_classes is not None:
        read = read.astype(np.int64)
        wrong = read[(read != IGNORE) & ((read < 0) | (read >= num_classes))]
        if wrong.size:
            raise ValueError(
                f"labels must lie in 0 to {num_classes - 1}, or be {IGNORE} to be ignored, got {wrong[0]}."
            )


def check_sequence_labels(config: DistilBertConfig, labels: Any, logits: Any) -> str:
    """The problem type that the config states, else the one that num_labels and the dtype of the labels show.

    Raises:
        ValueError: the labels do not have the shape that the problem type needs.
    """
    batch, num_labels = _shape(logits)
    kind = config.problem_type
    if kind is None and num_labels == 1:
        kind = "regression"
    elif kind is None:
        kind = "single_label_classification" if _is_integer(labels) else "multi_label_classification"
    allowed: list[Shape] = [(batch, num_labels)]
    if kind == "single_label_classification":
        allowed = [(batch,)]
    elif kind == "regression" and num_labels == 1:
        allowed = [(batch,), (batch, 1)]
    if not any(_matches(_shape(labels), one) for one in allowed):
        listed = " or ".join(map(str, allowed))
        hint = "" if config.problem_type else " (derived from the labels; set problem_type in the config to choose)"
        raise ValueError(f"labels must have the shape {listed} for {kind}{hint}, got {_shape(labels)}.")
    return kind


def check_spans(start_positions: Any, end_positions: Any, start_logits: Any) -> None:
    """Start and end come together, as integers of (batch,) or (batch, 1); ones outside the sequence are ignored."""
    if start_positions is None or end_positions is None:
        found = "neither" if start_positions is end_positions else "one"
        raise ValueError(f"start_positions and end_positions must be given together, got {found} of them.")
    batch = _shape(start_logits)[0]
    for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
        if not any(_matches(_shape(positions), one) for one in ((batch,), (batch, 1))):
            raise ValueError(f"{name} must have the shape (batch,), here ({batch},), got {_shape(positions)}.")
        if not _is_integer(positions):
            raise ValueError(f"{name} must be integers, got the dtype {_dtype_name(positions)}.")


def check_pairs(anchors: Any, positives: Any) -> None:
    """Anchors and positives: as many vectors, of one width, at least one."""
    if len(_shape(anchors)) != 2 or not _matches(_shape(anchors), _shape(positives)) or 0 in _shape(anchors):
        shapes = f"{_shape(anchors)} and {_shape(positives)}"
        raise ValueError(f"anchors and positives must have the same shape (batch, dim), got {shapes}.")


def check_weights(
    shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Any], tied: Sequence[str], source: str
) -> None:
    """Refuse weights that are not exactly those of a model, before the first is assigned.

    Args:
        shapes: of every tensor of the model, by name.
        weights: arrays by name.
        tied: names that may be missing, since they are `source` under another name; when given, they must equal it.
        source: the name of the word embeddings.

    Raises:
        ValueError: names what is missing, unknown, of a wrong shape, or not what it is tied to.
        TypeError: names what is not an array of floating-point numbers.
    """
    missing, unknown = sorted(shapes.keys() - weights.keys() - {*tied}), sorted(weights.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(f"weights must be those of the model; missing: {missing[:5]}, unknown: {unknown[:5]}.")
    for name, array in weights.items():
        dtype = str(getattr(array, "dtype", type(array).__name__))
        if dtype not in _WEIGHT_DTYPES:
            raise TypeError(f"{name} must be an array of {', '.join(_WEIGHT_DTYPES)}, got {dtype}.")
        if array.shape != shapes[name]:
            raise ValueError(f"{name} must have the shape {shapes[name]}, got {array.shape}.")
    for name in tied:
        if name in weights and not np.array_equal(weights[name], weights[source]):
            raise ValueError(f"{name} must equal {source}, to which tie_word_embeddings ties it.")


def _one_of_two(input_ids: Any) -> str:
    found = "neither" if input_ids is None else "both"
    return f"exactly one of input_ids and inputs_embeds must be given, got {found}."


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
    if read is not None and not (valid := (read == 0) | (read == 1)).all():
        wrong = read[~valid][0]
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
    if _dtype_name(array) not in ("int32", "int64"):
        raise ValueError(f"{name} must be of the dtype int32 or int64, got {_dtype_name(array)}.")


def _is_integer(array: Any) -> bool:
    return _dtype_name(array).startswith(("int", "uint"))


def _dtype_name(array: Any) -> str:
    return str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")


def _check_range(name: str, array: Any, limit: int, limit_name: str, values: Values) -> None:
    read = values(array)
    if read is not None and read.size and not (read.min() >= 0 and read.max() < limit):
        wrong = read.min() if read.min() < 0 else read.max()
        raise ValueError(f"{name} must lie in 0 to {limit - 1} ({limit_name}={limit}), got {wrong}.")


def _shape(array: Any) -> Shape:
    return tuple(array.shape)
