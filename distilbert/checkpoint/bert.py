"""BERT as a source: its encoder, and the heads that DistilBERT computes alike, exactly.

BERT adds a token-type row to every token; with one segment that is always row 0, so adding row 0 to every row of the
position table leaves the embedding unchanged (Sanh et al. 2019 drop it instead). The rest is a change of names: the
encoder's, and those of masked LM, token classification and question answering. What DistilBERT has no place for (the
pooler and what stands on it, token type 1) is listed in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from distilbert import weight_map
from distilbert.checkpoint.loading import Checkpoint
from distilbert.checkpoint.tensors import FLOATS, Array, is_finite
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig
from distilbert.errors import CheckpointError, ConfigError

_FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
    "tie_word_embeddings": "tie_word_embeddings",
}
_HEADS = {  # of the classes that compute the same; others keep the encoder only
    "BertForMaskedLM": "DistilBertForMaskedLM",
    "BertForPreTraining": "DistilBertForMaskedLM",
    "BertForTokenClassification": "DistilBertForTokenClassification",
    "BertForQuestionAnswering": "DistilBertForQuestionAnswering",
}
_ENCODER = "DistilBertModel"
# What must hold of a BERT for DistilBERT's equations to be its own, with BERT's default.
_REQUIRED = {
    "layer_norm_eps": (LAYER_NORM_EPS, LAYER_NORM_EPS),
    "position_embedding_type": ("absolute", "absolute"),
    "is_decoder": (False, False),
    "add_cross_attention": (False, False),
}


def config_from_bert(values: Mapping[str, Any]) -> DistilBertConfig:
    """The DistilBERT config of a BERT's config.json; its `architectures` name our class for the head.

    Raises:
        ConfigError: the model computes something that DistilBERT does not.
    """
    for name, (wanted, default) in _REQUIRED.items():
        if values.get(name, default) != wanted:
            raise ConfigError(f"{name} must be {wanted!r} to be converted to DistilBERT, got {values[name]!r}.")
    fields = {ours: values[theirs] for theirs, ours in _FIELDS.items() if theirs in values}
    if fields.get("activation") == "gelu_pytorch_tanh":
        fields["activation"] = "gelu_new"  # the same function
    return DistilBertConfig.from_dict(fields | {"architectures": [_find_head(values)]})


def _find_head(values: Mapping[str, Any]) -> str:
    """The class for a BERT of this config.json: that of its head where DistilBERT has the same, else the encoder's."""
    named = values.get("architectures")
    for name in cast("list[Any]", named) if isinstance(named, list) else []:
        plain = str(name).removeprefix("TF").removeprefix("Flax")
        if plain in _HEADS:
            return _HEADS[plain]
    return _ENCODER


class BertCheckpoint(Checkpoint):
    """A BERT read as DistilBERT: canonical names, token-type row 0 folded into the positions."""

    def __init__(self, folder: Path, config: DistilBertConfig, head: str, **options: Any) -> None:
        headless = config.extra.get("architectures") == [_ENCODER]  # what it has above computes something else
        super().__init__(folder, config, head, layouts=weight_map.BERT, headless=headless, **options)
        accepted = {*weight_map.token_types(config).accepted_names(self.layout)}
        self._token_types = [stored for stored, plain in self._plain_names.items() if plain in accepted]
        self._check_token_types()

    def __getitem__(self, name: str) -> Array:
        array = super().__getitem__(name)
        if name != weight_map.POSITION_EMBEDDINGS:
            return array
        with np.errstate(over="ignore"):
            folded = (self._read(name).astype(np.float64) + self._token_type_row()).astype(array.dtype)
        if not is_finite(folded):
            detail = f"has sums of {name!r} and token type 0 that {array.dtype.name} cannot hold; choose another dtype"
            raise CheckpointError(self.path, "NonFinite", detail)
        return folded

    def _check_token_types(self) -> None:
        """There is a token-type table, and its row 0 fits."""
        if not self._token_types:
            raise CheckpointError(self.path, "MissingTensor", "lacks the embeddings of token types")
        for name in self._token_types:
            info = self._stored.info[name]
            fits = len(info.shape) == 2 and info.shape[0] > 0 and info.shape[1] == self.config.dim
            if not fits or info.dtype not in FLOATS:
                detail = f"{name!r} has shape {info.shape}, must have (at least 1, {self.config.dim})"
                raise CheckpointError(self.path, "ShapeMismatch", detail)

    def _token_type_row(self) -> Array:
        row, *others = (self._stored[name][0] for name in self._token_types)
        if not is_finite(row):
            raise CheckpointError(self.path, "NonFinite", f"holds NaN or infinity in {self._token_types[0]!r}")
        if any(other.tobytes() != row.tobytes() for other in others):
            detail = f"holds {self._token_types[0]!r} twice with different numbers"
            raise CheckpointError(self.path, "DuplicateName", detail)
        return row
