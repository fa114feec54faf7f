"""DistilBERT in Keras 3 on TensorFlow."""

from distilbert.errors import MissingDependencyError

try:
    import tensorflow as _tf  # noqa: F401 - so that the error below names what is missing
except ImportError as error:
    raise MissingDependencyError("tensorflow", "tf", "distilbert.tf", str(error)) from None
try:
    import keras as _keras
except ImportError as error:
    raise MissingDependencyError("keras", "tf", "distilbert.tf", str(error)) from None

if _keras.config.backend() != "tensorflow":
    raise ImportError(
        f"distilbert.tf runs on Keras's tensorflow backend, but Keras uses {_keras.config.backend()}: set the "
        "environment variable KERAS_BACKEND=tensorflow before Keras is first imported, or use distilbert.pt or "
        "distilbert.flax."
    )

from distilbert.tf.model import DistilBertForSentenceEmbedding, DistilBertModel  # noqa: E402 - after the checks above
from distilbert.tf.pretrained import exact  # noqa: E402 - after the checks above

__all__ = ["DistilBertForSentenceEmbedding", "DistilBertModel", "exact"]
