"""DistilBERT in Flax NNX."""

from distilbert.optional import require

require("flax.nnx", extra="flax", needed_for="distilbert.flax")

from distilbert.flax.model import DistilBertForSentenceEmbedding, DistilBertModel  # noqa: E402 - after the check
from distilbert.flax.pretrained import exact  # noqa: E402

__all__ = ["DistilBertForSentenceEmbedding", "DistilBertModel", "exact"]
