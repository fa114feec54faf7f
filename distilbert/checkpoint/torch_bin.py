"""pytorch_model.bin: a pickled state dict and raw storages, in a zip archive or behind one another, without torch.

Since PyTorch 1.6 a file is a zip archive with data.pkl and a member data/KEY for each storage; its checksums are
verified, which torch.load does not do. Before, it was four small pickles, the state dict, the list of the keys, and
per key a count and the numbers, which nothing protects: such files are read, never written.
Source of both layouts: torch/serialization.py.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from distilbert.checkpoint import safely, state_pickle, stored_zip
from distilbert.checkpoint.state_pickle import Machine, Storage, Tensor
from distilbert.checkpoint.tensors import (
    DTYPES,
    MAX_ELEMENTS,
    Array,
    StoredTensors,
    TensorInfo,
    is_possible,
    raw_bytes,
    read_array,
)
from distilbert.errors import CheckpointError

MAX_VIEWS = 4  # times the size of the file: what all tensors together may take; tied ones share their bytes
CHUNK_BYTES = 1 << 20
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the layout before PyTorch 1.6
_SAVE_AGAIN = "load it with PyTorch and save it again"


class _Data(NamedTuple):
    """Where the bytes of a storage lie."""

    name: str
    offset: int
    size: int
    crc: int | None


def read(path: Path) -> StoredTensors:
    """Run the pickle of `path` on our machine and return its tensors, unread.

    Raises:
        CheckpointError: UnsafePickle names a global that is not a tensor's; other kinds name other defects.
    """
    file = safely.open_checked(path)
    start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        tensors, data = _read_zip(path, file)
    elif start.startswith(b"\x80"):
        tensors, data = _read_legacy(path, file)
    elif start[257:262] == b"ustar":
        raise CheckpointError(path, "VersionUnsupported", f"is a tar archive of PyTorch before 0.1.10; {_SAVE_AGAIN}")
    else:
        raise CheckpointError(path, "BadMagic", f"is not a PyTorch file but {safely.what_is(start)}")
    _check_views(path, tensors, os.fstat(file.fileno()).st_size)
    info = {name: TensorInfo(tensor.shape, tensor.storage.dtype) for name, tensor in tensors.items()}
    verified: set[str] = set()

    def read_one(name: str) -> Array:
        tensor = tensors[name]
        return _read_tensor(path, file, tensor, data[tensor.storage.key], verified)

    return StoredTensors(info, read_one)


def _read_zip(path: Path, file: io.BufferedReader) -> tuple[dict[str, Tensor], dict[str, _Data]]:
    """The tensors of an archive, and where the bytes of their storages lie."""
    archive = stored_zip.Archive(path, file)
    names = archive.names()
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(path, "HeaderInvalid", f"holds {len(pickles)} state dicts (data.pkl), must hold one")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder", 16) != b"little":
        raise CheckpointError(path, "VersionUnsupported", "was written on a big-endian machine")
    machine = Machine(path)
    program = io.BytesIO(archive.read(pickles[0], state_pickle.MAX_PICKLE_BYTES))
    tensors = state_pickle.as_state_dict(path, machine.run(program))
    data: dict[str, _Data] = {}
    for key, storage in machine.storages.items():
        offset, member = archive.locate(f"{prefix}data/{key}")
        data[key] = _Data(f"data/{key}", offset, member.size, member.crc)
        if member.size != _size(storage):
            raise CheckpointError(path, "SizeMismatch", f"holds {member.size} bytes for data {key!r}, claims others")
    return tensors, data


def _read_legacy(path: Path, file: io.BufferedReader) -> tuple[dict[str, Tensor], dict[str, _Data]]:
    """The tensors of a file of the layout before PyTorch 1.6, and where the bytes of their storages lie."""
    file.seek(0)
    program, machine = io.BytesIO(file.read(state_pickle.MAX_PICKLE_BYTES)), Machine(path)
    if machine.run(program) != _MAGIC:
        raise CheckpointError(path, "BadMagic", "is a pickle or MessagePack file, but not PyTorch's")
    if machine.run(program) != _PROTOCOL:
        raise CheckpointError(path, "VersionUnsupported", f"has an unknown version of PyTorch's layout; {_SAVE_AGAIN}")
    system = machine.run(program)
    if not isinstance(system, dict) or cast("dict[str, object]", system).get("little_endian") is not True:
        raise CheckpointError(path, "VersionUnsupported", "was written on a big-endian machine")
    tensors = state_pickle.as_state_dict(path, machine.run(program))
    keys = machine.run(program)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in cast("list[object]", keys)):
        raise CheckpointError(path, "HeaderInvalid", "does not list the data of its tensors")
    if sorted(cast("list[str]", keys)) != sorted(machine.storages):
        raise CheckpointError(path, "HeaderInvalid", "lists other data than that of its tensors")
    return tensors, _find_data(path, file, program.tell(), [machine.storages[key] for key in cast("list[str]", keys)])


def _find_data(path: Path, file: io.BufferedReader, position: int, storages: Iterable[Storage]) -> dict[str, _Data]:
    """Where each storage lies: from `position` to the end of the file, a count of elements before each."""
    data: dict[str, _Data] = {}
    for storage in storages:
        file.seek(position)
        count = int.from_bytes(safely.read_exactly(path, file, 8), "little")
        if count != storage.size:
            raise CheckpointError(
                path, "SizeMismatch", f"holds {count} numbers for data {storage.key!r}, claims others"
            )
        data[storage.key] = _Data(storage.key, position + 8, _size(storage), None)
        position += 8 + _size(storage)
    surplus = os.fstat(file.fileno()).st_size - position
    if surplus < 0:
        raise CheckpointError(path, "Truncated", f"ends {-surplus} bytes too early; copy or download it again")
    if surplus > 0:
        raise CheckpointError(path, "OffsetInvalid", f"has {surplus} bytes that belong to no tensor")
    return data


def _size(storage: Storage) -> int:
    return storage.size * DTYPES[storage.dtype].itemsize


def _check_views(path: Path, tensors: Mapping[str, Tensor], file_size: int) -> None:
    """Every tensor is a view that lies in its storage and has no element twice, and all of them take bounded time."""
    total = 0
    for name, tensor in tensors.items():
        if len(tensor.shape) != len(tensor.strides):
            raise CheckpointError(path, "ShapeMismatch", f"gives tensor {name!r} a wrong shape")
        bounded = all(0 <= n < MAX_ELEMENTS for n in (tensor.offset, *tensor.strides))
        if not bounded or not is_possible(tensor.shape):
            raise CheckpointError(path, "ShapeMismatch", f"gives tensor {name!r} a wrong shape")
        if _overlaps(tensor):
            raise CheckpointError(path, "DtypeUnsupported", f"holds tensor {name!r} as a view that overlaps itself")
        if tensor.offset + _extent(tensor) > tensor.storage.size:
            raise CheckpointError(path, "SizeMismatch", f"lets tensor {name!r} reach past the end of its data")
        total += _extent(tensor) * DTYPES[tensor.storage.dtype].itemsize
    if total > MAX_VIEWS * file_size:
        raise CheckpointError(path, "ResourceLimit", f"holds tensors of {total} bytes in a file of {file_size}")


def _overlaps(tensor: Tensor) -> bool:
    """Whether, going from the axis of the smallest stride up, one steps less far than those below it reach."""
    if 0 in tensor.shape:
        return False
    reach = 1
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def _extent(tensor: Tensor) -> int:
    """Number of elements from the first of the view to its last."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum(stride * (size - 1) for stride, size in zip(tensor.strides, tensor.shape, strict=True))


