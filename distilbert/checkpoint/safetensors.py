"""safetensors files: a JSON header of names, dtypes, shapes and offsets, then the bytes. Nothing in them can execute.

Format: https://github.com/huggingface/safetensors. The header is checked more strictly than the format's own library
does (no duplicate names, bounded counts), and tensors are read from the file that was checked, not mapped: a file that
is cut short later cannot end the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import (
    MAX_TENSORS,
    Array,
    StoredTensors,
    TensorInfo,
    is_possible,
    raw_bytes,
    read_array,
)
from distilbert.errors import CheckpointError

MAX_HEADER_BYTES = 8 << 20  # 50 000 tensors take about 7 MB; JSON made to hurt takes thirty times its size in memory
ALIGNMENT = 8  # of the first tensor byte, so that a reader may map the file

_DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
}  # fmt: skip
_CODES = {name: code for code, name in _DTYPE_NAMES.items()}


def read(path: Path) -> StoredTensors:
    """Check the header of `path` and return its tensors, unread.

    Raises:
        CheckpointError: anything about the file that is not as the format has it.
    """
    file = safely.open_checked(path)
    file_size = os.fstat(file.fileno()).st_size
    start = file.read(64)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise CheckpointError(path, "BadMagic", f"is not a safetensors file but {safely.what_is(start)}")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(path, "HeaderTooLarge", f"claims a header of {length} bytes")
    file.seek(8)
    header = safely.parse_json(safely.read_exactly(path, file, length), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in cast("dict[str, Any]", metadata).values()):
        raise CheckpointError(path, "HeaderInvalid", "has __metadata__ that is not a map of strings")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(path, "ResourceLimit", f"holds {len(header)} tensors, more than {MAX_TENSORS}")
    offsets = {name: _offsets(path, name, entry) for name, entry in header.items()}
    info = {name: _info(path, name, entry) for name, entry in header.items()}
    _check_offsets(path, info, offsets, file_size - 8 - length)

    def read_one(name: str) -> Array:
        return read_array(path, file, 8 + length + offsets[name][0], info[name])

    return StoredTensors(info, read_one, cast("dict[str, str]", metadata))


def _check_offsets(
    path: Path, info: Mapping[str, TensorInfo], offsets: Mapping[str, tuple[int, int]], data_size: int
) -> None:
    """The tensors fill the data section in order, without holes or overlaps."""
    position = 0
    for name in sorted(offsets, key=offsets.__getitem__):
        begin, end = offsets[name]
        if begin != position or end - begin != info[name].size:
            raise CheckpointError(path, "OffsetInvalid", f"tensor {name!r} does not lie where its shape says")
        position = end
    if position > data_size:
        missing = position - data_size
        raise CheckpointError(path, "Truncated", f"ends {missing} bytes too early; copy or download it again")
    if position < data_size:
        raise CheckpointError(path, "OffsetInvalid", f"has {data_size - position} bytes that belong to no tensor")


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:  # pyright: ignore[reportUnknownMemberType]
        offsets = cast("list[Any]", entry["data_offsets"])
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int and o >= 0 for o in offsets):  # pyright: ignore[reportUnnecessaryIsInstance]
            return offsets[0], offsets[1]
    raise CheckpointError(path, "HeaderInvalid", f"describes tensor {name!r} wrongly")


def _info(path: Path, name: str, entry: dict[str, Any]) -> TensorInfo:
    dtype = _DTYPE_NAMES.get(str(entry["dtype"]))
    if dtype is None:
        raise CheckpointError(path, "DtypeUnsupported", f"holds tensor {name!r} of dtype {entry['dtype']!r}")
    shape = entry["shape"]
    if isinstance(shape, list) and all(type(size) is int for size in cast("list[Any]", shape)):
        sizes = tuple(cast("list[int]", shape))
        if is_possible(sizes):
            return TensorInfo(sizes, dtype)
    raise CheckpointError(path, "ShapeMismatch", f"gives tensor {name!r} a wrong shape")


def write(path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
    """Write tensors one at a time, all or nothing, with the `format=pt` metadata that every other tool expects."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, entry in info.items():
        header[name] = {
            "dtype": _CODES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [position, position + entry.size],
        }
        position += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with safely.write_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in info:
            file.write(raw_bytes(read_one(name)))
