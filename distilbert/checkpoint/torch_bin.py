"""pytorch_model.bin: PyTorch's zip layout of a pickled state dict and raw storages, read without torch.

The pickle is run by a machine that knows six names: an ordered dict, the two functions that rebuild a tensor, and the
storage types. Those are our own inert stand-ins; any other name ends the load before anything is imported. The zip's
checksums are verified, which torch.load does not do. Layout: torch/serialization.py, documented format version 3.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from distilbert.checkpoint import safely
from distilbert.checkpoint.tensors import DTYPES, MAX_RANK, MAX_TENSORS, Array, StoredTensors, TensorInfo
from distilbert.errors import CheckpointError, escape

MAX_PICKLE_BYTES = 16 << 20

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32",
}  # fmt: skip


class _Storage(NamedTuple):
    key: str  # the zip member data/<key>
    dtype: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict[Any, Any]):
    """Stands for collections.OrderedDict; drops the attributes (`_metadata`) that the pickle sets on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _StorageType(NamedTuple):
    dtype: str


class _Rebuild:
    """Stands for torch._utils._rebuild_tensor_v2: records what to build. Slots keep the pickle from changing it."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_flags: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
            raise pickle.UnpicklingError("rebuilds a tensor from something that is not a storage")
        for sizes in (shape, strides):
            if not isinstance(sizes, tuple) or not all(type(n) is int and n >= 0 for n in cast("Any", sizes)):
                raise pickle.UnpicklingError("rebuilds a tensor of a wrong shape")
        return _Tensor(storage, offset, cast("tuple[int, ...]", shape), cast("tuple[int, ...]", strides))


class _RebuildParameter:
    """Stands for torch._utils._rebuild_parameter: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_flags: Any) -> Any:
        return tensor


class _Unpickler(pickle.Unpickler):
    """An unpickler whose whole world is the table below."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): _StateDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
        ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return self._KNOWN[module_name, global_name]
        except KeyError:
            raise _UnsafeGlobalError(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), str(), int(size)) if size >= 0:
                return _Storage(key, dtype, size)
            case _:
                raise pickle.UnpicklingError("refers to something that is not a storage")


class _UnsafeGlobalError(Exception):
    pass


def read(path: Path) -> StoredTensors:
    """Run the restricted pickle of `path` and return its tensors, unread.

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


def _state_dict(path: Path, data: bytes) -> dict[str, _Tensor]:
    try:
        value: Any = _Unpickler(io.BytesIO(data)).load()
    except _UnsafeGlobalError as error:
        raise CheckpointError(path, "UnsafePickle", f"asks for {error}, which is not part of a tensor") from None
    except Exception as error:  # noqa: BLE001 - a pickle can raise anything; all of it means a broken file
        raise CheckpointError(path, "HeaderInvalid", f"is not a state dict: {escape(str(error), 100)}") from None
    if not isinstance(value, dict) or len(cast("dict[Any, Any]", value)) > MAX_TENSORS:
        raise CheckpointError(path, "HeaderInvalid", "does not hold a state dict of tensors")
    for name, tensor in cast("dict[Any, Any]", value).items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
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
