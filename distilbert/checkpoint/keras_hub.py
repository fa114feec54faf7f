"""The weights of KerasHub presets (KerasHub 0.32), read and written without Keras.

model.weights.h5 holds the backbone in groups named by class, with `vars/0`, `vars/1` in each; task.weights.h5 beside it
holds the head alone, and what the optimizer knew. Tensors of the latter carry `task/` before their name here. The JSON
files of a preset are the business of keras_hub_config.py.

Weights convert bit for bit. What KerasHub computes from them differs in two places: the LayerNorm of its masked-LM head
has an epsilon of 1e-5 where DistilBERT has 1e-12; and in training it drops attention probabilities at the rate
`dropout`, and the attention's output too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from distilbert.checkpoint import hdf5
from distilbert.checkpoint.tensors import Array, StoredTensors, TensorInfo
from distilbert.errors import CheckpointError

TASK_WEIGHTS_FILE = "task.weights.h5"
_TASK = "task/"  # as the weight map has it

# The groups of a file, each with a group `vars` inside, and the name of the layer that Keras notes there. * stands for
# how Keras counts equal classes, "" and "_1" and "_2", and # for the number of the layer.
_BACKBONE = {
    "": "distil_bert_backbone",
    "layers/input_layer": "token_ids",
    "layers/input_layer_1": "padding_mask",
    "layers/token_and_position_embedding": "token_and_position_embedding",
    "layers/token_and_position_embedding/token_embedding": "token_embedding",
    "layers/token_and_position_embedding/position_embedding": "position_embedding",
    "layers/layer_normalization": "embeddings_layer_norm",
    "layers/dropout": "embeddings_dropout",
}
_LAYER = {
    "": "transformer_layer_#",
    "/_self_attention_layer": "self_attention_layer",
    "/_self_attention_layer/query_dense": "query",
    "/_self_attention_layer/key_dense": "key",
    "/_self_attention_layer/value_dense": "value",
    "/_self_attention_layer/output_dense": "attention_output",
    "/_self_attention_layer/_softmax": "softmax*",
    "/_self_attention_layer/_dropout_layer": "dropout*",
    "/_self_attention_layer_norm": "self_attention_layer_norm",
    "/_self_attention_dropout": "self_attention_dropout",
    "/_feedforward_intermediate_dense": "feedforward_intermediate_dense",
    "/_feedforward_output_dense": "feedforward_output_dense",
    "/_feedforward_layer_norm": "feedforward_layer_norm",
    "/_feedforward_dropout": "feedforward_dropout",
}
_MASKED_LM = {
    "": "distil_bert_masked_lm",
    "optimizer": "adam",
    "layers/input_layer_2": "mask_positions",
    "layers/masked_lm_head": "mlm_head",
    "layers/masked_lm_head/_intermediate_dense": "intermediate_dense",
    "layers/masked_lm_head/_intermediate_layer_norm": "intermediate_layer_norm",
}
_TEXT_CLASSIFIER = {
    "": "distil_bert_text_classifier",
    "optimizer": "adam",
    "layers/dense": "pooled_dense",
    "layers/dropout": "output_dropout",
    "layers/dense_1": "logits",
}
# KerasHub's optimizer before its first step: steps and learning rate. Keras warns at every load of a task without it.
_OPTIMIZER = {f"{_TASK}optimizer/vars/0": np.array(0, np.int64), f"{_TASK}optimizer/vars/1": np.array(5e-5, np.float32)}


def read(path: Path) -> StoredTensors:
    """Describe the tensors of the model.weights.h5 at `path` and of a task.weights.h5 beside it, unread.

    Raises:
        CheckpointError: a file is damaged, or holds what a weights file of Keras 3 does not.
    """
    backbone, task_path = hdf5.read(path), path.with_name(TASK_WEIGHTS_FILE)
    for name in backbone:
        if name.startswith(_TASK):
            raise CheckpointError(path, "UnexpectedTensor", f"holds unknown {name!r}")
    if not os.path.lexists(task_path):
        return backbone
    task = hdf5.read(task_path)

    def read_one(name: str) -> Array:
        return task[name.removeprefix(_TASK)] if name.startswith(_TASK) else backbone[name]

    return StoredTensors({**backbone.info, **{_TASK + name: entry for name, entry in task.info.items()}}, read_one)


def write(path: Path, info: Mapping[str, TensorInfo], read_one: Callable[[str], Array]) -> None:
    """Write the model.weights.h5 at `path`, and the task.weights.h5 beside it for a head; each file whole or not."""

    def read_any(name: str) -> Array:
        return _OPTIMIZER[name] if name in _OPTIMIZER else read_one(name)

    above = [name for name in info if name.startswith(_TASK)]
    if above:
        groups = _TEXT_CLASSIFIER if f"{_TASK}layers/dense/vars/0" in info else _MASKED_LM
        _write_file(path.with_name(TASK_WEIGHTS_FILE), groups, [*above, *_OPTIMIZER], read_any)
    encoder = [name for name in info if not name.startswith(_TASK)]
    _write_file(path, _backbone_groups(encoder), encoder, read_one)


def _backbone_groups(names: Collection[str]) -> dict[str, str]:
    """The groups of a backbone with as many layers as these tensors have."""
    groups = dict(_BACKBONE)
    for i in range(sum(name.endswith("/query_dense/vars/0") for name in names)):
        count = f"_{i}" if i else ""
        for group, name in _LAYER.items():
            groups[f"layers/transformer_encoder{count}{group}"] = name.replace("*", count).replace("#", str(i))
    return groups


def _write_file(
    path: Path, groups: Mapping[str, str], names: Collection[str], read_one: Callable[[str], Array]
) -> None:
    with hdf5.create(path) as file:
        for group, layer_name in groups.items():
            file.create_group(f"{group}/vars").attrs["name"] = layer_name
        for name in names:
            hdf5.write_dataset(file, name.removeprefix(_TASK), read_one(name))
