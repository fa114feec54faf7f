"""The one place that opens a checkpoint file, and the one place that writes.

Reading: only regular files, only inside the folder that was asked for (the cache of huggingface_hub, whose files are
links into `blobs/`, is the one exception), nothing trusted before its size is known. Writing: a temporary sibling,
fsync, rename, fsync of the directory, so that a reader finds the old file or the new one and never a half.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

from distilbert.errors import CheckpointError, Kind, escape

MAX_JSON_BYTES = 32 << 20  # a tokenizer.json of 120 000 tokens takes 6 MiB

_KNOWN_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page, not a checkpoint: download the file itself"),
    (b"<!doctype", "an HTML page, not a checkpoint: download the file itself"),
    (b"<html", "an HTML page, not a checkpoint: download the file itself"),
    (b"PK\x03\x04", "a zip archive (PyTorch's layout)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x80", "a pickle or MessagePack file"),
)


def what_is(start: bytes) -> str:
    """What a file with these first bytes is, for error messages."""
    if not start:
        return "an empty file"
    for magic, description in _KNOWN_STARTS:
        if start.startswith(magic):
            return description
    if start[8:9] == b"{":
        return "a safetensors file"
    return "a file of another kind"


def is_another_kind(start: bytes) -> bool:
    """Whether a file with these first bytes is plainly of another kind: git-lfs, HTML, zip, HDF5."""
    return any(start.startswith(magic) for magic, _ in _KNOWN_STARTS if len(magic) > 1)


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written later, before long work is done.

    Raises:
        CheckpointError: DestinationExists, it is a folder. OSError: its folder is missing or not writable.
    """
    if path.is_dir():
        raise CheckpointError(path, "DestinationExists", "is a folder; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path.parent))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path.parent))


def open_checked(path: Path) -> io.BufferedReader:
    """Open the regular file `path` for reading.

    Raises:
        CheckpointError: NotFound, NotRegularFile (directory, device, pipe), UnsafeLink (a link out of its folder).
    """
    real = Path(os.path.realpath(path))
    if not _contained(path, real):
        raise CheckpointError(path, "UnsafeLink", f"is a link to {real}, outside its folder; put a copy there instead")
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointError(path, "NotFound", "there is no such file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(path, "UnsafeLink", "is a link to itself") from None
        if error.errno == errno.ENAMETOOLONG:
            raise CheckpointError(path, "NotFound", "there is no such file: its name is too long") from None
        if error.errno == errno.ENXIO:  # a socket
            raise CheckpointError(path, "NotRegularFile", "is not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(path, "NotRegularFile", "is not a regular file")
    return open(descriptor, "rb")  # noqa: PTH123 - a descriptor; the caller closes it


def _contained(path: Path, real: Path) -> bool:
    """Whether `real`, what `path` resolves to, lies in the folder of `path` or in the hub cache's blobs beside it."""
    folder = Path(os.path.realpath(path.parent))
    if real.parent == folder:
        return True
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    if snapshots is None:
        return False
    model = snapshots.parent
    shared = model.parent / "blobs" / real.name[:2]  # where the client keeps files that several models have
    return real.parent in (model / "blobs", shared)


def check_folder(path: Path) -> None:
    """Refuse a path that is not a folder.

    Raises:
        CheckpointError: NotFound.
    """
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "there is no such folder"
        raise CheckpointError(path, "NotFound", f"{found}; give the folder that holds config.json and the weights")


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole of a small file of at most `limit` bytes."""
    with open_checked(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(path, "ResourceLimit", f"has {size} bytes, more than the {limit} allowed here")
        return file.read(limit + 1)


def read_exactly(path: Path, file: io.BufferedReader, count: int) -> bytes:
    """`count` bytes from here on, or a Truncated error."""
    data = file.read(count)
    if len(data) != count:
        raise CheckpointError(path, "Truncated", f"ends {count - len(data)} bytes too early; copy or download it again")
    return data


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file: UTF-8, no duplicate keys, no NaN, bounded size."""
    return parse_json(read_bytes(path, limit), path)


def parse_json(data: bytes, path: str | os.PathLike[str], kind: Kind = "HeaderInvalid") -> dict[str, Any]:
    """A JSON object from bytes, under the same rules; `path` and `kind` go into the error."""
    try:
        value: Any = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate could never be written again
    except UnicodeEncodeError:
        raise CheckpointError(path, kind, "holds a lone surrogate, which is not Unicode text") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            path, kind, f"is not UTF-8 text (byte {error.start}): it is {what_is(data[:64])}"
        ) from None
    except json.JSONDecodeError as error:
        found = f"; it is {what_is(data[:64])}" if is_another_kind(data) or not data else ""
        raise CheckpointError(path, kind, f"is not valid JSON (line {error.lineno}: {error.msg}){found}") from None
    except RecursionError:
        raise CheckpointError(path, "ResourceLimit", "is JSON nested too deeply") from None
    except ValueError as error:  # a constant, a duplicate key, a number of thousands of digits
        message = "holds a number of thousands of digits" if "int_max" in str(error) else escape(str(error), 200)
        raise CheckpointError(path, "DuplicateName" if "twice" in message else kind, message) from None
    if not isinstance(value, dict):
        raise CheckpointError(path, kind, f"holds a JSON {type(value).__name__}, not an object")
    return value  # pyright: ignore[reportUnknownVariableType]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"names {name!r} twice")
        result[name] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"holds the number {text}, which JSON does not have")


@contextlib.contextmanager
def write_file(path: Path) -> Generator[Path]:
    """Yield a temporary sibling of `path` to write to; on success it takes the place of `path`, on error it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:  # named by the file that was asked for, not by the temporary one
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write `value` as indented JSON with a final newline, all or nothing."""
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text, all or nothing."""
    with write_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
