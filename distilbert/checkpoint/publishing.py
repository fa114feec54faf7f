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
import re
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
_PATIENCE = 10.0  # seconds: publishing takes less, and a user may hold the lock around us
_NOT_ALLOWED = (errno.EPERM, errno.EACCES)
_NOT_POSSIBLE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_NO_LINKS = (*_NOT_ALLOWED, *_NOT_POSSIBLE, errno.EMLINK)
_NO_EXCHANGE = (*_NOT_ALLOWED, *_NOT_POSSIBLE, errno.EBUSY, errno.EXDEV)


@contextlib.contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path`, with a manifest, on error nothing is left.

    Raises:
        CheckpointError: DestinationExists when `path` exists and is not an empty folder: nothing is ever overwritten.
    """
    _check_free(path)
    target = Path(os.path.realpath(path))
    with _temporary_folder(target) as folder:
        yield folder
        written = manifest.files(folder)
        manifest.write(folder, written)
        _sync_all(folder)
        with _locked(folder.parent):
            _check_free(path, but=folder.name)
            if _is_movable(folder, target):
                _rename_new(folder, target, path)
            else:
                _move_files(folder, target, written)


@contextlib.contextmanager
def updated_folder(path: Path, stale: Collection[str] = ()) -> Generator[Path]:
    """Yield a temporary folder to fill; on success its files are in `path`, all at once, and listed in its manifest.

    What else `path` holds stays there, but for the files in `stale` and those that another writer has added meanwhile.
    On error nothing has changed.

    Raises:
        CheckpointError: DestinationExists, `path` is not a folder. PermissionError: it is one that may not be changed.
    """
    target = Path(os.path.realpath(path))
    _check_changeable(path, target)
    before = _listed(target)
    with _temporary_folder(target) as folder:
        yield folder
        written = {name: manifest.digest(folder / name) for name in manifest.files(folder)}
        _sync_all(folder)
        with _locked(folder.parent):  # what is carried over belongs to one save
            listed = _listed(target)
            gone = {MANIFEST_FILE, *written, *stale, *(listed.keys() - before.keys())}
            kept = {name: entry for name, entry in listed.items() if name not in gone and (target / name).exists()}
            manifest.write(folder, (), {**kept, **written})
            movable = _is_movable(folder, target) and _carry_over(target, folder, gone)
            if not movable or not _replace(folder, target, gone):
                _move_files(folder, target, written, gone)


def _check_free(path: Path, but: str | None = None) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()) or any(e.name != but for e in _entries(path)):
        raise CheckpointError(path, "DestinationExists", "exists already; choose a new folder or remove it first")


def _check_changeable(path: Path, target: Path) -> None:
    if os.path.lexists(target) and not target.is_dir():
        raise CheckpointError(path, "DestinationExists", "is not a folder; choose another name or remove it first")
    if target.is_dir() and not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def _listed(folder: Path) -> manifest.Manifest:
    try:
        return manifest.read(folder) or {}
    except CheckpointError:  # a broken manifest must not keep a new one from being written
        return {}


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


@contextlib.contextmanager
def _temporary_folder(target: Path) -> Generator[Path]:
    """A locked folder beside `target`, or in it where it must be; what is left of it at the end is removed."""
    made = [parent for parent in target.parents if not parent.exists()]  # innermost first
    place = target if _must_stay(target) else target.parent
    folder = place / f".{target.name}.tmp-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        with _locked(folder):
            _remove_orphans(place, f".{target.name}.tmp-")
            if target.is_dir() and place != target:
                _copy_rights(target, folder)
            yield folder
            for changed in (place, *(parent.parent for parent in made)):
                safely.sync(changed)
    except BaseException as error:
        _remove(folder)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else may have put something there
                parent.rmdir()
        if isinstance(error, OSError) and error.filename is not None:  # named by what was asked for
            error.filename = str(error.filename).replace(str(folder), str(target))
        raise
    _remove(folder)


def _must_stay(target: Path) -> bool:
    """Whether `target` is a folder that cannot be renamed: a mount point, or in a folder that is not ours."""
    return target.is_dir() and (target.is_mount() or not os.access(target.parent, os.W_OK))


def _copy_rights(source: Path, folder: Path) -> None:
    """Give `folder` the rights of `source`, and its group and owner where we may."""
    if sys.platform != "win32":
        found = source.stat()
        for owner in (-1, found.st_uid):
            with contextlib.suppress(PermissionError):
                os.chown(folder, owner, found.st_gid)
    shutil.copystat(source, folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold a lock on `folder`, which ends with the process: a new one is no orphan, and in its parent one publishes.

    Where there are no locks, or somebody keeps this one for long, age and the checks of readers protect alone.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(place: Path, prefix: str) -> None:
    """Remove what killed writers left in `place`: old enough, and locked by nobody."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # a folder that may be written but not listed
        for entry in _entries(place):
            if not re.fullmatch(re.escape(prefix) + "[0-9a-f]{32}", entry.name):
                continue
            with contextlib.suppress(OSError):  # another writer's, another user's, or gone meanwhile
                _remove_orphan(entry)


def _remove_orphan(entry: Path) -> None:
    if fcntl is None or time.time() - entry.lstat().st_mtime <= _MIN_ORPHAN_AGE:
        return
    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(entry)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder and all in it, whatever the rights of its folders; what resists is left to a later save."""
    for place, folders, _ in os.walk(folder):
        for path in (Path(place) / name for name in folders):
            if not path.is_symlink():
                with contextlib.suppress(OSError):  # gone, or another user's
                    path.chmod(stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


def _carry_over(source: Path, folder: Path, gone: Collection[str]) -> bool:
    """Give `folder` what `source` holds, but for `gone`: as further names of the same files, not as copies.

    False where something must stay where it is: what is mounted there, or what another user lets us neither link to
    nor read.
    """
    if not source.is_dir():
        return True
    folders: list[Path] = []
    try:
        for below, names in manifest.walk(source, vanishing=True):
            if folders and (source / below).is_mount():
                return False
            folders.append(below)
            (folder / below).mkdir(exist_ok=True)
            for name in names:
                if (below / name).as_posix() not in gone:
                    _link(source / below / name, folder / below / name)
        for below in reversed(folders[1:]):
            _copy_rights(source / below, folder / below)
    except OSError as error:
        if error.errno not in (*_NOT_ALLOWED, errno.EXDEV) and not isinstance(error, shutil.SpecialFileError):
            raise
        return False
    for below in folders:
        safely.sync(folder / below)
    return True


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except FileNotFoundError:  # removed meanwhile, or replaced by another writer, whose folder is looked through later
        if source.exists():
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, destination, follow_symlinks=False)
        if stat.S_ISREG(destination.lstat().st_mode):
            safely.sync(destination)


def _sync_all(folder: Path) -> None:
    for below, names in manifest.walk(folder):
        for name in (*names, "."):
            safely.sync(folder / below / name)


def _is_movable(folder: Path, target: Path) -> bool:
    """Whether `folder` lies beside `target`, and this process is not in that, which it would lose with the old one."""
    try:
        return folder.parent != target and not Path.cwd().is_relative_to(target)
    except FileNotFoundError:  # it is in a folder that is gone
        return folder.parent != target


def _rename_new(folder: Path, target: Path, path: Path) -> None:
    try:
        folder.replace(target)
    except OSError as error:
        _check_free(path)  # another writer was faster
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from None


def _replace(folder: Path, target: Path, gone: Collection[str]) -> bool:
    """Let `folder` be `target`, which may exist, or come into existence at any moment. False where that cannot be."""
    if not target.is_dir():
        try:
            folder.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return True
    if not exchange(folder, target):
        return False
    _rescue(folder, target, gone)
    return True


def _rescue(old: Path, target: Path, gone: Collection[str]) -> None:
    """Carry over what others put into `old` until the last moment, but for the files of another save."""
    theirs = {*gone, *_listed(old)}
    for below, names in manifest.walk(old):
        for name in names:
            if (below / name).as_posix() not in theirs and not os.path.lexists(target / below / name):
                (target / below).mkdir(parents=True, exist_ok=True)
                _link(old / below / name, target / below / name)


def exchange(first: Path, second: Path) -> bool:
    """Let two folders of one file system exchange their names in one step; False where that cannot be done."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        failed = library.renamex_np(*names, _EXCHANGE)
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)
    else:
        return False
    if failed and ctypes.get_errno() not in _NO_EXCHANGE:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(second))
    return not failed


def _move_files(folder: Path, target: Path, written: Collection[str], gone: Collection[str] = ()) -> None:
    """Move files into `target`, the manifest first: until the last one is there, the manifest does not fit."""
    (folder / MANIFEST_FILE).replace(target / MANIFEST_FILE)
    safely.sync(target)  # before the rest: a folder may have had no manifest until now
    for name in {*gone} - {*written, MANIFEST_FILE}:  # before the rest: weights in another form would be preferred
        (target / name).unlink(missing_ok=True)
    for name in written:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(target / name)
    for place in {target, *(parent for name in written for parent in (target / name).parents)}:
        if place.is_relative_to(target):
            safely.sync(place)
