"""pytorch_model.bin: PyTorch's zip layout of a pickled state dict and raw storages, read without torch or pickle.

The pickle is a program for a stack machine. Ours runs only the instructions that a state dict of tensors needs and
knows nine names (an ordered dict, two functions that rebuild a tensor, six storage types), none of which is code; any
other instruction or name ends the load. The zip's checksums are verified, which torch.load does not do.
Layouts: Python's pickletools, and torch/serialization.py (format version 3).
"""

from __future__ import annotations

import functools
import math
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import DTYPES, MAX_RANK, MAX_TENSORS, Array, StoredTensors, TensorInfo
from distilbert.errors import CheckpointError, escape

MAX_PICKLE_BYTES = 16 << 20
MAX_INSTRUCTIONS = 1_000_000  # a tensor takes about 40


class _Storage(NamedTuple):
    key: str  # the zip member data/<key>
    dtype: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """A name that the pickle may ask for, and what it stands for."""

    role: Literal["dict", "tensor", "parameter", "storage"]
    dtype: str = ""


_NAMES = {
    "collections OrderedDict": _Name("dict"),
    "torch._utils _rebuild_tensor_v2": _Name("tensor"),
    "torch._utils _rebuild_parameter": _Name("parameter"),
    "torch DoubleStorage": _Name("storage", "float64"),
    "torch FloatStorage": _Name("storage", "float32"),
    "torch HalfStorage": _Name("storage", "float16"),
    "torch BFloat16Storage": _Name("storage", "bfloat16"),
    "torch LongStorage": _Name("storage", "int64"),
    "torch IntStorage": _Name("storage", "int32"),
}


class _PickleError(Exception):
    """The pickle is not a state dict."""


class _UnsafeNameError(Exception):
    """The pickle asks for a name that is not part of a tensor."""


