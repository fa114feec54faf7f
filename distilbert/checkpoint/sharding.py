"""Checkpoints in several files: an index says which file holds which tensor, and each file must hold exactly those.

`model.safetensors.index.json` and its likes: {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}.
A file name in an index is a plain name beside it, nothing else: no path ever leaves the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from distilbert.checkpoint import safely
from distilbert.checkpoint.manifest import is_below
from distilbert.checkpoint.tensors import MAX_TENSORS, Array, StoredTensors, TensorInfo
from distilbert.errors import CheckpointError

MAX_SHARDS = 1000
MAX_INDEX_BYTES = 8 << 20  # 50 000 tensors take 5 MiB
_DIGITS = 5  # of a shard's number and count
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "": 1}


class FileModule(Protocol):
    """A module that reads and writes files of one format."""

    def read(self, path: Path) -> StoredTensors:
        """The tensors of a file, unread."""
        ...

    def write(self, path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
        """Write tensors, one at a time."""
        ...


def index_file(file: str) -> str:
    """The name of the index of a checkpoint that would be `file` if it were whole."""
    return f"{file}.index.json"


def shard_file(file: str, number: int, count: int) -> str:
    """The name of a shard, counted from 1."""
    stem, suffix = os.path.splitext(file)  # noqa: PTH122 - a name, not a path
    return f"{stem}-{number:0{_DIGITS}d}-of-{count:0{_DIGITS}d}{suffix}"


def is_part(name: str, file: str) -> bool:
    """Whether `name` is the index or a shard of the checkpoint `file`."""
    stem, suffix = os.path.splitext(file)  # noqa: PTH122 - as above
    number, of, count = name.removeprefix(f"{stem}-").removesuffix(suffix).partition("-of-")
    numbered = bool(of) and all(len(part) == _DIGITS and part.isdecimal() for part in (number, count))
    return name == index_file(file) or (numbered and name == f"{stem}-{number}-of-{count}{suffix}")


def read(path: Path, file: str, module: FileModule, from_index: Callable[[str], str]) -> StoredTensors:
    """The tensors of all shards that the index `path` names, unread. `from_index` gives the stored name of a key.

    Raises:
        CheckpointError: the index, or a shard, is not as the other says.
    """
    index = safely.read_json(path, MAX_INDEX_BYTES)
    places = _places(path, index, os.path.splitext(file)[1], from_index)  # noqa: PTH122 - as above
    shards = {name: _open_shard(path.parent / name, module) for name in dict.fromkeys(places.values())}
    for name, shard in shards.items():
        _check_shard(path, name, shard, places)
    info = {tensor: shards[name].info[tensor] for tensor, name in places.items()}
    _check_total(path, index, info)
    metadata = [dict(shard.metadata) for shard in shards.values()]
    if any(one != metadata[0] for one in metadata):
        raise CheckpointError(path, "HeaderInvalid", "names shards whose metadata differ")
    return StoredTensors(info, lambda tensor: shards[places[tensor]][tensor], metadata[0])


def _places(path: Path, index: Mapping[str, Any], suffix: str, from_index: Callable[[str], str]) -> dict[str, str]:
    """The shard of each tensor."""
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(path, "HeaderInvalid", "has no weight_map of tensors to files")
    files = cast("dict[str, Any]", listed)
    if len(files) > MAX_TENSORS:
        raise CheckpointError(path, "ResourceLimit", f"lists {len(files)} tensors, more than {MAX_TENSORS}")
    for name in dict.fromkeys(map(str, files.values())):
        if not is_below(name) or "/" in name:
            raise CheckpointError(path, "PathEscape", f"names the file {name!r}; a shard lies beside its index")
        if not name.endswith(suffix):
            raise CheckpointError(
                path, "HeaderInvalid", f"names the file {name!r}, whose name does not end in {suffix}"
            )
    if len(set(files.values())) > MAX_SHARDS:
        raise CheckpointError(path, "ResourceLimit", f"names more than {MAX_SHARDS} files")
    return {from_index(tensor): str(name) for tensor, name in files.items()}


def _open_shard(path: Path, module: FileModule) -> StoredTensors:
    try:
        return module.read(path)
    except CheckpointError as error:
        if error.kind != "NotFound":
            raise
        detail = "is a shard that is missing; copy or download the checkpoint again"
        raise CheckpointError(path, "IncompleteSave", detail) from None


def _check_shard(path: Path, name: str, shard: StoredTensors, places: Mapping[str, str]) -> None:
    """A shard holds the tensors that the index places there, and no other."""
    wanted = {tensor for tensor, place in places.items() if place == name}
    for tensor in sorted(wanted - shard.info.keys()):
        raise CheckpointError(path, "MissingTensor", f"places {tensor!r} in {name}, which does not hold it")
    for tensor in sorted(shard.info.keys() - wanted):
        kind = "DuplicateName" if tensor in places else "UnexpectedTensor"
        raise CheckpointError(path, kind, f"does not place {tensor!r} in {name}, which holds it")


def _check_total(path: Path, index: Mapping[str, Any], info: Mapping[str, TensorInfo]) -> None:
    """The bytes in all, if the index tells them; some writers count a tied tensor once, others twice."""
    metadata = index.get("metadata", {})
    total = cast("dict[str, Any]", metadata).get("total_size") if isinstance(metadata, dict) else None
    sizes = [entry.size for entry in info.values()]
    if total is not None and (not isinstance(total, int | float) or sum(sizes) - total not in {0, *sizes}):
        detail = f"tells of {total} bytes, but its shards hold {sum(sizes)}: they belong to different checkpoints"
        raise CheckpointError(path, "SizeMismatch", detail)


def write(
    folder: Path,
    file: str,
    module: FileModule,
    info: Mapping[str, TensorInfo],
    read_one: Callable[[str], Array],
    shard_size: int | None,
) -> None:
    """Write tensors into `file`, or, when they take more than `shard_size` bytes, into shards with an index."""
    shards = _split(info, shard_size)
    if len(shards) == 1:
        module.write(folder / file, info, read_one)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        name = shard_file(file, number, len(shards))
        module.write(folder / name, {tensor: info[tensor] for tensor in names}, read_one)
        places |= dict.fromkeys(names, name)
    total = sum(entry.size for entry in info.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    safely.write_json(folder / index_file(file), index)


def _split(info: Mapping[str, TensorInfo], shard_size: int | None) -> list[list[str]]:
    """Names in their order, in runs that fit `shard_size`; a tensor that alone is larger has a shard of its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in info.items():
        if shard_size is not None and shards[-1] and size + entry.size > shard_size:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.size
    return shards


def parse_size(text: str) -> int:
    """A number of bytes, such as 500MB, 2GiB or 1000000.

    Raises:
        ValueError: it is not one.
    """
    number = text.strip().rstrip("KMGIBkmgib")
    unit = text.strip()[len(number) :].upper()
    if not number.isascii() or not number.isdecimal() or unit not in _UNITS or int(number) == 0:
        raise ValueError(f"a shard size must be a number of bytes such as 500MB or 2GiB, got {text!r}.")
    return int(number) * _UNITS[unit]
