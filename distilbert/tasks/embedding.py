"""Sentence embedding: texts to vectors, on any backend."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distilbert.backends import load_backend
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.wanted import encoder_files
from distilbert.tokenization.batching import length_sorted_batches
from distilbert.tokenization.fast import DistilBertTokenizerFast


class SentenceEncoder:
    """A sentence-embedding model and its tokenizer.

    Example:
        encoder = SentenceEncoder.from_pretrained("folder", backend="flax")
        vectors = encoder.encode(["a text", "another"])  # (2, dim), or as wide as the dense layer; float32
    """

    def __init__(self, model: Any, tokenizer: DistilBertTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer
        limits = (
            model.pooling.config.max_seq_length,
            tokenizer.model_max_length,
            model.config.max_position_embeddings,
        )
        self.max_length = min(limit for limit in limits if limit is not None)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        backend: str = "pt",
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Load model and tokenizer from a folder or hub id; `options` go to the model's `from_pretrained`."""
        folder = find_folder(folder_or_hub_id, encoder_files, revision=revision, local_files_only=local_files_only)
        model = load_backend(backend).DistilBertForSentenceEmbedding.from_pretrained(folder, **options)
        return cls(model, DistilBertTokenizerFast.from_pretrained(Path(model.load_report.source).parent))

    def encode(self, texts: str | Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """One vector per text, (len(texts), width), float32, in the order of the texts; (width,) for a single string.

        Texts longer than the model allows are cut. They are grouped by length, so that little is padded.

        Raises:
            DataError: a text is no valid Unicode. ValueError: `batch_size` is not positive.
        """
        if isinstance(texts, str):
            return self.encode([texts])[0]
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        width = self.model.pooling.config.width(self.model.config.dim)
        vectors = np.empty((len(ids), width), np.float32)
        with self.model.evaluating() as model:
            for rows, items in length_sorted_batches(ids, batch_size=batch_size):
                batch = self.tokenizer.pad({"input_ids": items}, return_tensors="np")
                vectors[rows] = _as_numpy(model(**batch).embeddings)
        return vectors


def _as_numpy(array: Any) -> NDArray[Any]:
    """A backend's array on the host; PyTorch has no way from bfloat16 to NumPy but through float32."""
    return np.asarray(array.float().cpu() if hasattr(array, "cpu") and hasattr(array, "float") else array)
