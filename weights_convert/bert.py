"""BERT as a source: its encoder, exactly, as a DistilBERT of the same depth and width.

BERT adds a token-type row to every token; with one segment that is always row 0, so adding row 0 to every row of the
position table leaves the embedding unchanged (Sanh et al. 2019 drop it instead). The rest is a change of names. What
DistilBERT has no place for (pooler, heads, token type 1) is listed in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
}
# What must hold of a BERT for DistilBERT's equations to be its own, with BERT's default.
_REQUIRED = {
    "layer_norm_eps": (LAYER_NORM_EPS, LAYER_NORM_EPS),
    "position_embedding_type": ("absolute", "absolute"),
    "is_decoder": (False, False),
    "add_cross_attention": (False, False),
}


def config_from_bert(values: Mapping[str, Any]) -> DistilBertConfig:
    """The DistilBERT config of a BERT's config.json.

    Raises:
        ConfigError: the model computes something that DistilBERT does not.
    """
    for name, (wanted, default) in _REQUIRED.items():
        if values.get(name, default) != wanted:
            raise ConfigError(f"{name} must be {wanted!r} to be converted to DistilBERT, got {values[name]!r}.")
    fields = {ours: values[theirs] for theirs, ours in _FIELDS.items() if theirs in values}
    if fields.get("activation") == "gelu_pytorch_tanh":
        fields["activation"] = "gelu_new"  # the same function
    return DistilBertConfig.from_dict(fields)


class BertCheckpoint(Checkpoint):
    """A BERT encoder read as DistilBERT: canonical names, token-type row 0 folded into the positions."""

    def __init__(self, folder: Path, config: DistilBertConfig, **options: Any) -> None:
        super().__init__(folder, config, "DistilBertModel", layout=weight_map.BERT, **options)
        self._token_types = self._find_token_types()

    def __getitem__(self, name: str) -> Array:
        array = super().__getitem__(name)
        if name != weight_map.POSITION_EMBEDDINGS:
            return array
        folded = self._read(name).astype(np.float64) + self._token_type_row().astype(np.float64)
        return folded.astype(array.dtype)

    def _find_token_types(self) -> str:
        """The stored name of the token-type table, whose row 0 must fit."""
        for prefix in ("", "bert."):
            name = prefix + weight_map.TOKEN_TYPE_EMBEDDINGS
            if name in self._stored.info:
                info = self._stored.info[name]
                if (
                    len(info.shape) != 2
                    or not info.shape[0]
                    or info.shape[1] != self.config.dim
                    or info.dtype not in FLOATS
                ):
                    detail = f"{name!r} has shape {info.shape}, must have (at least 1, {self.config.dim})"
                    raise CheckpointError(self.path, "ShapeMismatch", detail)
                return name
        raise CheckpointError(self.path, "MissingTensor", f"lacks {weight_map.TOKEN_TYPE_EMBEDDINGS}")

    def _token_type_row(self) -> Array:
        row = self._stored[self._token_types][0]
        if not is_finite(row):
            raise CheckpointError(self.path, "NonFinite", f"holds NaN or infinity in {self._token_types!r}")
        return row
