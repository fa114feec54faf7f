"""A folder for what the user named: the folder itself, or a snapshot of a model on the hub.

A path never touches the network: only a name of the form `model` or `owner/model` that is no path on this machine is
looked up, first in the hub's local cache, then over the network, through the `huggingface_hub` package.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from distilbert.errors import CheckpointError, MissingDependencyError, escape

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_WANTED = ["*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack"]


def find_folder(folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local folder of a checkpoint.

    Raises:
        CheckpointError: NotFound, when there is no such folder and no such model.
        MissingDependencyError: it can only be a hub id, and huggingface_hub is not installed.
    """
    name = os.fspath(folder_or_hub_id)
    if os.path.lexists(name) or not _HUB_ID.fullmatch(name):
        return Path(name)
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        need = f"There is no folder {name!r}; loading a model of that name from the hub"
        raise MissingDependencyError("huggingface_hub", "hub", need, str(error)) from None
    try:
        cached = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED, local_files_only=True)
        if any(Path(cached).glob("*.json")):
            return Path(cached)
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        detail = f"there is no such folder, and the hub did not give a model of that name ({escape(str(error), 120)})"
        raise CheckpointError(name, "NotFound", detail) from None
