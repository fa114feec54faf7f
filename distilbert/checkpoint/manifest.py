"""MANIFEST.json: name, size and sha256 of every file that a save wrote, so that a reader can tell them from others.

A bit that flips on a disk, a copy that stops half-way, files of two saves in one folder: none of these shows in the
files themselves, all of them show here. The digests are those of `sha256sum`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeVar, cast

from distilbert.checkpoint import safely
from distilbert.errors import CheckpointError, DistilBertError

MANIFEST_FILE = "MANIFEST.json"
_VERSION = 1
_MAX_BYTES = 4 << 20
_ATTEMPTS = 20  # a folder that is replaced while it is read is read again, this often
_REMEDY = "restore it, or, if you changed it yourself, run `distilbert verify --accept` on the folder"

Result = TypeVar("Result")


class FileDigest(NamedTuple):
    """What a file must be: its size in bytes and its sha256 in hexadecimal digits."""

    size: int
    sha256: str


Manifest = Mapping[str, FileDigest]  # by path below the folder, parts joined by /


def digest(path: Path) -> FileDigest:
    """Size and sha256 of a file."""
    with safely.open_checked(path) as file:
        return FileDigest(os.fstat(file.fileno()).st_size, _sha256(file))


def _sha256(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, names: Iterable[str], kept: Manifest | None = None) -> None:
    """Write the manifest of the files `names` of `folder`, and of others whose digests are known."""
    files = {**(kept or {}), **{name: digest(folder / name) for name in names}}
    entries = {name: files[name]._asdict() for name in sorted(files)}
    safely.write_json(folder / MANIFEST_FILE, {"version": _VERSION, "files": entries})


def read(folder: Path) -> Manifest | None:
    """The manifest of `folder`; None when it has none.

    Raises:
        CheckpointError: it is not one, or of a version that we do not know.
    """
    path = folder / MANIFEST_FILE
    try:
        values = safely.read_json(path, _MAX_BYTES)
    except CheckpointError as error:
        if error.kind != "NotFound" or path.is_symlink():
            raise
        return None
    if values.get("version") != _VERSION:
        detail = f"has version {values.get('version')!r}, not {_VERSION}; if it is not a checkpoint's, rename it"
        raise CheckpointError(path, "VersionUnsupported", detail)
    files = values.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(path, "HeaderInvalid", "has no map of files")
    return {name: _entry(path, name, entry) for name, entry in cast("dict[str, Any]", files).items()}


def _entry(path: Path, name: str, entry: Any) -> FileDigest:
    if not is_below(name):
        raise CheckpointError(path, "PathEscape", f"lists {name!r}, which lies outside the folder")
    match entry:
        case {"size": int(size), "sha256": str(sha256)} if len(sha256) == 64 and size >= 0:
            return FileDigest(size, sha256)
        case _:
            raise CheckpointError(path, "HeaderInvalid", f"describes {name!r} wrongly")


def is_below(name: str) -> bool:
    """Whether `name` is a path below the folder that names it, on every system: relative, no `..`, no drive.

    It has one spelling, without `./` or `//`: a list of names cannot name a file more than once.
    """
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    outside = posix.is_absolute() or windows.anchor or ".." in windows.parts
    return str(posix) == name != "." and not outside and "\\" not in name and name.isprintable()


def files(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, by its path, parts joined by /."""
    found = [below / name for below, names in walk(folder) for name in names if (folder / below / name).is_file()]
    return [path.as_posix() for path in found if path != Path(MANIFEST_FILE)]


def walk(folder: Path, *, vanishing: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Each folder in `folder`, itself first, by its path below, with the names of what is not a folder in it.

    `vanishing`: folders that another process removes meanwhile are no error.
    """

    def fail(error: OSError) -> None:  # os.walk would leave out what it cannot list
        if not (vanishing and isinstance(error, FileNotFoundError)):
            raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield Path(place).relative_to(folder), [*names, *links]


def differences(
    folder: Path, manifest: Manifest, concerns: Callable[[str], bool] = lambda _: True
) -> list[CheckpointError]:
    """What is wrong with the files of `folder` that the manifest lists and that concern the caller."""
    found = [_difference(folder / name, wanted) for name, wanted in manifest.items() if concerns(name)]
    return [error for error in found if error is not None]


def _difference(path: Path, wanted: FileDigest) -> CheckpointError | None:
    try:
        with safely.open_checked(path) as file:
            size = os.fstat(file.fileno()).st_size
            sha256 = _sha256(file) if size == wanted.size else ""  # a file may have grown without end
    except CheckpointError as error:
        if error.kind != "NotFound":
            return error
        return CheckpointError(path, "IncompleteSave", f"is missing, though {MANIFEST_FILE} lists it; {_REMEDY}")
    if size != wanted.size:
        detail = f"has {size} bytes, not the {wanted.size} that {MANIFEST_FILE} lists; {_REMEDY}"
        return CheckpointError(path, "IntegrityMismatch", detail)
    if sha256 != wanted.sha256:
        return CheckpointError(path, "IntegrityMismatch", f"has other bytes than {MANIFEST_FILE} lists; {_REMEDY}")
    return None


def read_whole(
    folder: Path, read_files: Callable[[], Result], concerns: Callable[[str], bool] = lambda _: True
) -> Result:
    """What `read_files` reads from `folder`, whose files are those of one save: the one that the manifest lists.

    A folder that another process replaces meanwhile is read again. Without a manifest nothing is checked.

    Raises:
        CheckpointError: IntegrityMismatch or IncompleteSave, or what `read_files` raises.
    """
    for _ in range(_ATTEMPTS):
        with _watched(folder / MANIFEST_FILE) as is_same:
            try:
                wrong = differences(folder, read(folder) or {}, concerns)
                if wrong:
                    raise wrong[0]
                result = read_files()
            except DistilBertError:
                if is_same():
                    raise
            else:
                if is_same():
                    return result
    raise CheckpointError(folder, "IncompleteSave", "is replaced faster than it can be read; wait for its writer")


@contextlib.contextmanager
def _watched(path: Path) -> Generator[Callable[[], bool]]:
    """Tell whether `path` still is the file that it was, or still missing. Every save makes a new file.

    Equal bytes would not do: between two looks a folder can change twice. While the file is open, no other has its
    number.
    """
    try:
        file = safely.open_checked(path)
    except CheckpointError as error:
        if error.kind != "NotFound":
            raise
        yield lambda: not path.exists()
        return
    with file:
        yield lambda: _is_at(path, file)


def _is_at(path: Path, file: io.BufferedReader) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
