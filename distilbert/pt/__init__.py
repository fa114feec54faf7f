"""DistilBERT in PyTorch."""

from distilbert.optional import require

require("torch", extra="pt", needed_for="distilbert.pt")

from distilbert.pt.model import DistilBertForSentenceEmbedding, DistilBertModel  # noqa: E402 - after the check
from distilbert.pt.pretrained import exact  # noqa: E402

__all__ = ["DistilBertForSentenceEmbedding", "DistilBertModel", "exact"]
