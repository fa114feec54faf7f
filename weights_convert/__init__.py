"""Any checkpoint layout to any other, and BERT to DistilBERT, without any framework."""

from weights_convert.convert import Conversion, convert

__all__ = ["Conversion", "convert"]
