"""The JSON files of KerasHub presets (KerasHub 0.32), read and written without Keras.

config.json describes the backbone; task.json a masked LM or a text classifier, its backbone and preprocessor included;
tokenizer.json (not the file that Hugging Face calls so) and preprocessor.json what makes ids of texts.

What they have no field for (the names of labels, the dropout of attention, the sinusoidal flag, and so on) is kept in
config.json under the key `distilbert`, which KerasHub passes over; where both speak of the same, KerasHub's fields
count. A preset without that key has one rate of dropout for all. The logits of a classifier come before its softmax or
sigmoid, which is read as the `problem_type`; presets are written without either, as KerasHub makes them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilbert.checkpoint import safely
from distilbert.checkpoint.keras_hub import TASK_WEIGHTS_FILE
from distilbert.checkpoint.tensors import FLOATS
from distilbert.config import CONFIG_FILE, MAX_CONFIG_BYTES, DistilBertConfig
from distilbert.errors import ConfigError
from distilbert.weight_map import tensor_specs, tied

TASK_FILE, TOKENIZER_FILE, PREPROCESSOR_FILE, METADATA_FILE = (
    "task.json", "tokenizer.json", "preprocessor.json", "metadata.json",
)  # fmt: skip
_OURS = "distilbert"  # our key in config.json
_VERSIONS = {"keras_version": "3.15.1", "keras_hub_version": "0.32.0"}  # whose files these are
_BACKBONE = "DistilBertBackbone"
_FIELDS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "hidden_dim": "dim",
    "intermediate_dim": "hidden_dim",
    "dropout": "dropout",
    "max_sequence_length": "max_position_embeddings",
}
_EVERY_LAYER = ("name", "trainable", "dtype")  # fields without a say in the numbers
_PROBLEM_TYPES = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification"}
_SAID_BY_KERAS_HUB = (*_FIELDS.values(), "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True)
class _Task:
    """A class of KerasHub with a head: its module, our class, and the fields that only it and its preprocessor have."""

    module: str
    head: str
    fields: tuple[str, ...] = ()
    preprocessor: Mapping[str, Any] = field(default_factory=dict[str, Any])


_TASKS = {
    "DistilBertMaskedLM": _Task(
        "distil_bert_masked_lm",
        "DistilBertForMaskedLM",
        preprocessor={  # KerasHub's defaults
            "mask_selection_rate": 0.15,
            "mask_selection_length": 96,
            "mask_token_rate": 0.8,
            "random_token_rate": 0.1,
        },
    ),
    "DistilBertTextClassifier": _Task(
        "distil_bert_text_classifier",
        "DistilBertForSequenceClassification",
        fields=("num_classes", "activation", "hidden_dim", "dropout"),
    ),
}
TASK_FILES = (TASK_FILE, TASK_WEIGHTS_FILE, PREPROCESSOR_FILE)
CLASSES = ("DistilBertModel", "DistilBertForSentenceEmbedding", *(task.head for task in _TASKS.values()))


def is_preset(values: Mapping[str, Any]) -> bool:
    """Whether these are the contents of a config.json that Keras wrote."""
    return "registered_name" in values


def read_config(folder: Path) -> DistilBertConfig:
    """The config of the preset in `folder`; its `architectures` name our class for the task.

    Raises:
        CheckpointError: a file is not a JSON object. ConfigError: it describes another model, or a value is wrong.
    """
    path = folder / CONFIG_FILE
    values = safely.read_json(path, MAX_CONFIG_BYTES)
    backbone = _fields(path, values, _BACKBONE, _FIELDS, _EVERY_LAYER)
    head, labels = _read_task(folder / TASK_FILE, backbone)
    ours = values.get(_OURS, {"attention_dropout": backbone["dropout"]})
    if not isinstance(ours, dict):
        raise ConfigError(f"{path}: {_OURS} must be a JSON object, got {ours!r}.")
    sizes = {name: backbone[theirs] for theirs, name in _FIELDS.items()}
    fixed = {"activation": "gelu", "pruned_heads": None, "architectures": [head]}
    try:
        return DistilBertConfig.from_dict(ours | sizes | fixed | _dtype(backbone.get("dtype"))).replace(**labels)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _fields(
    path: Path, value: Any, class_name: str, required: Collection[str], optional: Collection[str]
) -> dict[str, Any]:
    """The fields of a Keras object, which must be of that class and have the required fields and no unknown ones."""
    match value:
        case {"class_name": found, "config": dict(fields)} if found == class_name:
            pass
        case _:
            found = value.get("class_name") if isinstance(value, dict) else value
            raise ConfigError(f"{path}: must describe a {class_name} of KerasHub, got {found!r}.")
    for name in required:
        if name not in fields:
            raise ConfigError(f"{path}: lacks the field {name} of a {class_name}.")
    for name in fields:
        if name not in {*required, *optional}:
            raise ConfigError(f"{path}: has the field {name}, which a {class_name} of KerasHub 0.32 does not have.")
    return fields


def _read_task(path: Path, backbone: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our class for the task of a preset, and the fields of our config that its task.json holds."""
    if not os.path.lexists(path):
        return "DistilBertModel", {}
    values = safely.read_json(path, MAX_CONFIG_BYTES)
    name = str(values.get("class_name"))
    if name not in _TASKS:
        raise ConfigError(f"{path}: class_name must be {' or '.join(_TASKS)}, got {name!r}.")
    task = _TASKS[name]
    found = _fields(path, values, name, ("backbone", *task.fields), ("preprocessor", *_EVERY_LAYER))
    nested = _fields(path, found["backbone"], _BACKBONE, _FIELDS, _EVERY_LAYER)
    for key in _FIELDS:
        if nested[key] != backbone[key]:
            raise ConfigError(f"{path}: {key} must be {backbone[key]!r}, as in config.json, got {nested[key]!r}.")
    return task.head, _read_labels(path, found) if task.fields else {}


