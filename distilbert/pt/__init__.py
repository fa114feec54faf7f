"""DistilBERT in PyTorch."""

from distilbert.errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401 - so that the error below names what is missing
except ImportError as error:
    raise MissingDependencyError("torch", "pt", "distilbert.pt", str(error)) from None

from distilbert.pt.model import DistilBertForSentenceEmbedding, DistilBertModel
from distilbert.pt.pretrained import exact

__all__ = ["DistilBertForSentenceEmbedding", "DistilBertModel", "exact"]
