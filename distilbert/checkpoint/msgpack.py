"""flax_model.msgpack: nested maps whose leaves are arrays, as flax.serialization writes them, read without flax.

A leaf is MessagePack extension 1 holding (shape, dtype name, bytes in C order); an array above 1 GiB is a map of flat
chunks. Only the headers are read, strictly: string keys, extension 1, known dtypes, lengths that fit; the bytes of an
array are passed over until it is asked for. Names join the keys by dots. Headers are written in their shortest form, so
that a file has the bytes that flax gives it. Sources: flax/serialization.py and the MessagePack specification.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import (
    DTYPES,
    MAX_RANK,
    MAX_TENSORS,
    Array,
    StoredTensors,
    TensorInfo,
    is_possible,
    raw_bytes,
    read_into,
)
from distilbert.errors import CheckpointError

MAX_DEPTH = 12
MAX_ENTRIES = 2 * MAX_TENSORS  # of all maps together: each tensor in a map of its own
MAX_NAME = 1000  # bytes of a name, so that a long key above many short ones does not multiply
CHUNK_BYTES = 1 << 30
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY = 1  # extension code
_AGAIN = "copy or download it again"

# A value begins with one byte. Some say all: what begins, and its number (size of an integer, length of the others).
_SHORT: dict[int, tuple[str, int]] = {
    **{first: ("uint", first) for first in range(0x80)},
    **{0x80 + length: ("map", length) for length in range(16)},
    **{0x90 + length: ("array", length) for length in range(16)},
    **{0xA0 + length: ("str", length) for length in range(32)},
    **{0xD4 + power: ("extension", 1 << power) for power in range(5)},
    0xC0: ("nil", 0), 0xC2: ("false", 0), 0xC3: ("true", 0),
}  # fmt: skip
# After the others the number follows, in so many bytes. Those of a family stand in the order of their width.
_LONG: dict[int, tuple[str, int]] = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xCA: ("float", 4), 0xCB: ("float", 8),
    0xCC: ("uint", 1), 0xCD: ("uint", 2), 0xCE: ("uint", 4), 0xCF: ("uint", 8),
    0xD0: ("int", 1), 0xD1: ("int", 2), 0xD2: ("int", 4), 0xD3: ("int", 8),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4),
    0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_FIRST_BYTES = {header: first for first, header in _SHORT.items()}
_MAP_STARTS = [first for first, (family, _) in (_SHORT | _LONG).items() if family == "map"]


class _Leaf(NamedTuple):
    info: TensorInfo
    pieces: tuple[tuple[int, int], ...]  # (offset, bytes) in the file, one after the other in the array


# What a map holds: maps, arrays, and the sizes and the mark of a chunked array; None is anything else, to be refused.
_Node: TypeAlias = "dict[str, _Node] | _Leaf | int | None"
_Value = TypeVar("_Value", int, _Leaf)
_Bytes: TypeAlias = bytes | memoryview


def read(path: Path) -> StoredTensors:
    """Walk the headers of `path` and return its tensors, unread.

    Raises:
        CheckpointError: anything about the file that is not as flax writes it.
    """
    file = safely.open_checked(path)
    start = file.read(64)
    if not start or start[0] not in _MAP_STARTS or safely.is_another_kind(start):
        raise CheckpointError(path, "BadMagic", f"is not a MessagePack map but {safely.what_is(start)}")
    file.seek(0)
    leaves = dict(_named(path, "", _Parser(path, file).tree()))
    info = {name: leaf.info for name, leaf in leaves.items()}
    return StoredTensors(info, lambda name: _read_leaf(path, file, leaves[name]))


def _read_leaf(path: Path, file: io.BufferedReader, leaf: _Leaf) -> Array:
    array = np.empty(leaf.info.shape, DTYPES[leaf.info.dtype])
    memory = raw_bytes(array)
    for offset, size in leaf.pieces:
        read_into(path, file, offset, memory[:size])
        memory = memory[size:]
    return array


class _Parser:
    """Reads the headers of a file from front to back. No number in them is believed before it is bounded."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.entries = self.tensors = 0

    def tree(self) -> dict[str, _Node]:
        """The map that is the whole file."""
        root = self.map("", self.header()[1], 0)
        if extra := self.size - self.file.tell():
            raise CheckpointError(self.path, "HeaderInvalid", f"has {extra} bytes at its end that belong to no tensor")
        if _CHUNKED in root:
            raise CheckpointError(self.path, "HeaderInvalid", "is a single array, not a map of arrays")
        return root

    def node(self, name: str, depth: int) -> _Node:
        """What stands here under `name`."""
        match self.header():
            case "map", count:
                return self.map(name, count, depth)
            case "extension", length:
                return self.array(name, length)
            case "uint", number:
                return number
            case "true", _:
                return True
            case (("nil" | "false" | "int" | "float"), _):
                return None
            case _:  # text, bytes or a list
                raise _misplaced(self.path, name)

    def map(self, name: str, count: int, depth: int) -> dict[str, _Node]:
        """The `count` entries of a map."""
        self.entries += count
        if depth > MAX_DEPTH:
            raise CheckpointError(self.path, "HeaderInvalid", f"nests maps more than {MAX_DEPTH} deep")
        if 2 * count > self.size - self.file.tell():
            raise CheckpointError(self.path, "Truncated", f"lacks entries of the map {name!r}; {_AGAIN}")
        if self.entries > MAX_ENTRIES:
            raise CheckpointError(self.path, "ResourceLimit", f"has more than {MAX_ENTRIES} entries in its maps")
        entries: dict[str, _Node] = {}
        for _ in range(count):
            key = self.key(name)
            child = f"{name}.{key}" if name else key
            if key in entries:
                raise CheckpointError(self.path, "DuplicateName", f"names {child!r} twice")
            entries[key] = self.node(child, depth + 1)
        return entries

    def key(self, name: str) -> str:
        """A key of the map `name`: text that can be a part of a dotted name."""
        family, length = self.header()
        if family != "str":
            raise CheckpointError(self.path, "HeaderInvalid", f"has a key below {name!r} that is not text")
        if len(name) + length > MAX_NAME:
            raise CheckpointError(
                self.path, "ResourceLimit", f"has a name of more than {MAX_NAME} bytes below {name!r}"
            )
        try:
            key = self.take(length).decode()
        except UnicodeDecodeError:
            raise CheckpointError(self.path, "HeaderInvalid", f"has a key below {name!r} that is not UTF-8") from None
        if not key or "." in key:
            raise CheckpointError(self.path, "HeaderInvalid", f"has the key {key!r} below {name!r}")
        return key

    def array(self, name: str, length: int) -> _Leaf:
        """An extension of `length` bytes: the shape and dtype of an array; its bytes are passed over."""
        code = self.take(1)[0]
        if code != _ARRAY:
            detail = f"holds MessagePack extension {code} at {name!r}, which is not an array"
            raise CheckpointError(self.path, "HeaderInvalid", detail)
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise CheckpointError(self.path, "ResourceLimit", f"holds more than {MAX_TENSORS} tensors")
        end = self.file.tell() + length
        if end > self.size:
            raise CheckpointError(self.path, "Truncated", f"ends {end - self.size} bytes too early; {_AGAIN}")
        if self.header() != ("array", 3):
            raise _not_a_triple(self.path, name)
        info = TensorInfo(self.shape(name), self.dtype(name))
        family, size = self.header()
        offset = self.file.tell()
        if family != "bin" or offset + size != end:
            raise _not_a_triple(self.path, name)
        if size != info.size:
            raise CheckpointError(self.path, "SizeMismatch", f"holds {size} bytes for {name!r} of shape {info.shape}")
        self.file.seek(end)
        return _Leaf(info, ((offset, size),))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array: a short list of sizes."""
        family, rank = self.header()
        if family == "array" and rank <= MAX_RANK:
            sizes = [self.header() for _ in range(rank)]
            shape = tuple(size for family, size in sizes if family == "uint")
            if len(shape) == rank and is_possible(shape):
                return shape
        raise CheckpointError(self.path, "ShapeMismatch", f"gives {name!r} a wrong shape")

    def dtype(self, name: str) -> str:
        """The dtype name of an array."""
        family, length = self.header()
        dtype = self.take(min(length, 20)).decode(errors="replace") if family == "str" else family
        if dtype not in DTYPES:
            raise CheckpointError(self.path, "DtypeUnsupported", f"holds {name!r} of dtype {dtype!r}")
        return dtype

    def header(self) -> tuple[str, int]:
        """What begins here, and its number; ("", 0) for the one byte that MessagePack never uses."""
        first = self.take(1)[0]
        if first in _SHORT:
            return _SHORT[first]
        family, width = _LONG.get(first, ("", 0))
        return family, int.from_bytes(self.take(width))

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        return safely.read_exactly(self.path, self.file, count)


def _not_a_triple(path: Path, name: str) -> CheckpointError:
    return CheckpointError(path, "HeaderInvalid", f"holds an array at {name!r} that is not (shape, dtype, bytes)")


def _misplaced(path: Path, name: str) -> CheckpointError:
    return CheckpointError(path, "HeaderInvalid", f"holds something at {name!r} that is neither map nor array")


def _named(path: Path, name: str, node: _Node) -> Iterator[tuple[str, _Leaf]]:
    """The arrays below `node` with their names."""
    if isinstance(node, _Leaf):
        yield name, node
    elif not isinstance(node, dict):
        raise _misplaced(path, name)
    elif _CHUNKED in node:
        yield name, _joined(path, name, node)
    else:
        for key, child in node.items():
            yield from _named(path, f"{name}.{key}" if name else key, child)


def _joined(path: Path, name: str, node: dict[str, _Node]) -> _Leaf:
    """A chunked array: `shape` and `chunks` are maps from "0", "1", ... to sizes and to flat arrays of one dtype."""
    shape, chunks = _listed(node.get("shape"), int), _listed(node.get("chunks"), _Leaf)
    if len(node) == 3 and node[_CHUNKED] is True and shape is not None and is_possible(shape) and chunks:
        info = TensorInfo(shape, chunks[0].info.dtype)
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        flat = all(chunk.info.dtype == info.dtype and len(chunk.info.shape) == 1 for chunk in chunks)
        if flat and info.size == sum(size for _, size in pieces):
            return _Leaf(info, pieces)
    raise CheckpointError(path, "SizeMismatch", f"holds a chunked array at {name!r} whose chunks do not fit")


def _listed(node: _Node, kind: type[_Value]) -> tuple[_Value, ...] | None:
    """The values of a map with the keys "0", "1", ...; None for anything else."""
    if not isinstance(node, dict):
        return None
    values = [value for i in range(len(node)) if type(value := node.get(str(i))) is kind]
    return tuple(cast("list[_Value]", values)) if len(values) == len(node) else None


def write(path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
    """Write tensors one at a time, all or nothing, as a tree of the dotted names in their order."""
    with safely.write_file(path) as temporary, temporary.open("wb") as file:
        for piece in _pack_tree(_tree(info), info, read_one):
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


def _pack_tree(node: Any, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> Iterator[_Bytes]:
    if isinstance(node, str):
        yield from _pack_array(read_one(node), info[node])
        return
    yield _pack("map", len(node))
    for key, child in node.items():
        yield _pack_text(key)
        yield from _pack_tree(child, info, read_one)


def _pack_array(array: Array, entry: TensorInfo) -> Iterator[_Bytes]:
    data = raw_bytes(array)
    if len(data) <= CHUNK_BYTES:
        yield from _pack_flat(entry.shape, entry.dtype, data)
        return
    itemsize = DTYPES[entry.dtype].itemsize
    starts = range(0, len(data), CHUNK_BYTES // itemsize * itemsize)
    yield _pack("map", 3) + _pack_text(_CHUNKED) + _pack("true", 0)
    yield _pack_text("shape") + _pack("map", len(entry.shape))
    for number, size in enumerate(entry.shape):
        yield _pack_text(str(number)) + _pack("uint", size)
    yield _pack_text("chunks") + _pack("map", len(starts))
    for number, start in enumerate(starts):
        chunk = data[start : start + starts.step]
        yield _pack_text(str(number))
        yield from _pack_flat((len(chunk) // itemsize,), entry.dtype, chunk)


def _pack_flat(shape: tuple[int, ...], dtype: str, data: memoryview) -> Iterator[_Bytes]:
    """Extension 1 around (shape, dtype, bytes), the bytes apart, so that they need no copy."""
    sizes = b"".join(_pack("uint", size) for size in shape)
    head = _pack("array", 3) + _pack("array", len(shape)) + sizes + _pack_text(dtype) + _pack("bin", len(data))
    yield _pack("extension", len(head) + len(data)) + bytes([_ARRAY]) + head
    yield data


def _pack_text(text: str) -> bytes:
    encoded = text.encode()
    return _pack("str", len(encoded)) + encoded


def _pack(family: str, number: int) -> bytes:
    """The shortest header of that family and number."""
    if (family, number) in _FIRST_BYTES:
        return bytes([_FIRST_BYTES[family, number]])
    first, width = next((f, w) for f, (known, w) in _LONG.items() if known == family and number < 1 << 8 * w)
    return bytes([first]) + number.to_bytes(width)
