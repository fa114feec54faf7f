"""Where a run stands, on disk: weights, moments and counters of a step, in a folder that appears whole or not at all.

A checkpoint holds numbers and JSON only, nothing that could execute. Its manifest names size and sha256 of its files;
one that does not fit is passed over with a warning, and the one before it is taken. Nothing of a random generator is
in it: all randomness is a function of the seed and the step.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distilbert.checkpoint import manifest, safely, safetensors
from distilbert.checkpoint.publishing import new_folder
from distilbert.checkpoint.tensors import TensorInfo
from distilbert.errors import CheckpointError, DistilBertError
from distilbert.training.resuming import Identity

ARRAYS_FILE, STATE_FILE = "state.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.step-\d{8,}\.(removed|tmp-[0-9a-f]{32})")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: its step, the trainer's arrays, what the loop had counted, and of which run it is."""

    step: int
    arrays: Mapping[str, NDArray[Any]]
    progress: Mapping[str, Any]
    identity: Identity


class Checkpoints:
    """The checkpoints of a run, in `folder`; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int, identity: Identity) -> None:
        """Look after `folder`, which no other process writes to: what a killed one has left half-done is removed.

        Args:
            folder: of the checkpoints; it need not exist yet.
            keep: how many stay.
            identity: of the run, which each checkpoint notes.
        """
        self._folder, self._keep, self._identity = folder, keep, identity
        for path in _entries(folder):
            if _LEFT.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)  # another process of the run may be at it, too

    def save(self, step: int, arrays: Mapping[str, NDArray[Any]], progress: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, then remove those that are too old, and those that were passed over.

        Raises:
            OSError: it could not be written; those before it are whole.
        """
        path = self._folder / f"step-{step:08d}"
        if path.exists():
            if _is_whole(path):  # saved before: the same numbers
                return
            _remove(path)  # one that was passed over
        info = {name: TensorInfo(array.shape, array.dtype.name) for name, array in arrays.items()}
        with new_folder(path) as temporary:
            safetensors.write(temporary / ARRAYS_FILE, info, arrays.__getitem__)
            state = {"step": step, "progress": progress, "identity": self._identity}
            safely.write_json(temporary / STATE_FILE, state)
        paths = self._paths()
        newest = paths.index(path)  # those before it are of later steps: damaged, for the run went on from less
        for other in (*paths[:newest], *paths[newest + self._keep :]):
            _remove(other)

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; None if there is none."""
        for path in self._paths():
            try:
                return _read(path)
            except DistilBertError as error:
                warnings.warn(f"{error}; taking the checkpoint before it.", stacklevel=2)
        return None

    def _paths(self) -> list[Path]:
        """The folders of checkpoints, newest first."""
        found = [(int(match[1]), path) for path in _entries(self._folder) if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found, reverse=True)]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except DistilBertError:
        return False
    return True


def _read(path: Path) -> Saved:
    listed = manifest.read(path)
    if listed is None or not {ARRAYS_FILE, STATE_FILE} <= listed.keys():
        raise CheckpointError(path, "IncompleteSave", "has no manifest of its files")
    wrong = manifest.differences(path, listed)
    if wrong:
        raise wrong[0]
    state = safely.read_json(path / STATE_FILE)
    arrays = safetensors.read(path / ARRAYS_FILE)
    return Saved(state["step"], dict(arrays), state["progress"], state["identity"])


def _remove(path: Path) -> None:
    """Remove a checkpoint: first its name, so that a part of it is never taken for one."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    safely.sync(path.parent)
    shutil.rmtree(doomed, ignore_errors=True)