def _read_tensor(path: Path, file: io.BufferedReader, tensor: Tensor, data: _Data, verified: set[str]) -> Array:
    """The view's elements in C order. A storage is verified when it is read whole, or when a part is read first."""
    whole = _extent(tensor) == tensor.storage.size
    if data.crc is not None and not whole and data.name not in verified:
        stored_zip.check_sum(path, data.name, _sum(path, file, data), data.crc)
        verified.add(data.name)
    dtype = DTYPES[tensor.storage.dtype]
    info = TensorInfo((_extent(tensor),), tensor.storage.dtype)
    flat = read_array(path, file, data.offset + tensor.offset * dtype.itemsize, info)
    if data.crc is not None and whole:
        stored_zip.check_sum(path, data.name, zlib.crc32(raw_bytes(flat)), data.crc)
    view = np.lib.stride_tricks.as_strided(flat, tensor.shape, [stride * dtype.itemsize for stride in tensor.strides])
    return view if view.flags.c_contiguous else view.copy("C")


def _sum(path: Path, file: io.BufferedReader, data: _Data) -> int:
    """CRC-32 of a storage, read in chunks."""
    file.seek(data.offset)
    crc = 0
    for start in range(0, data.size, CHUNK_BYTES):
        crc = zlib.crc32(safely.read_exactly(path, file, min(CHUNK_BYTES, data.size - start)), crc)
    return crc


def write(path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
    """Write tensors one at a time, all or nothing, as the zip archive that PyTorch since 1.6 reads."""
    with safely.write_file(path) as temporary, temporary.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        stored_zip.add_member(archive, file, "archive/data.pkl", state_pickle.dump(info))
        stored_zip.add_member(archive, file, "archive/byteorder", b"little")
        for key, name in enumerate(info):
            stored_zip.add_member(archive, file, f"archive/data/{key}", raw_bytes(read_one(name)))
        stored_zip.add_member(archive, file, "archive/version", b"3\n")
