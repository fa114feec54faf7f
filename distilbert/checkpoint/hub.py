"""A folder for what the user named: the folder itself, or a snapshot of a model on the hub.

A path never touches the network: only a string of the form `model` or `owner/model` that is no path on this machine is
looked up, first in the hub's local cache, then over the network, through the `huggingface_hub` package. Which files are
needed is the caller's to say; nothing else is fetched. What was fetched must have the sha256 that the hub gives, which
the package does not check.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

from distilbert.checkpoint import safely
from distilbert.errors import CheckpointError, escape
from distilbert.optional import require

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")  # the names of other blobs are SHA-1 of git
_TOKEN = "set HF_TOKEN to a token that may read it"  # noqa: S105 - what to do, no password


class Source(Protocol):
    """The files of one revision of a model, in the cache or on the hub. Names are relative, with slashes."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def get(self, name: str) -> Path:
        """The file on this machine, downloaded first if need be."""
        ...


Choose = Callable[[Source], list[str]]  # the names of the files to have; the first one must be indispensable


class MissingFileError(LookupError):
    """A model lacks a file that is needed. The text names it."""


def first_of(source: Source, *names: str) -> str:
    """The first of `names` that the model has.

    Raises:
        MissingFileError: it has none of them.
    """
    for name in names:
        if source.has(name):
            return name
    raise MissingFileError(" or ".join(names))


def find_folder(
    folder_or_hub_id: str | os.PathLike[str],
    choose: Choose,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a checkpoint, with the files that `choose` names if it is a model of the hub.

    Raises:
        CheckpointError: NotFound, there is no such folder, and the model cannot be had; IntegrityMismatch, a download
            is damaged. MissingDependencyError: it can only be a hub id, and huggingface_hub is not installed.
    """
    name = os.fspath(folder_or_hub_id)
    if not isinstance(folder_or_hub_id, str) or os.path.lexists(name) or not _HUB_ID.fullmatch(name):
        return Path(name)
    need = f"There is no folder {name!r}; loading a model of that name from the hub"
    client = require("huggingface_hub", extra="hub", needed_for=need)
    try:
        return _find_cached(client, name, choose, revision)
    except MissingFileError as missing:
        if local_files_only or client.constants.HF_HUB_OFFLINE:
            cause = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE"
            detail = f"there is no such folder, and the hub's cache lacks {missing}, which {cause} forbids to download"
            raise CheckpointError(name, "NotFound", f"{detail}; allow it once, or give a folder") from None
    return _download(client, name, choose, revision)


class _Snapshot:
    """What the cache holds of a model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def get(self, name: str) -> Path:
        return self.folder / name


def _find_cached(client: Any, name: str, choose: Choose, revision: str | None) -> Path:
    """The snapshot in the cache, if it is complete; makes no request."""
    try:
        with _one_line(client, name):
            folder = client.snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[])
    except client.utils.LocalEntryNotFoundError:
        raise MissingFileError(f"the model at the revision {revision or 'main'!r}") from None
    snapshot = _Snapshot(Path(folder))
    for file in choose(snapshot):
        first_of(snapshot, file)
    return snapshot.folder


class _Listing:
    """What the hub has of a model, at one commit."""

    def __init__(self, client: Any, name: str, revision: str | None) -> None:
        self._client, self._name = client, name
        with _one_line(client, name):
            timeout = client.constants.HF_HUB_DOWNLOAD_TIMEOUT
            info = client.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=timeout)
            self.commit = _commit(info.sha)
            self._digests: dict[str, str | None] = {
                entry.rfilename: entry.lfs["sha256"] if entry.lfs else None for entry in info.siblings
            }

    def has(self, name: str) -> bool:
        return name in self._digests

    def get(self, name: str) -> Path:
        return self.get_at(name, self.commit)

    def get_at(self, name: str, revision: str | None) -> Path:
        """The file of a revision; the cache remembers which commit a branch or tag was."""
        with _one_line(self._client, f"{self._name}/{name}"):
            path = Path(self._client.hf_hub_download(self._name, name, revision=revision))
        _check_digest(path, self._digests[name])
        return path


def _commit(text: str) -> str:
    """The text, which becomes the name of a folder, if it is a commit hash."""
    if not _COMMIT.fullmatch(text):
        raise ValueError(f"{text!r} is no commit hash")
    return text


def _download(client: Any, name: str, choose: Choose, revision: str | None) -> Path:
    """A snapshot with the chosen files. One that is needed comes last: what has it was downloaded and checked whole."""
    listing = _Listing(client, name, revision)
    try:
        last, *others = dict.fromkeys(choose(listing))
        for file in others:
            listing.get(first_of(listing, file))
    except MissingFileError as missing:
        raise CheckpointError(
            name, "NotFound", f"there is no such folder, and the hub's model lacks {missing}"
        ) from None
    folder = listing.get_at(last, revision).parents[last.count("/")]
    if folder.name != listing.commit:
        detail = f"changed on the hub, from {listing.commit} to {folder.name}, while it was downloaded; load it again"
        raise CheckpointError(name, "NotFound", detail)
    return folder


def _check_digest(path: Path, listed: str | None) -> None:
    """Compare a file with the sha256 in the model's listing, and with that which the cache has as its blob's name."""
    links = [path]
    while links[-1].is_symlink():
        links.append(links[-1].parent / links[-1].readlink())
    known = {digest for digest in (listed, *(link.name for link in links[1:2])) if digest and _SHA256.fullmatch(digest)}
    if not known:
        return
    with safely.open_checked(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if known == {found}:
        return
    for link in links:  # the file itself, too, so that it is downloaded anew
        link.unlink(missing_ok=True)
    detail = f"has the sha256 {found}, the hub's has {' and '.join(sorted(known))}: it was damaged on the way"
    raise CheckpointError(path, "IntegrityMismatch", f"{detail} and is removed; load the model again")


@contextlib.contextmanager
def _one_line(client: Any, what: str) -> Generator[None]:
    """Turn what the client raises into one line; what this machine lacks, such as disk space, and absence stay."""
    try:
        yield
    except Exception as error:  # of httpx, httpx2 or requests, by the client's version
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno and not _is_network(error)):
            raise
        if isinstance(error, client.utils.LocalEntryNotFoundError) and error.__cause__ is None:
            raise
        raise CheckpointError(what, "NotFound", _what_failed(client, error)) from None


def _is_network(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError)


def _what_failed(client: Any, error: Exception) -> str:
    """What the hub refused, or did not do, and what helps."""
    cause = error.__cause__ or error if isinstance(error, client.utils.LocalEntryNotFoundError) else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    match cause:
        case client.utils.GatedRepoError():
            return f"the hub's model is gated: accept its terms there, and {_TOKEN}"
        case client.utils.RepositoryNotFoundError():
            return f"there is no such folder, and no such model on the hub; if it is private, {_TOKEN}"
        case client.utils.RevisionNotFoundError():
            return "the hub's model has no such revision; give a branch, a tag or a commit hash that it has"
        case client.utils.HFValidationError():
            return "there is no such folder, and this cannot be the id of a model on the hub"
        case _:
            pass
    if status in (401, 403):
        return f"the hub does not allow it ({status}); {_TOKEN}"
    if status == 429:
        return "the hub gets too many requests from here (429); try again later, or give a folder"
    if status is not None:
        return f"the hub answered with an error ({status}); try again later, or give a folder"
    reason = escape(f"{type(cause).__name__}: {cause}", 160)
    return f"the hub cannot be reached, or failed ({reason}); check name and network, or give a folder"
