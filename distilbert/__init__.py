"""DistilBERT for PyTorch, TensorFlow/Keras 3 and Flax NNX: one config, one weight-name map, numbers that agree.

Names are resolved when they are used: importing this package imports no framework. `DistilBertModel` is PyTorch's,
`TFDistilBertModel` that of `distilbert.tf`, `FlaxDistilBertModel` that of `distilbert.flax`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_CORE = {
    "AddedToken": "distilbert.tokenization.options",
    "CheckpointError": "distilbert.errors",
    "ConfigError": "distilbert.errors",
    "DataError": "distilbert.errors",
    "DenseConfig": "distilbert.config",
    "DistilBertConfig": "distilbert.config",
    "DistilBertTokenizer": "distilbert.tokenization.slow",
    "DistilBertTokenizerFast": "distilbert.tokenization.fast",
    "MissingDependencyError": "distilbert.errors",
    "PoolingConfig": "distilbert.config",
    "TokenizerError": "distilbert.errors",
    "TrainingError": "distilbert.errors",
}
_MODELS = (
    "DistilBertForMaskedLM",
    "DistilBertForMultipleChoice",
    "DistilBertForQuestionAnswering",
    "DistilBertForSentenceEmbedding",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
)
_PREFIXES = {"": "distilbert.pt", "TF": "distilbert.tf", "Flax": "distilbert.flax"}
_PLACES = {name: (module, name) for name, module in _CORE.items()} | {
    prefix + name: (module, name) for prefix, module in _PREFIXES.items() for name in _MODELS
}

__all__ = [*_PLACES, "__version__"]  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
