"""From canonical tensors to a folder: weights, config.json, and what sentence-transformers needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from distilbert import weight_map
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

    With the `pooling` of a sentence embedding, `weights` hold its dense layer too, which gets a folder of its own.

    Raises:
        CheckpointError: the format is unknown, or the folder holds weights in another format.
    """
    target = check_format(format)
    tied = weight_map.tied(config, head)  # stored once, as the reference does
    specs = {name: spec for name, spec in weight_map.tensor_specs(config, head).items() if name not in tied}
    names = [*specs, *weight_map.dense_specs(config, pooling)]
    if isinstance(weights, Checkpoint):  # known without reading
        dtypes = {name: weights.dtype(name) for name in names}
    else:
        dtypes = {name: weights[name].dtype.name for name in names}
    write_weights(folder, format, head, specs, dtypes, weights.__getitem__)
    if pooling is not None:
        write_pooling(folder, config, pooling, dtypes, weights.__getitem__)
    write_config(folder, config, head, target.written_dtype(dtypes[weight_map.WORD_EMBEDDINGS]))
