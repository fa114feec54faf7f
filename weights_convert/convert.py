"""One checkpoint folder to another, in any format: streamed tensor by tensor, complete or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbert.checkpoint import keras_hub, safely
from distilbert.checkpoint.folder import check_format, find_weights, read_config
from distilbert.checkpoint.loading import Checkpoint, LoadReport, find_head
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.sentence_transformers import is_sentence_folder, read_pooling
from distilbert.checkpoint.tensors import check_dtype
from distilbert.config import CONFIG_FILE, MAX_CONFIG_BYTES
from distilbert.errors import CheckpointError, ConfigError
from distilbert.tokenization.fast import FILES as TOKENIZER_FILES
from distilbert.tokenization.fast import OPTIONS_FILE
from weights_convert.bert import BertCheckpoint, config_from_bert
from weights_convert.keras_hub import has_preset_tokenizer, pack_tokenizer, unpack_tokenizer

_SENTENCE_FILE = "config_sentence_transformers.json"
_MAX_COPIED_BYTES = 128 << 20


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: the class, what became of every tensor, and the files of the new folder."""

    head: str
    report: LoadReport
    files: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str,
    dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the DistilBERT or BERT checkpoint in `source` as a new folder `destination`.

    Args:
        source: a folder with config.json and weights in any format that we read.
        destination: a folder that does not exist yet, or is empty.
        to: "safetensors", "tf-h5", "flax-msgpack" or "keras-hub".
        dtype: of the new weights; default as stored.
        progress: called with (tensors done, tensors in all).

    Raises:
        CheckpointError, ConfigError, TokenizerError: nothing was written.
    """
    source, destination = Path(source), Path(destination)
    target = check_format(to)
    if dtype is not None:
        check_dtype(dtype)
    safely.check_folder(source)
    if destination.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(destination, "DestinationExists", f"lies in the source folder {source}; choose another")
    encoder, pooling = read_pooling(source)
    checkpoint = open_source(encoder, dtype=dtype)
    if progress is not None:
        checkpoint.on_read(progress)
    with safely.new_folder(destination) as folder:
        settings = pooling if is_sentence_folder(source) else None
        save_checkpoint(folder, to, checkpoint.head, checkpoint.config, checkpoint, settings)
        for place in dict.fromkeys((encoder, source)):
            _copy_files(place, folder, (_SENTENCE_FILE,))
            if target.module is keras_hub:
                pack_tokenizer(place, folder, checkpoint.config)
            elif has_preset_tokenizer(place):
                unpack_tokenizer(place, folder, checkpoint.config)
            else:
                _copy_files(place, folder, TOKENIZER_FILES)
        files = tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))
    return Conversion(checkpoint.head, checkpoint.report, files)


def open_source(folder: Path, *, dtype: str | None = None) -> Checkpoint:
    """The checkpoint in `folder`, DistilBERT's or BERT's, as a DistilBERT of the class that it holds."""
    find_weights(folder)
    values = safely.read_json(folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    try:
        if values.get("model_type") == "bert":
            return BertCheckpoint(folder, config_from_bert(values), dtype=dtype)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG_FILE}: {error}") from None
    config = read_config(folder)
    return Checkpoint(folder, config, find_head(folder, config), dtype=dtype)


def _copy_files(source: Path, destination: Path, names: Iterable[str]) -> None:
    """Copy those of the files that are there, so that the new folder is complete."""
    for name in names:
        if (source / name).is_file():
            data = safely.read_bytes(source / name, _MAX_COPIED_BYTES)
            if name == OPTIONS_FILE:
                data = _as_distilbert_tokenizer(source / name, data)
            (destination / name).write_bytes(data)


def _as_distilbert_tokenizer(path: Path, data: bytes) -> bytes:
    """Name the class whose output has no token types; otherwise transformers would make them for a BERT source."""
    options: dict[str, Any] = safely.parse_json(data, path)
    options["tokenizer_class"] = "DistilBertTokenizer"
    return (json.dumps(options, indent=2, ensure_ascii=False) + "\n").encode()
