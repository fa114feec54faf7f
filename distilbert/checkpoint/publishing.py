"""Whole folders, all or nothing: filled under another name, then moved into place in one step.

At every moment a reader finds the old folder or the new one, whole: the files are written into a temporary sibling,
synced, and the two folders exchange their names (renameat2 on Linux, renamex_np on macOS). Two writers cannot mix
their files; the later one wins. Where folders cannot be exchanged (another system, a mount point, the folder that the
process is in), the files are moved one by one behind a manifest that does not fit until the last of them is there, so
that a half-done save is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Collection, Generator
from pathlib import Path

from distilbert.checkpoint import manifest, safely
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows, where a folder cannot be locked
    fcntl = None

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE on Linux, RENAME_SWAP on macOS
_MIN_ORPHAN_AGE = 60.0  # seconds: a writer takes less to lock the folder that it has made
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path`, with a manifest, on error nothing is left.

    Raises:
        CheckpointError: DestinationExists when `path` exists and is not an empty folder: nothing is ever overwritten.
    """
    _check_free(path)
    target = Path(os.path.abspath(path))  # noqa: PTH100 - without following links
    with _temporary_folder(target) as folder:
        yield folder
        written = manifest.files(folder)
        manifest.write(folder, written)
        _sync_all(folder)
        _check_free(path, but=folder)
        if folder.parent == target:
            _move_files(folder, target, written)
        else:
            _rename_new(folder, target, path)
        safely.sync(target.parent)


@contextlib.contextmanager
def updated_folder(path: Path, stale: Collection[str] = ()) -> Generator[Path]:
    """Yield a temporary folder to fill; on success its files are in `path`, all at once, and listed in its manifest.

    What else `path` holds stays there, but for the files in `stale`. On error nothing has changed.
    """
    target = Path(os.path.realpath(path))
    with _temporary_folder(target) as folder:
        yield folder
        written = manifest.files(folder)
        gone = {*written, *stale, MANIFEST_FILE}
        manifest.write(folder, written, {name: e for name, e in _listed(target).items() if name not in gone})
        if folder.parent == target:
            _sync_all(folder)
            _move_files(folder, target, written, stale)
        else:
            _carry_over(target, folder, gone)
            _sync_all(folder)
            _replace(folder, target, written, stale)
        safely.sync(target.parent)


def _listed(folder: Path) -> manifest.Manifest:
    try:
        return manifest.read(folder) or {}
    except CheckpointError:  # a broken manifest must not keep a new one from being written
        return {}


def _check_free(path: Path, but: Path | None = None) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()) or any(e != but for e in _entries(path)):
        raise CheckpointError(path, "DestinationExists", "exists already; choose a new folder or remove it first")


def _entries(path: Path) -> list[Path]:
    return list(path.absolute().iterdir()) if path.is_dir() else []


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Generator[Path]:
    """A locked folder beside `target`, or in it where it must be; what is left of it at the end is removed."""
    made = [parent for parent in target.parents if not parent.exists()]  # innermost first
    place = target if _must_stay(target) else target.parent
    folder = place / f".{target.name}.tmp-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        _remove_orphans(place, f".{target.name}.tmp-")
        with _locked(folder):
            yield folder
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else may have put something there
                parent.rmdir()
        if isinstance(error, OSError) and error.filename is not None:  # named by what was asked for
            error.filename = str(error.filename).replace(str(folder), str(target))
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _must_stay(target: Path) -> bool:
    """Whether `target` is a folder that cannot be renamed: a mount point, or in a folder that is not ours."""
    return target.is_dir() and (target.is_mount() or not os.access(target.parent, os.W_OK))


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold a lock on `folder` that ends with the process, so that nobody takes it for an orphan."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; the folder's age protects it then
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(place: Path, prefix: str) -> None:
    """Remove what killed writers left in `place`: old enough, and locked by nobody."""
    if fcntl is None:
        return
    for entry in _entries(place):
        if not entry.name.startswith(prefix) or entry.is_symlink():
            continue
        with contextlib.suppress(OSError):  # another writer's, or gone meanwhile
            if time.time() - entry.stat().st_mtime > _MIN_ORPHAN_AGE:
                descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry)
                finally:
                    os.close(descriptor)


def _carry_over(source: Path, folder: Path, gone: Collection[str]) -> None:
    """Give `folder` what `source` holds, but for `gone`: as further names of the same files, not as copies."""
    if not source.is_dir():
        return
    for place, folders, names in os.walk(source):
        below = Path(place).relative_to(source)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        (folder / below).mkdir(exist_ok=True)
        for name in [*names, *links]:
            if (below / name).as_posix() not in gone:
                _link(Path(place) / name, folder / below / name)
    shutil.copystat(source, folder)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, destination, follow_symlinks=False)


def _sync_all(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for path in (Path(place) / name for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                safely.sync(path)
        safely.sync(Path(place))


def _rename_new(folder: Path, target: Path, path: Path) -> None:
    try:
        folder.replace(target)
    except OSError as error:
        _check_free(path)  # another writer was faster
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


def _replace(folder: Path, target: Path, written: Collection[str], stale: Collection[str]) -> None:
    """Let `folder` be `target`, which may exist, or come into existence at any moment."""
    if not target.is_dir():
        try:
            folder.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    if _is_inside(target) or not exchange(folder, target):
        _move_files(folder, target, written, stale)


def _is_inside(folder: Path) -> bool:
    """Whether this process is in `folder`, which it would lose with the old one."""
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:
        return False


def exchange(first: Path, second: Path) -> bool:
    """Let two folders of one file system exchange their names in one step; False where that cannot be done."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        return library.renamex_np(os.fsencode(first), os.fsencode(second), _EXCHANGE) == 0
    if not hasattr(library, "renameat2"):
        return False
    return library.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0


def _move_files(folder: Path, target: Path, written: Collection[str], stale: Collection[str] = ()) -> None:
    """Move files into `target`, the manifest first: until the last one is there, the manifest does not fit."""
    for name in (MANIFEST_FILE, *written):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(target / name)
    for name in {*stale} - {*written}:
        (target / name).unlink(missing_ok=True)
    for place, _, _ in os.walk(target):
        safely.sync(Path(place))
