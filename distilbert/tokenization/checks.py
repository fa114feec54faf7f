"""Checks of the tokenizers' arguments: what must hold, and what came."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from distilbert.errors import escape

UNLIMITED = 1 << 30  # files write a huge number for "no limit"; nothing that counts tokens is larger


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}.")


def check_count(name: str, value: Any, least: int) -> int:
    """`value` as a whole number of at least `least`.

    Raises:
        ValueError: it is none.
    """
    if type(value) is int and least <= value < UNLIMITED:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__") or not least <= operator.index(value) < UNLIMITED:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}.")
    return operator.index(value)


def as_sequence(name: str, value: Any) -> list[Any]:
    """What a caller gives for several values, as a list.

    Raises:
        TypeError: it is one text, or nothing that holds values.
    """
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
        raise TypeError(f"{name} must be a list, got {shown(value)}.")
    return list(value)


def as_plain(value: Any) -> Any:
    """An array of any framework as lists; another value as it is, but tuples and ranges as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    return list(value) if isinstance(value, (tuple, range)) else value


def as_ids(value: Any) -> int | list[int]:
    """Ids from a list or an array of any framework, or one id.

    Raises:
        TypeError: they are not whole numbers, or of several rows.
    """
    found = as_plain(value)
    listed = found if isinstance(found, list) else [found]
    try:
        ids = [operator.index(i) for i in listed if not isinstance(i, bool)]
    except TypeError:
        ids = []
    if len(ids) != len(listed):
        raise TypeError("ids must be whole numbers, one or a list; rows of them go to batch_decode.")
    return ids if isinstance(found, list) else ids[0]


def shown(value: Any) -> str:
    """A value for an error message, on one line; containers by their kind: they may be large."""
    return type(value).__name__ if isinstance(value, (dict, list)) else escape(repr(value), 80)
