"""HDF5, as tf_model.h5 of the reference (Keras 2) and the weights of Keras 3 use it, without TensorFlow and Keras.

Only a strict subset of HDF5 is read: plain groups and contiguous datasets of little-endian numbers whose bytes lie in
this file. pyfive, a pure-Python parser that opens no other file and cannot crash the process, describes the datasets;
their bytes are then read here. So links to files, external storage, virtual datasets, filters and chunks never act.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import DTYPES, Array, StoredTensors, TensorInfo, is_possible, read_array
from distilbert.errors import CheckpointError
from distilbert.optional import require

MAX_DEPTH = 12
MAX_NODES = 20_000
MAX_ATTRIBUTE_BYTES = 64_000  # HDF5 keeps attributes in a header of 64 KiB; Keras splits longer lists
_MAGIC = b"\x89HDF\r\n\x1a\n"
_CONTIGUOUS = 1  # HDF5's layout class for a dataset that is one run of bytes
_OPAQUE_BFLOAT16 = np.dtype("V2")  # how Keras 3 stores bfloat16, which HDF5 does not have; an attribute names it


def read(path: Path) -> StoredTensors:
    """Describe the datasets of `path`, by their path below the root, unread.

    Raises:
        CheckpointError: the file is not HDF5, is damaged, or uses what weights do not need.
    """
    pyfive = require("pyfive", extra="formats", needed_for=f"Reading a {path.name} file")
    file = _BoundedReader(safely.open_checked(path).detach())
    start = file.read(64)
    if not start.startswith(_MAGIC):
        file.close()
        raise CheckpointError(path, "BadMagic", f"is not an HDF5 file but {safely.what_is(start)}")
    file.seek(0)
    try:
        found = dict(_walk(path, pyfive.File(file)))
        info = {name: _info(path, name, dataset, file.size) for name, dataset in found.items()}
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(path, "ResourceLimit", "claims sizes that do not fit into memory") from None
    except RecursionError:
        raise CheckpointError(path, "UnsafeLink", "holds links that lead to themselves") from None
    except Exception as error:  # noqa: BLE001 - a damaged file can break the parser anywhere
        detail = f"is a damaged or incomplete HDF5 file, or one that links to others ({type(error).__name__})"
        raise CheckpointError(path, "HeaderInvalid", detail) from None

    def read_one(name: str) -> Array:
        return read_array(path, file, found[name].id.data_offset if info[name].size else 0, info[name])

    return StoredTensors(info, read_one)


class _BoundedReader(io.BufferedReader):
    """A file that never sets aside more memory for a read than the file has bytes, whatever the parser asks for."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.size if size is None or size < 0 else min(size, self.size))


def _walk(path: Path, root: Any) -> Iterator[tuple[str, Any]]:
    """Every dataset below `root` with its path. Bounded in depth and in all, since links may form cycles and nets."""
    pending = [("", root, 0)]
    seen = 0
    while pending:
        prefix, group, depth = pending.pop()
        for key in group:
            seen += 1
            node = group.get_lazy_view(key)
            if depth > MAX_DEPTH or seen > MAX_NODES:
                raise CheckpointError(path, "ResourceLimit", "has groups nested too deeply or linked too often")
            here = f"/{prefix}{key}"
            if node is None or getattr(node, "name", here) != here:  # pyfive gives what a soft link leads to
                raise CheckpointError(
                    path, "UnsafeLink", f"holds {prefix + key!r}, which is a link or holds no numbers"
                )
            if hasattr(node, "keys"):
                pending.append((f"{prefix}{key}/", node, depth + 1))
            else:
                yield f"{prefix}{key}", node


def _info(path: Path, name: str, dataset: Any, file_size: int) -> TensorInfo:
    """The dataset's shape and dtype, once it is known to be plain numbers inside the file."""
    dtype = next((key for key, known in DTYPES.items() if known == getattr(dataset, "dtype", None)), None)
    if getattr(dataset, "dtype", None) == _OPAQUE_BFLOAT16 and dataset.attrs.get("dtype") == b"bfloat16":
        dtype = "bfloat16"
    if dtype is None:
        raise CheckpointError(path, "DtypeUnsupported", f"holds dataset {name!r}, which is not plain numbers")
    shape = tuple(int(size) for size in dataset.shape)
    if not is_possible(shape):
        raise CheckpointError(path, "ShapeMismatch", f"gives dataset {name!r} a shape that no tensor has")
    if dataset.id.layout_class != _CONTIGUOUS:
        raise CheckpointError(path, "UnsafeLink", f"holds dataset {name!r} chunked, compressed, virtual or external")
    info = TensorInfo(shape, dtype)
    if info.size and dataset.id.data_offset + info.size > file_size:  # what is empty may lie nowhere
        raise CheckpointError(path, "Truncated", f"lacks bytes of dataset {name!r}, or keeps them in another file")
    return info


def write(path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
    """Write datasets one at a time, all or nothing. A name is LAYER_GROUP/weight_name, as Keras 2 lays files out."""
    layers: dict[str, list[str]] = {}
    for name in info:
        layer, weight_name = name.split("/", 1)
        layers.setdefault(layer, []).append(weight_name)
    with create(path) as file:
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        _write_names(file, "layer_names", list(layers))
        for layer, weight_names in layers.items():
            _write_names(file.create_group(layer), "weight_names", weight_names)
        for name, entry in info.items():
            write_dataset(file, name, read_one(name).astype(DTYPES[entry.dtype], copy=False))


@contextlib.contextmanager
def create(path: Path) -> Generator[Any]:
    """A new h5py file to fill, which takes the place of `path` when it is complete."""
    h5py = require("h5py", extra="formats", needed_for=f"Writing a {path.name} file")
    with safely.write_file(path) as temporary, _PatientFile(temporary, "w+") as raw:
        with h5py.File(raw, "w") as file:
            yield file
        if raw.error is not None:
            raise raw.error


def write_dataset(file: Any, name: str, array: Array) -> None:
    """Write one contiguous dataset; bfloat16 as Keras 3 does."""
    dataset = file.create_dataset(name, data=array)
    if array.dtype.name == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"


class _PatientFile(io.FileIO):
    """A file that keeps the first error to itself: HDF5 ends the process when it cannot write what it still holds."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]  # the system may take a part
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def _write_names(group: Any, attribute: str, names: list[str]) -> None:
    """A list of names as an attribute, in numbered parts when it is too long for one."""
    encoded = [name.encode() for name in names]
    width = max(map(len, encoded))
    per_part = MAX_ATTRIBUTE_BYTES // width
    if len(encoded) <= per_part:
        group.attrs[attribute] = encoded
        return
    for part, start in enumerate(range(0, len(encoded), per_part)):
        group.attrs[f"{attribute}{part}"] = encoded[start : start + per_part]
