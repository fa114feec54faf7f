"""DistilBERT in Flax NNX."""

from distilbert.errors import MissingDependencyError

try:
    import flax.nnx as _nnx  # noqa: F401 - so that the error below names what is missing
except ImportError as error:
    raise MissingDependencyError("flax", "flax", "distilbert.flax", str(error)) from None

from distilbert.flax.model import DistilBertForSentenceEmbedding, DistilBertModel
from distilbert.flax.pretrained import exact

__all__ = ["DistilBertForSentenceEmbedding", "DistilBertModel", "exact"]
