"""From canonical tensors to a folder: weights, config.json, and what sentence-transformers needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distilbert import weight_map
from distilbert.checkpoint import keras_hub, keras_hub_config
from distilbert.checkpoint.folder import check_format, write_config, write_weights
from distilbert.checkpoint.loading import Checkpoint
from distilbert.checkpoint.sentence_transformers import write_pooling
from distilbert.checkpoint.tensors import Array
from distilbert.config import DistilBertConfig, PoolingConfig


def save_checkpoint(
    folder: Path,
    format: str,  # noqa: A002 - the argument's public name
    head: str,
    config: DistilBertConfig,
    weights: Mapping[str, Array],
    pooling: PoolingConfig | None = None,
) -> None:
    """Write a model of the class `head` as a checkpoint folder; each file appears whole or not at all.

    Raises:
        CheckpointError: the format is unknown, or the folder holds weights in another format.
        ConfigError: a KerasHub preset cannot hold the model.
    """
    target = check_format(format)
    preset = target.module is keras_hub
    if preset:
        keras_hub_config.check_writable(folder, config, head)
    tied = weight_map.tied(config, head)  # stored once, as the reference does
    specs = {name: spec for name, spec in weight_map.tensor_specs(config, head).items() if name not in tied}
    if isinstance(weights, Checkpoint):  # known without reading
        dtypes = {name: weights.dtype(name) for name in specs}
    else:
        dtypes = {name: weights[name].dtype.name for name in specs}
    write_weights(folder, format, head, specs, dtypes, weights.__getitem__)
    if pooling is not None:
        write_pooling(folder, config, pooling)
    write = keras_hub_config.write_config if preset else write_config
    write(folder, config, head, target.written_dtype(dtypes[weight_map.WORD_EMBEDDINGS]))
