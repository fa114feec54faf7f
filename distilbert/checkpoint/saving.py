"""From canonical tensors to a folder: weights, config.json, and what sentence-transformers needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distilbert import weight_map
from distilbert.checkpoint import keras_hub_config
from distilbert.checkpoint.folder import check_format, weight_files, write_config, write_weights
from distilbert.checkpoint.publishing import updated_folder
from distilbert.checkpoint.sentence_transformers import module_files, write_pooling
from distilbert.checkpoint.tensors import Array, LazyWeights
from distilbert.config import DistilBertConfig, PoolingConfig


def save_checkpoint(
    folder: Path,
    format: str,  # noqa: A002 - the argument's public name
    head: str,
    config: DistilBertConfig,
    weights: Mapping[str, Array],
    pooling: PoolingConfig | None = None,
    *,
    shard_size: int | None = None,
) -> None:
    """Write a model of the class `head` as a checkpoint folder: all its files at once, or none.

    Other files that the folder holds stay, but for those of a former model; MANIFEST.json lists what was written.

    With the `pooling` of a sentence embedding, `weights` hold its dense layer too, which gets a folder of its own.

    Raises:
        CheckpointError: the format is unknown, or the folder holds weights in another format.
        ConfigError: a KerasHub preset cannot hold the model.
    """
    check_format(format)
    stale = weight_files(folder, format) | module_files(folder)
    with updated_folder(folder, stale) as temporary:
        write_checkpoint(temporary, format, head, config, weights, pooling, shard_size=shard_size)


def write_checkpoint(
    folder: Path,
    format: str,  # noqa: A002 - as above
    head: str,
    config: DistilBertConfig,
    weights: Mapping[str, Array],
    pooling: PoolingConfig | None = None,
    *,
    shard_size: int | None = None,
) -> None:
    """Write the files of a checkpoint into a folder that is not in place yet."""
    target = check_format(format)
    target.check_shard_size(shard_size)
    if target.is_preset:
        keras_hub_config.check_writable(config, head)
    tied = weight_map.tied(config, head)  # stored once, as the reference does
    specs = {name: spec for name, spec in weight_map.tensor_specs(config, head).items() if name not in tied}
    names = [*specs, *weight_map.dense_specs(config, pooling)]
    if isinstance(weights, LazyWeights):
        dtypes = {name: weights.dtype(name) for name in names}
    else:
        dtypes = {name: weights[name].dtype.name for name in names}
    write_weights(folder, format, head, specs, dtypes, weights.__getitem__, shard_size)
    if pooling is not None:
        write_pooling(folder, config, pooling, dtypes, weights.__getitem__)
    write = keras_hub_config.write_config if target.is_preset else write_config
    write(folder, config, head, target.written_dtype(dtypes[weight_map.WORD_EMBEDDINGS]))