def _read_labels(path: Path, classifier: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields of a text classifier are in our config."""
    width = classifier["backbone"]["config"]["hidden_dim"]
    if classifier["hidden_dim"] != width:
        raise ConfigError(f"{path}: hidden_dim must be the backbone's, {width!r}, got {classifier['hidden_dim']!r}.")
    labels = {"num_labels": classifier["num_classes"], "seq_classif_dropout": classifier["dropout"]}
    match classifier["activation"]:
        case None | "linear":
            return labels
        case "softmax" | "sigmoid" as activation:
            return labels | {"problem_type": _PROBLEM_TYPES[activation]}
        case activation:
            raise ConfigError(f"{path}: activation must be linear, softmax or sigmoid, got {activation!r}.")


def _dtype(policy: Any) -> dict[str, str]:
    """The dtype that a Keras policy names, if it is one and no more than that."""
    match policy:
        case {"config": {"name": str(name)}} if name in FLOATS:
            return {"dtype": name}
        case _:
            return {}


def check_writable(config: DistilBertConfig, head: str) -> None:
    """Refuse what a preset cannot hold, before anything is written.

    Raises:
        ConfigError: KerasHub has no such class, or would compute something else.
    """
    if head not in CLASSES:
        raise ConfigError(f"{head} has no counterpart in KerasHub; write another format, or load and save the encoder.")
    if config.activation != "gelu":
        raise ConfigError(f"activation must be 'gelu' in a KerasHub preset, got {config.activation!r}.")
    if config.pruned_heads:
        raise ConfigError(f"pruned_heads must be empty in a KerasHub preset, got {config.pruned_heads}.")
    if tied(config.replace(tie_word_embeddings=True), head) != tied(config, head):
        raise ConfigError("tie_word_embeddings must be true in the KerasHub preset of a masked LM, got False.")


def write_config(folder: Path, config: DistilBertConfig, head: str, dtype: str) -> None:
    """Write config.json, metadata.json and, for a head, task.json; `dtype` is the one that the weights have."""
    sizes = {theirs: getattr(config, name) for theirs, name in _FIELDS.items()}
    backbone = _object("distil_bert_backbone", _BACKBONE, {**_layer(dtype), **sizes})
    ours = {name: value for name, value in config.to_dict().items() if name not in _SAID_BY_KERAS_HUB}
    safely.write_json(folder / CONFIG_FILE, {**backbone, _OURS: ours})
    count = sum(math.prod(spec.shape) for spec in tensor_specs(config).values())
    tasks = ["MaskedLM", "TextClassifier"]  # what could be made of it; no date, so that equal models give equal files
    safely.write_json(folder / METADATA_FILE, {**_VERSIONS, "parameter_count": count, "tasks": tasks})
    for name, task in _TASKS.items():
        if task.head == head:
            values = (config.num_labels, "linear", config.dim, config.seq_classif_dropout)
            own = dict(zip(task.fields, values, strict=False))  # only a classifier has any
            fields = {"backbone": backbone, "preprocessor": None, **own}
            safely.write_json(folder / TASK_FILE, _object(task.module, name, fields))


def write_tokenizer(folder: Path, options: Mapping[str, Any], sequence_length: int) -> None:
    """Write tokenizer.json with `options` and, into a preset with a task, its preprocessor; not the vocabulary.

    Args:
        folder: a preset that `write_config` wrote.
        options: `lowercase`, `strip_accents` and `split_on_cjk`, as KerasHub means them.
        sequence_length: to which the preprocessor pads and cuts.
    """
    fields = {
        "config_file": TOKENIZER_FILE,
        "vocabulary": None,
        "sequence_length": None,
        "split": True,
        "suffix_indicator": "##",
        "oov_token": "[UNK]",
        "special_tokens": None,
        "special_tokens_in_strings": True,
        **options,
    }
    tokenizer = _object("distil_bert_tokenizer", "DistilBertTokenizer", {**_layer("int32"), **fields})
    safely.write_json(folder / TOKENIZER_FILE, tokenizer)
    if not (folder / TASK_FILE).exists():
        return
    content = safely.read_json(folder / TASK_FILE)
    task = _TASKS[content["class_name"]]
    fields = {
        "tokenizer": tokenizer,
        "config_file": PREPROCESSOR_FILE,
        "sequence_length": sequence_length,
        "truncate": "round_robin",
        **task.preprocessor,
    }
    name = f"{content['class_name']}Preprocessor"
    preprocessor = _object(f"{task.module}_preprocessor", name, {**_layer("float32"), **fields})
    safely.write_json(folder / PREPROCESSOR_FILE, preprocessor)
    content["config"]["preprocessor"] = preprocessor
    safely.write_json(folder / TASK_FILE, content)


def _layer(dtype: str) -> dict[str, Any]:
    """The fields that every Keras layer has beside its name."""
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": dtype}, "registered_name": None}
    return {"trainable": True, "dtype": policy}


def _object(module: str, class_name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """An object as Keras serialises it."""
    return {
        "module": f"keras_hub.src.models.distil_bert.{module}",
        "class_name": class_name,
        "config": {"name": module, **fields},
        "registered_name": f"keras_hub>{class_name}",
    }
