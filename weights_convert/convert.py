"""One checkpoint folder to another, in any format: streamed tensor by tensor, complete or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbert.checkpoint import safely
from distilbert.checkpoint.folder import check_format
from distilbert.checkpoint.loading import LoadReport
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import open_source
from distilbert.checkpoint.publishing import new_folder
from distilbert.checkpoint.saving import write_checkpoint
from distilbert.checkpoint.sentence_transformers import SETTINGS_FILE, is_sentence_folder
from distilbert.checkpoint.student import Student
from distilbert.checkpoint.tensors import check_dtype
from distilbert.config import MAX_CONFIG_BYTES
from distilbert.errors import CheckpointError
from distilbert.parity import ParityReport
from distilbert.tokenization import OPTIONS_FILE, TOKENIZER_FILES
from weights_convert.keras_hub import is_preset_folder, pack_tokenizer, unpack_tokenizer
from weights_convert.verification import check_bits, check_parity

_MAX_COPIED_BYTES = 128 << 20


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: the class, what became of every tensor, the files of the new folder, and its proof."""

    head: str
    report: LoadReport
    files: tuple[str, ...]
    parity: ParityReport | None = None  # of the backends that verified it


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str,
    dtype: str | None = None,
    layers: Sequence[int] | None = None,
    shard_size: int | None = None,
    verify: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the DistilBERT or BERT checkpoint in `source` as a new folder `destination`.

    Args:
        source: a folder with config.json and weights in any format that we read.
        destination: a folder that does not exist yet, or is empty.
        to: one of `distilbert.checkpoint.folder.WRITABLE`.
        dtype: of the new weights; default as stored.
        layers: of the source, counted from 0, that the new model keeps; default all.
        shard_size: bytes above which the weights are split into several files with an index.
        verify: backends that must compute what the reference computes from the new folder, whose tensors are then also
            compared with the source's bit for bit, before it is put in place.
        progress: called with (tensors done, tensors in all).

    Raises:
        CheckpointError, ConfigError, TokenizerError, ValueError: nothing was written. VerificationError: `verify`
            failed, likewise.
    """
    source, destination = Path(source), Path(destination)
    target = check_format(to)
    target.check_shard_size(shard_size)
    if dtype is not None:
        check_dtype(dtype)
    safely.check_folder(source)
    if destination.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(destination, "DestinationExists", f"lies in the source folder {source}; choose another")
    checkpoint = open_source(source, dtype=dtype)
    encoder, pooling = checkpoint.path.parent, checkpoint.settings["pooling"]
    weights = checkpoint if layers is None else Student(checkpoint, layers)
    if progress is not None:
        weights.on_read(progress)
    with new_folder(destination) as folder:
        settings = pooling if is_sentence_folder(source) else None
        write_checkpoint(folder, to, weights.head, weights.config, weights, settings, shard_size=shard_size)
        for place in dict.fromkeys((encoder, source)):
            _copy_files(place, folder, (SETTINGS_FILE,))
            if target.is_preset:
                pack_tokenizer(place, folder, weights.config)
            elif is_preset_folder(place):
                unpack_tokenizer(place, folder, weights.config)
            else:
                _copy_files(place, folder, TOKENIZER_FILES)
        if verify:
            check_bits(weights, open_source(folder))
        report = check_parity(folder, verify) if verify else None
        files = tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
    return Conversion(weights.head, weights.report, (*files, MANIFEST_FILE), report)


def _copy_files(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy those of the files that are there, so that the new folder is complete."""
    for name in names:
        if (source / name).is_file():
            limit = MAX_CONFIG_BYTES if name == OPTIONS_FILE else _MAX_COPIED_BYTES
            data = safely.read_bytes(source / name, limit)
            if name == OPTIONS_FILE:
                data = _as_distilbert_tokenizer(source / name, data)
            (destination / name).write_bytes(data)


def _as_distilbert_tokenizer(path: Path, data: bytes) -> bytes:
    """Name the class whose output has no token types; otherwise transformers would make them for a BERT source."""
    options: dict[str, Any] = safely.parse_json(data, path)
    options["tokenizer_class"] = "DistilBertTokenizer"
    return (json.dumps(options, indent=2, ensure_ascii=False) + "\n").encode()
