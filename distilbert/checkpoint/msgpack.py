"""flax_model.msgpack: nested maps whose leaves are arrays, as flax.serialization writes them, read without flax.

A leaf is MessagePack extension 1 holding (shape, dtype name, bytes in C order); an array above 1 GiB is a map of flat
chunks. The tree is walked strictly: string keys, extension 1, known dtypes, lengths that fit. Names join the keys by
dots. Source of the layout: flax/serialization.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import DTYPES, MAX_RANK, MAX_TENSORS, Array, StoredTensors, TensorInfo, raw_bytes
from distilbert.errors import CheckpointError
from distilbert.optional import require

MAX_DEPTH = 12
CHUNK_BYTES = 1 << 30
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY = 1  # extension code


def _library() -> Any:
    return require("msgpack", extra="formats", needed_for="A flax_model.msgpack file")


def read(path: Path) -> StoredTensors:
    """Walk the tree of `path` and return its tensors. The file is held in memory: the format has no index.

    Raises:
        CheckpointError: anything about the file that is not as flax writes it.
    """
    leaves = dict(_walk(path, "", _unpack(path), 0))
    if len(leaves) > MAX_TENSORS:
        raise CheckpointError(path, "ResourceLimit", f"holds {len(leaves)} tensors, more than {MAX_TENSORS}")
    info = {name: TensorInfo(shape, dtype) for name, (shape, dtype, _) in leaves.items()}

    def read_one(name: str) -> Array:
        shape, dtype, chunks = leaves[name]
        return np.concatenate([np.frombuffer(chunk, DTYPES[dtype]) for chunk in chunks]).reshape(shape)

    return StoredTensors(info, read_one)


_RawLeaf = tuple[tuple[int, ...], str, list[bytes]]


def _unpack(path: Path) -> Any:
    msgpack = _library()
    with safely.open_checked(path) as file:
        data = file.read()
    is_map = data[:1] != b"" and (data[0] & 0xF0 == 0x80 or data[0] in (0xDE, 0xDF))
    if not is_map or safely.is_another_kind(data):
        raise CheckpointError(path, "BadMagic", f"is not a MessagePack map but {safely.what_is(data[:64])}")
    try:
        return msgpack.unpackb(
            data,
            ext_hook=lambda code, payload: _leaf(path, code, payload),
            object_pairs_hook=lambda pairs: _unique(path, pairs),
        )
    except CheckpointError:
        raise
    except ValueError as error:  # every error of msgpack's is one: incomplete, extra data, too deep, not UTF-8
        kind = "Truncated" if "incomplete" in str(error) else "HeaderInvalid"
        raise CheckpointError(path, kind, "is incomplete or damaged MessagePack; copy or download it again") from None


def _unique(path: Path, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError(path, "DuplicateName", "names a tensor twice")
    return result


def _leaf(path: Path, code: int, payload: bytes) -> _RawLeaf:
    if code != _ARRAY:
        raise CheckpointError(path, "HeaderInvalid", f"holds MessagePack extension {code}, which is not an array")
    try:
        shape, dtype, data = _library().unpackb(payload)
        sizes = tuple(shape)
    except (TypeError, ValueError):
        raise CheckpointError(path, "HeaderInvalid", "holds an array that is not (shape, dtype, bytes)") from None
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(data, bytes):
        raise CheckpointError(path, "DtypeUnsupported", f"holds an array of dtype {dtype!r}")
    if len(sizes) > MAX_RANK or not all(type(n) is int and n >= 0 for n in sizes):
        raise CheckpointError(path, "ShapeMismatch", f"holds an array of shape {sizes[:MAX_RANK]!r}")
    if math.prod(sizes) * DTYPES[dtype].itemsize != len(data):
        raise CheckpointError(path, "SizeMismatch", f"holds {len(data)} bytes for an array of shape {sizes}")
    return sizes, dtype, [data]


def _walk(path: Path, name: str, node: Any, depth: int) -> Iterator[tuple[str, _RawLeaf]]:
    if isinstance(node, tuple):
        yield name, cast("_RawLeaf", node)
    elif not isinstance(node, dict) or depth > MAX_DEPTH:
        raise CheckpointError(path, "HeaderInvalid", f"holds something at {name!r} that is neither map nor array")
    elif _CHUNKED in node:
        yield name, _joined_chunks(path, name, cast("dict[str, Any]", node))
    else:
        for key, child in cast("dict[Any, Any]", node).items():
            if not isinstance(key, str) or "." in key:
                raise CheckpointError(path, "HeaderInvalid", f"has the key {key!r} below {name!r}")
            yield from _walk(path, f"{name}.{key}" if name else key, child, depth + 1)


def _joined_chunks(path: Path, name: str, node: dict[str, Any]) -> _RawLeaf:
    """A chunked array: `shape` and `chunks` are maps from "0", "1", ... to sizes and to flat arrays."""
    error = CheckpointError(path, "SizeMismatch", f"holds a chunked array at {name!r} whose chunks do not fit")
    shape, parts = _listed(node.get("shape")), _listed(node.get("chunks"))
    if not parts or not all(isinstance(part, tuple) for part in parts) or len(shape) > MAX_RANK:
        raise error
    dtype, chunks = parts[0][1], [part[2][0] for part in parts]
    if any(part[1] != dtype for part in parts) or not all(type(n) is int and n >= 0 for n in shape):
        raise error
    if math.prod(shape) * DTYPES[dtype].itemsize != sum(map(len, chunks)):
        raise error
    return tuple(shape), dtype, chunks


def _listed(node: Any) -> list[Any]:
    """The values of a map with the keys "0", "1", ...; nothing for anything else."""
    if not isinstance(node, dict):
        return []
    numbered = cast("dict[str, Any]", node)
    return [numbered[str(i)] for i in range(len(numbered)) if str(i) in numbered]


def write(path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
    """Write tensors one at a time, all or nothing, as a tree of the dotted names."""
    packer = _library().Packer()
    with safely.write_file(path) as temporary, temporary.open("wb") as file:
        for piece in _pack_tree(packer, _tree(info), info, read_one):
            file.write(piece)


def _tree(names: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in names:
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = name
    return tree


def _pack_tree(
    packer: Any, node: Any, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]
) -> Iterator[bytes | memoryview]:
    if isinstance(node, str):
        yield from _pack_array(packer, read_one(node), info[node])
        return
    yield packer.pack_map_header(len(node))
    for key, child in node.items():
        yield packer.pack(key)
        yield from _pack_tree(packer, child, info, read_one)


def _pack_array(packer: Any, array: Array, entry: TensorInfo) -> Iterator[bytes | memoryview]:
    data = raw_bytes(array)
    if len(data) <= CHUNK_BYTES:
        yield from _pack_flat(packer, entry.shape, entry.dtype, data)
        return
    itemsize = DTYPES[entry.dtype].itemsize
    starts = range(0, len(data), CHUNK_BYTES // itemsize * itemsize)
    yield packer.pack_map_header(3)
    yield packer.pack(_CHUNKED) + packer.pack(True)
    yield packer.pack("shape") + packer.pack({str(i): size for i, size in enumerate(entry.shape)})
    yield packer.pack("chunks") + packer.pack_map_header(len(starts))
    for number, start in enumerate(starts):
        chunk = data[start : start + starts.step]
        yield packer.pack(str(number))
        yield from _pack_flat(packer, (len(chunk) // itemsize,), entry.dtype, chunk)


def _pack_flat(packer: Any, shape: tuple[int, ...], dtype: str, data: memoryview) -> Iterator[bytes | memoryview]:
    """Extension 1 around (shape, dtype, bytes); its two long headers by hand, so that the bytes need no copy."""
    inner = packer.pack_array_header(3) + packer.pack(list(shape)) + packer.pack(dtype) + _header(0xC6, len(data))
    yield _header(0xC9, len(inner) + len(data)) + bytes([_ARRAY]) + inner
    yield data


def _header(code: int, length: int) -> bytes:
    return bytes([code]) + length.to_bytes(4, "big")
