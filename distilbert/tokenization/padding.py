"""Rows of different lengths to one width, as lists or as arrays of each framework."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from distilbert.optional import require
from distilbert.tokenization.checks import as_plain, as_sequence, check_choice, check_count, shown
from distilbert.tokenization.options import SIDES, Side

TensorType = Literal["np", "pt", "tf", "jax"]
_TENSOR_TYPES = (None, *get_args(TensorType))
_WIDTHS: dict[Any, Any] = {
    True: "longest",
    "longest": "longest",
    False: None,
    None: None,
    "do_not_pad": None,
    "max_length": None,
}
_PADDINGS = tuple(_WIDTHS)


class Padding(NamedTuple):
    """How rows get one width.

    Attributes:
        width: "longest", that of the longest row; a number of tokens; None: rows stay as they are.
        multiple: the width is rounded up to a multiple of this.
        side: where padding is put.
    """

    width: Literal["longest"] | int | None = None
    multiple: int | None = None
    side: Side = "right"

    def columns(self, rows: Sequence[Sequence[Any]]) -> int | None:
        """The width of a batch, never below that of its longest row; None where nothing is padded."""
        if self.width is None:
            return None
        longest = max(map(len, rows), default=0)
        width = longest if self.width == "longest" else max(self.width, longest)
        return -(-width // self.multiple) * self.multiple if self.multiple else width


def read_padding(padding: Any, limit: int | None, multiple: int | None, side: Side) -> Padding:
    """What the arguments of a call say about padding; `limit` is the width for "max_length".

    Raises:
        ValueError: an argument is wrong.
    """
    check_choice("padding", padding, _PADDINGS)
    check_choice("padding_side", side, SIDES)
    if multiple is not None:
        multiple = check_count("pad_to_multiple_of", multiple, 1)
    if padding == "max_length":
        if limit is None:
            raise ValueError("padding='max_length' needs max_length: the tokenizer has no model_max_length.")
        return Padding(check_count("max_length", limit, 0), multiple, side)
    return Padding(_WIDTHS[padding], multiple, side)


def check_tensor_type(kind: str | None) -> None:
    """Refuse an unknown name of a framework.

    Raises:
        ValueError: it is not one of None, "np", "pt", "tf", "jax".
    """
    check_choice("return_tensors", kind, _TENSOR_TYPES)


def read_columns(encoded: Any) -> tuple[dict[str, list[Any]], bool]:
    """What is to be padded as lists of rows by name, and whether there were several rows, not one by itself.

    Raises:
        ValueError: there are no `input_ids`, or rows have different names. TypeError: they are no rows of numbers.
    """
    if not isinstance(encoded, Mapping):
        encoded = _by_name(as_sequence("encoded", encoded))
    columns: dict[str, Any] = {name: as_plain(rows) for name, rows in encoded.items()}
    if not isinstance(columns.get("input_ids"), list):
        raise ValueError(  # noqa: TRY004 - they are missing
            f"what is padded must have input_ids, got {', '.join(columns) or 'nothing'}."
        )
    batched = not any(isinstance(i, int) for i in columns["input_ids"])
    rows = {name: list(map(as_plain, values)) if batched else [values] for name, values in columns.items()}
    for i, row in enumerate(rows["input_ids"]):
        if not isinstance(row, list) or not all(type(token) is int for token in row):
            raise TypeError(f"input_ids must be rows of whole numbers, got {shown(row)} as row {i}.")
    return rows, batched


def _by_name(rows: list[Any]) -> dict[str, list[Any]]:
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or row.keys() != rows[0].keys():
            raise ValueError(f"every row that is padded must have the names of the first one, row {i} has not.")
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {"input_ids": []}


def check_lengths(columns: Mapping[str, list[Any]]) -> None:
    """Refuse a column whose rows are not as long as those of `input_ids`.

    Raises:
        ValueError: there is one.
    """
    lengths = [len(row) for row in columns["input_ids"]]
    for name, rows in columns.items():
        if [len(row) for row in rows] != lengths:
            raise ValueError(f"{name} must have a value for each token of input_ids, got rows of other lengths.")


def pad_columns(
    columns: Mapping[str, list[Any]],
    fills: Mapping[str, Any],
    padding: Padding,
    kind: TensorType | None,
    *,
    attention_mask: bool,
) -> dict[str, Any]:
    """The columns of a batch, padded and as arrays of a framework.

    Args:
        columns: lists of rows by name, with a value per token; `input_ids` among them.
        fills: what padding has in each.
        padding: how.
        kind: of the arrays; None for lists.
        attention_mask: add the mask of what is no padding.

    Raises:
        ValueError: arrays are wanted, and rows without padding have different lengths.
    """
    rows = columns["input_ids"]
    width = padding.columns(rows)
    if kind is None:
        masks = {"attention_mask": [[1] * len(row) for row in rows]} if attention_mask else {}
        columns = {**columns, **masks}
        return {name: _pad_lists(values, width, fills[name], padding.side) for name, values in columns.items()}
    if len(rows) == 1 and rows[0] and width in (None, len(rows[0])):  # as below, but quicker
        arrays = {name: np.array(values, np.int64) for name, values in columns.items()}
        mask = np.array([[1] * len(rows[0])], np.int64)
    else:
        kept = _kept_positions(rows, width, padding.side)
        arrays = {name: _pad_array(values, kept, fills[name]) for name, values in columns.items()}
        mask = kept.astype(np.int64)
    if attention_mask:
        arrays["attention_mask"] = mask
    return {name: as_tensor(array, kind) for name, array in arrays.items()}


def _pad_lists(rows: list[list[Any]], width: int | None, fill: Any, side: Side) -> list[list[Any]]:
    if width is None:
        return rows
    filled = ([fill] * (width - len(row)) for row in rows)
    return [[*row, *more] if side == "right" else [*more, *row] for row, more in zip(rows, filled, strict=True)]


def _kept_positions(rows: Sequence[Sequence[Any]], width: int | None, side: Side) -> NDArray[np.bool_]:
    """(batch, width): what is no padding."""
    lengths = np.fromiter(map(len, rows), np.intp, len(rows))
    if width is None:
        width = int(lengths.max(initial=0))
        if (lengths != width).any():
            raise ValueError("the rows of an array must have one length, got several: pass padding=True.")
    positions = np.arange(width)
    return positions < lengths[:, None] if side == "right" else positions >= width - lengths[:, None]


def _pad_array(rows: Sequence[Sequence[Any]], kept: NDArray[np.bool_], fill: Any) -> NDArray[np.int64]:
    """(batch, width) and, for offsets, 2; int64: the rows where `kept` is true, `fill` elsewhere."""
    shape = np.shape(fill)
    values = itertools.chain.from_iterable(rows)
    flat = np.fromiter(itertools.chain.from_iterable(values) if shape else values, np.int64)
    array = np.full((*kept.shape, *shape), fill, np.int64)
    array[kept] = flat.reshape(-1, *shape)
    return array


def as_tensor(array: NDArray[np.int64], kind: TensorType) -> Any:
    """The array in a framework: int64 in NumPy and PyTorch; int32 in TensorFlow and JAX, as is usual there."""
    if kind == "np":
        return array
    if kind == "pt":
        return require("torch", extra="pt", needed_for='return_tensors="pt"').from_numpy(array)
    narrow = array.astype(np.int32)
    if kind == "tf":
        return require("tensorflow", extra="tf", needed_for='return_tensors="tf"').constant(narrow)
    return require("jax.numpy", extra="flax", needed_for='return_tensors="jax"').asarray(narrow)
