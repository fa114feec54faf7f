"""DistilBERT without any framework: frozen models in C, for x86-64 processors with AVX-512. Arrays are NumPy's.

The sources stand beside this file and are compiled when the package is installed, where there is a C compiler. The
backends compute by the same kernels, see `inference.optimize` of each.
"""

from distilbert.native.heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSentenceEmbedding,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)
from distilbert.native.library import NoKernelsError

__all__ = [
    "DistilBertForMaskedLM",
    "DistilBertForMultipleChoice",
    "DistilBertForQuestionAnswering",
    "DistilBertForSentenceEmbedding",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
    "NoKernelsError",
]