class _Machine:
    """Runs a pickle: a stack, marks on it, and a memo. Values are plain data and the tuples above."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """The value that the program leaves on the stack."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if count > MAX_INSTRUCTIONS:
                raise _PickleError("it has too many instructions")
            self._step(opcode.name, argument)
        raise _PickleError("it has no end")

    def _step(self, name: str, argument: Any) -> None:  # noqa: C901 - one case per instruction
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "GLOBAL":
                self.stack.append(_find_name(argument))
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise _PickleError("a name is not a string")
                self.stack.append(_find_name(f"{module} {attribute}"))
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE":
                self.stack.append(_tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                self.stack[-size:] = [_tuple(self.stack[-size:])]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "APPENDS":
                self._pop_to_mark()  # lists only occur in attributes, which are dropped
            case "APPEND" | "BUILD":
                self.stack.pop()  # likewise: what BUILD sets is `_metadata`
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "BINPERSID":
                self.stack.append(_find_storage(self.stack.pop()))
            case "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(_call(function, arguments))
            case _:
                raise _PickleError(f"it has the instruction {name}")

    def _pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise _PickleError("a key is not a string")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key in target:
                raise _PickleError(f"{key!r} is named twice")
            target[key] = value


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    """A tuple of plain values, or of tuples of those: deeper ones do not occur, and are what bombs are made of."""
    if any(type(item) is tuple and any(type(inner) is tuple for inner in item) for item in items):
        raise _PickleError("it nests tuples")
    return tuple(items)


def _find_name(name: str) -> _Name:
    if name not in _NAMES:
        raise _UnsafeNameError(name.replace(" ", ".", 1))
    return _NAMES[name]


def _find_storage(reference: Any) -> _Storage:
    match reference:
        case ("storage", _Name("storage", dtype), str(key), str(), int(size)) if size >= 0:
            return _Storage(key, dtype, size)
        case _:
            raise _PickleError("it refers to something that is not a storage")


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name("dict"), ():
            return {}
        case _Name("parameter"), (_Tensor() as tensor, *_):
            return tensor
        case _Name("tensor"), (_Storage() as storage, int(offset), tuple() as shape, tuple() as strides, *_):
            if offset >= 0 and all(type(n) is int and n >= 0 for n in (*shape, *strides)):
                return _Tensor(storage, offset, shape, strides)
        case _:
            pass
    raise _PickleError("it builds something that is not a tensor")


def read(path: Path) -> StoredTensors:
    """Run the pickle of `path` on our machine and return its tensors, unread.

    Raises:
        CheckpointError: UnsafePickle names a global that is not a tensor's; other kinds name other defects.
    """
    archive = _open_archive(path)
    prefix = _prefix(path, archive)
    tensors = _state_dict(path, _member(path, archive, f"{prefix}data.pkl", MAX_PICKLE_BYTES))
    if f"{prefix}byteorder" in archive.namelist() and _member(path, archive, f"{prefix}byteorder", 16) != b"little":
        raise CheckpointError(path, "VersionUnsupported", "was written on a big-endian machine")
    for name, tensor in tensors.items():
        _check(path, archive, prefix, name, tensor)
    info = {name: TensorInfo(tensor.shape, tensor.storage.dtype) for name, tensor in tensors.items()}

    @functools.lru_cache(maxsize=1)  # tied tensors share a storage and stand side by side
    def storage(key: str) -> bytes:
        return _member(path, archive, f"{prefix}data/{key}", 1 << 40)

    return StoredTensors(info, lambda name: _build(tensors[name], storage(tensors[name].storage.key)))


def _open_archive(path: Path) -> zipfile.ZipFile:
    file = safely.open_checked(path)
    start = file.read(64)
    if not start.startswith(b"PK\x03\x04"):
        file.close()
        kind = "VersionUnsupported" if start.startswith(b"\x80") else "BadMagic"
        found = "a pickle of the layout before PyTorch 1.6" if start.startswith(b"\x80") else safely.what_is(start)
        raise CheckpointError(path, kind, f"is not in PyTorch's zip layout: it is {found}")
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        raise CheckpointError(path, "Truncated", "is an incomplete or damaged zip archive; copy it again") from None


def _prefix(path: Path, archive: zipfile.ZipFile) -> str:
    pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(archive.namelist()) != len(set(archive.namelist())):
        raise CheckpointError(path, "HeaderInvalid", f"holds {len(pickles)} state dicts, or members named twice")
    return pickles[0].removesuffix("data.pkl")


def _member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The bytes of an uncompressed member; its checksum is verified by zipfile."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(path, "Truncated", f"lacks the member {name!r}") from None
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
        raise CheckpointError(path, "ResourceLimit", f"holds {name!r} compressed or too large")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
        raise CheckpointError(
            path, "SizeMismatch", f"has damaged bytes in {name!r}; copy or download it again"
        ) from None


def _state_dict(path: Path, program: bytes) -> dict[str, _Tensor]:
    try:
        value = _Machine().run(program)
    except _UnsafeNameError as error:
        raise CheckpointError(path, "UnsafePickle", f"asks for {error}, which is not part of a tensor") from None
    except (_PickleError, ValueError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(path, "HeaderInvalid", f"is not a state dict: {escape(str(error), 100)}") from None
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) > MAX_TENSORS:
        raise CheckpointError(path, "HeaderInvalid", "does not hold a state dict of tensors")
    for name, tensor in cast("dict[str, Any]", value).items():
        if not isinstance(tensor, _Tensor):
            raise CheckpointError(path, "HeaderInvalid", f"holds {name!r}, which is not a tensor")
    return cast("dict[str, _Tensor]", value)


def _check(path: Path, archive: zipfile.ZipFile, prefix: str, name: str, tensor: _Tensor) -> None:
    """The view lies inside its storage, is dense, and the storage has the bytes that it claims."""
    storage = tensor.storage
    try:
        stored = archive.getinfo(f"{prefix}data/{storage.key}").file_size
    except KeyError:
        raise CheckpointError(path, "Truncated", f"lacks the data of tensor {name!r}") from None
    if stored != storage.size * DTYPES[storage.dtype].itemsize:
        raise CheckpointError(path, "SizeMismatch", f"holds {stored} bytes for tensor {name!r}, not what it claims")
    if len(tensor.shape) > MAX_RANK or not _is_dense(tensor.shape, tensor.strides):
        raise CheckpointError(path, "DtypeUnsupported", f"holds tensor {name!r} as an overlapping or sparse view")
    if tensor.offset + math.prod(tensor.shape) > storage.size:
        raise CheckpointError(path, "SizeMismatch", f"lets tensor {name!r} reach past the end of its data")


def _is_dense(shape: Iterable[int], strides: Iterable[int]) -> bool:
    """Whether the strides are those of some axis order without gaps or overlaps."""
    shape, strides = tuple(shape), tuple(strides)
    if len(shape) != len(strides):
        return False
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _build(tensor: _Tensor, data: bytes) -> Array:
    dtype = DTYPES[tensor.storage.dtype]
    flat = np.frombuffer(data, dtype)[tensor.offset : tensor.offset + math.prod(tensor.shape)]
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy("C")
