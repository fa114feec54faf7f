"""What every reader returns: the tensors of one file by stored name, described first and read one at a time."""

from __future__ import annotations

import abc
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from distilbert.errors import CheckpointError

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TENSORS = 50_000
MAX_RANK = 8
MAX_ELEMENTS = 1 << 40  # of a shape, zeros left out: NumPy cannot make an empty array of any shape

# The dtypes that weights come in, by the name that NumPy and ml_dtypes give them. Integers only for skipped buffers.
DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
}
_PIECE = 1 << 20  # elements
FLOATS = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype name of a stored tensor, known before its bytes are read."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * DTYPES[self.dtype].itemsize


class StoredTensors(Mapping[str, Array]):
    """The tensors of a file: `info` describes them all, indexing reads one as a fresh array."""

    def __init__(
        self,
        info: Mapping[str, TensorInfo],
        read: Callable[[str], Array],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.info, self._read, self.metadata = info, read, metadata or {}

    def __getitem__(self, name: str) -> Array:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)


class LazyWeights(Mapping[str, Array], abc.ABC):
    """Canonical tensors that are read when they are indexed, and whose dtype is known before."""

    @abc.abstractmethod
    def dtype(self, name: str) -> str:
        """Name of the dtype that indexing returns."""


def is_possible(shape: tuple[int, ...]) -> bool:
    """Whether an array can have the shape, if only an empty one: of few dimensions, none negative, none enormous."""
    return len(shape) <= MAX_RANK and min(shape, default=0) >= 0 and math.prod(n or 1 for n in shape) <= MAX_ELEMENTS


def check_dtype(name: str) -> str:
    """`name`, if weights can have that dtype.

    Raises:
        ValueError: they cannot.
    """
    if name not in FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(FLOATS)}, got {name!r}.")
    return name


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; integers always are finite."""
    if array.dtype.name not in FLOATS:
        return True
    flat = array.reshape(-1)  # in pieces, so that no array of answers grows with the tensor
    return all(np.isfinite(flat[i : i + _PIECE]).all() for i in range(0, flat.size, _PIECE))


def read_array(path: str | os.PathLike[str], file: io.BufferedReader, offset: int, info: TensorInfo) -> Array:
    """The tensor whose bytes, in C order, begin at `offset`: read into its own memory and nowhere else.

    Raises:
        CheckpointError: Truncated. The caller has checked the size against the file's before.
    """
    array = np.empty(info.shape, DTYPES[info.dtype])
    read_into(path, file, offset, array.reshape(-1).view(np.uint8).data)
    return array


def digest(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    """What two arrays share when they have the same dtype, shape and bits, without keeping either."""
    return array.dtype.name, array.shape, hashlib.sha256(raw_bytes(array)).digest()


def read_into(path: str | os.PathLike[str], file: io.BufferedReader, offset: int, memory: memoryview) -> None:
    """Fill `memory` with the bytes that begin at `offset`.

    Raises:
        CheckpointError: Truncated.
    """
    file.seek(offset)
    if file.readinto(memory) != len(memory):
        raise CheckpointError(path, "Truncated", "ends too early; copy or download it again")


def raw_bytes(array: Array) -> memoryview:
    """The elements in C order, copied only when they are in another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
