"""What is in a checkpoint folder, from its headers alone: no weight is loaded and no framework is needed."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbert.checkpoint import manifest
from distilbert.checkpoint.folder import open_weights
from distilbert.checkpoint.manifest import MANIFEST_FILE, FileDigest
from distilbert.checkpoint.opening import open_source
from distilbert.checkpoint.sentence_transformers import is_sentence_folder, read_pooling
from distilbert.checkpoint.tensors import TensorInfo
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError, DistilBertError

DIMENSIONS = ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim", "num_labels")
FITS, ABSENT = "fits", "absent"


@dataclass(frozen=True)
class Inspection:
    """The contents of a folder. `problem` says why it would not load, "" when it would."""

    folder: str
    format: str
    layout: str
    head: str  # the class that it is loaded as; "" when it does not load
    config: DistilBertConfig | None
    dtypes: tuple[str, ...]
    tensors: dict[str, TensorInfo]  # by stored name
    files: dict[str, FileDigest]  # every file that lies in the folder
    manifest: str  # "fits", "absent", or what is wrong
    problem: str

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return sum(entry.count for entry in self.tensors.values())

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON holds it."""
        values = dataclasses.asdict(dataclasses.replace(self, config=None))
        values["config"] = None if self.config is None else self.config.to_dict()
        values["files"] = {name: entry._asdict() for name, entry in self.files.items()}
        return values | {"parameters": self.parameters}


def inspect(folder: Path) -> Inspection:
    """Describe the checkpoint in `folder`.

    Raises:
        CheckpointError: there are no weights in it, or their file is broken.
    """
    place = read_pooling(folder)
    weights = open_weights(place.encoder)
    tensors = dict(weights.stored.info)
    if place.dense is not None:
        dense = open_weights(place.dense.path).stored.info
        tensors |= {f"{place.dense.path.name}/{name}": entry for name, entry in dense.items()}
    config, head, layout, problem = None, "", weights.layout.name, ""
    try:
        checkpoint = open_source(folder)
        config, head, layout = checkpoint.config, checkpoint.head, checkpoint.layout.name
    except DistilBertError as error:
        problem = str(error)
    if is_sentence_folder(folder) and head:
        head = "DistilBertForSentenceEmbedding"
    return Inspection(
        folder=str(folder),
        format=weights.format.name,
        layout=layout,
        head=head,
        config=config,
        dtypes=tuple(sorted({entry.dtype for entry in tensors.values()})),
        tensors=tensors,
        files=_digests(folder),
        manifest=_manifest_state(folder),
        problem=problem,
    )


def _digests(folder: Path) -> dict[str, FileDigest]:
    """Of every file that may be opened: what leads out of the folder has none."""
    found: dict[str, FileDigest] = {}
    for name in sorted(manifest.files(folder)):
        with contextlib.suppress(CheckpointError):
            found[name] = manifest.digest(folder / name)
    return found


def _manifest_state(folder: Path) -> str:
    try:
        listed = manifest.read(folder)
        wrong = manifest.differences(folder, listed or {})
    except CheckpointError as error:
        return str(error)
    if listed is None:
        return ABSENT
    return FITS if not wrong else f"{MANIFEST_FILE} does not fit: {wrong[0]}"
