"""From what the user named to a checkpoint of the class that was asked for, or of the class that lies there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from distilbert import weight_map
from distilbert.checkpoint import keras_hub_config, safely
from distilbert.checkpoint.bert import BertCheckpoint, config_from_bert
from distilbert.checkpoint.folder import find_weights, open_weights
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.loading import Checkpoint
from distilbert.checkpoint.manifest import read_whole
from distilbert.checkpoint.sentence_transformers import SentenceFolder, read_pooling
from distilbert.checkpoint.wanted import model_files
from distilbert.config import CONFIG_FILE, MAX_CONFIG_BYTES, DistilBertConfig
from distilbert.errors import CheckpointError, ConfigError
from distilbert.tokenization import TOKENIZER_FILES

LABEL_FIELDS = ("num_labels", "id2label")  # an override of these asks for a head of its own


def open_checkpoint(
    folder_or_hub_id: str | os.PathLike[str],
    head: str,
    *,
    dtype: str = "float32",
    strict: bool = True,
    new_head: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    **config_overrides: Any,
) -> Checkpoint:
    """The checkpoint that `from_pretrained` of the class `head` reads; its arguments are documented there.

    Raises:
        CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
    """
    folder = find_folder(folder_or_hub_id, model_files, revision=revision, local_files_only=local_files_only)

    def read_files(place: SentenceFolder) -> Checkpoint:
        encoder, pooling, dense = place
        find_weights(encoder)
        stored, family = _read_family(encoder)
        config = stored.replace(**config_overrides)
        other_head = not config_overrides.keys().isdisjoint(LABEL_FIELDS) and _other_labels(config, stored)
        embeds = head == "DistilBertForSentenceEmbedding"
        return family(
            encoder,
            config,
            head,
            dtype=dtype,
            strict=strict,
            new_head=new_head or other_head,
            settings={"pooling": pooling} if embeds else {},
            dense=dense if embeds else None,
        )

    checkpoint = _read_whole(folder, read_files, lambda name: name not in TOKENIZER_FILES)
    made = [name for name in checkpoint.report.new if checkpoint.specs[name].module in weight_map.ABOVE]
    if made:
        text = f"{checkpoint.path}: new, with initial weights: {', '.join(made)}; train the model before you use it."
        warnings.warn(text, stacklevel=3)
    return checkpoint


def _other_labels(config: DistilBertConfig, stored: DistilBertConfig) -> bool:
    """Whether the labels are not those of the file, which says nothing of them when they are the default ones."""
    return config.id2label != stored.id2label or stored.id2label == DistilBertConfig().id2label


def open_source(folder: Path, *, dtype: str | None = None) -> Checkpoint:
    """The checkpoint in `folder` as the class that it holds, in the dtypes that it has unless another is given.

    Raises:
        CheckpointError, ConfigError: as `open_checkpoint`.
    """

    def read_files(place: SentenceFolder) -> Checkpoint:
        encoder, pooling, dense = place
        find_weights(encoder)
        config, family = _read_family(encoder)
        head = find_head(encoder, config)
        return family(encoder, config, head, dtype=dtype, settings={"pooling": pooling}, dense=dense)

    return _read_whole(folder, read_files, lambda _: True)


def _read_whole(
    folder: Path, read_files: Callable[[SentenceFolder], Checkpoint], concerns: Callable[[str], bool]
) -> Checkpoint:
    """What `read_files` makes of what lies in `folder`, held to its manifest, and to the encoder's own."""

    def read_below() -> Checkpoint:
        place = read_pooling(folder)
        if place.encoder == folder:
            return read_files(place)
        return read_whole(place.encoder, lambda: read_files(place), concerns)

    return read_whole(folder, read_below, concerns)


def read_config(folder: Path) -> DistilBertConfig:
    """The config of a checkpoint folder: DistilBERT's own, a KerasHub preset's, or a BERT's.

    Raises:
        CheckpointError: config.json is missing or not a JSON object. ConfigError: a value is wrong.
    """
    return _read_family(folder)[0]


def _read_family(folder: Path) -> tuple[DistilBertConfig, type[Checkpoint]]:
    """The config of a folder, and what reads its weights."""
    path = folder / CONFIG_FILE
    values = safely.read_json(path, MAX_CONFIG_BYTES)
    if keras_hub_config.is_preset(values):
        return keras_hub_config.read_config(folder), Checkpoint
    if values.get("model_type") != "bert":
        return DistilBertConfig.from_pretrained(folder), Checkpoint
    try:
        return config_from_bert(values), BertCheckpoint
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def find_head(folder: Path, config: DistilBertConfig) -> str:
    """The class whose checkpoint lies in `folder`: what config.json says, else what the tensors show.

    Raises:
        CheckpointError: the tensors fit no class.
    """
    named = config.extra.get("architectures")
    for name in cast("list[Any]", named) if isinstance(named, list) else []:
        plain = str(name).removeprefix("TF").removeprefix("Flax")
        if plain in weight_map.HEADS:
            return plain
    found = open_weights(folder)
    known = {name: spec for spec in weight_map.all_specs(config).values() for name in spec.accepted_names(found.layout)}
    present = {known[plain].module for plain in found.plain_names.values() if plain in known}
    above = {module.name for module in present & set(weight_map.ABOVE)}
    for name, head in weight_map.HEADS.items():
        if above == set(head.modules):
            return name
    detail = f"has the head modules {', '.join(sorted(above))}, which no class has"
    raise CheckpointError(found.path, "UnexpectedTensor", detail)
