"""DistilBERT in Keras 3 on TensorFlow."""

from distilbert.optional import require

require("tensorflow", extra="tf", needed_for="distilbert.tf")
_backend = require("keras", extra="tf", needed_for="distilbert.tf").config.backend()
if _backend != "tensorflow":
    raise ImportError(
        f"distilbert.tf runs on Keras's tensorflow backend, but Keras uses {_backend}: set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is first imported, or use distilbert.pt or distilbert.flax."
    )

from distilbert.tf.heads import (  # noqa: E402 - after the checks
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSentenceEmbedding,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from distilbert.tf.model import DistilBertModel  # noqa: E402
from distilbert.tf.pretrained import exact  # noqa: E402

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
