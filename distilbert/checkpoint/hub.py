"""A folder for what the user named: the folder itself, or a snapshot of a model on the hub.

A path never touches the network: only a name of the form `model` or `owner/model` that is no path on this machine is
looked up, first in the hub's local cache, then over the network, through the `huggingface_hub` package.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from distilbert.errors import CheckpointError, escape
from distilbert.optional import require

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.weights.h5")
_WANTED = ["*.json", "*.txt", *(f"*{name}" for name in _WEIGHTS), "task.weights.h5"]


def find_folder(folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local folder of a checkpoint.

    Raises:
        CheckpointError: NotFound, when there is no such folder and no such model.
        MissingDependencyError: it can only be a hub id, and huggingface_hub is not installed.
    """
    name = os.fspath(folder_or_hub_id)
    if os.path.lexists(name) or not _HUB_ID.fullmatch(name):
        return Path(name)
    need = f"There is no folder {name!r}; loading a model of that name from the hub"
    hub = require("huggingface_hub", extra="hub", needed_for=need)
    try:
        cached = hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED, local_files_only=True)
        if any(file.name in _WEIGHTS for file in Path(cached).rglob("*")):
            return Path(cached)
    except hub.errors.LocalEntryNotFoundError:
        pass
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as error:
        detail = f"there is no such folder, and the hub did not give a model of that name ({escape(str(error), 120)})"
        raise CheckpointError(name, "NotFound", detail) from None
