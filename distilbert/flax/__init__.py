"""DistilBERT in Flax NNX."""

from distilbert.optional import require

require("flax.nnx", extra="flax", needed_for="distilbert.flax")

from distilbert.flax.heads import (  # noqa: E402 - after the check
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSentenceEmbedding,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from distilbert.flax.model import DistilBertModel  # noqa: E402
from distilbert.flax.pretrained import exact  # noqa: E402

__all__ = [
    "DistilBertForMaskedLM",
    "DistilBertForMultipleChoice",
    "DistilBertForQuestionAnswering",
    "DistilBertForSentenceEmbedding",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
    "exact",
]
