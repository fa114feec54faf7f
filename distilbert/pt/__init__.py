"""DistilBERT in PyTorch."""

from distilbert.optional import require

require("torch", extra="pt", needed_for="distilbert.pt")

from distilbert.pt.heads import (  # noqa: E402 - after the check
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSentenceEmbedding,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from distilbert.pt.model import DistilBertModel  # noqa: E402
from distilbert.pt.pretrained import exact  # noqa: E402

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
