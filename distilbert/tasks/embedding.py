"""Sentence embedding: texts to vectors, on any backend."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distilbert.backends import BACKENDS, NATIVE, first_installed, load_backend, load_inference
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.wanted import encoder_files
from distilbert.config import PoolingConfig
from distilbert.inference import FrozenModel, check_precision
from distilbert.progress import Advance, show_progress
from distilbert.tasks.ahead import map_ahead
from distilbert.tokenization.batching import WINDOW, length_sorted_batches
from distilbert.tokenization.checks import check_count
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.tokenization.samples import check_unicode

Vectors = NDArray[np.float32]

TOKEN_BUDGET = 2048  # tokens of a batch: more are no faster on a processor, and the progress bar moves in smaller steps
TINY = 1e-12  # what a length of 0 is taken for, as in the models
ALONE = {"output_hidden_states": False, "output_attentions": False}  # whatever the config says


class SentenceEncoder:
    """A sentence-embedding model and its tokenizer.

    Example:
        encoder = SentenceEncoder.from_pretrained("folder", backend="flax")
        vectors = encoder.encode(["a text", "another"])  # (2, dim), or as wide as the dense layer; float32
    """

    def __init__(self, model: Any, tokenizer: DistilBertTokenizerFast) -> None:
        """An encoder from its parts.

        Args:
            model: a `DistilBertForSentenceEmbedding` of any backend, or what `inference.optimize` made of one.
            tokenizer: of the same checkpoint.

        Raises:
            TypeError: the model has no pooling.
        """
        if getattr(model, "pooling", None) is None:
            raise TypeError(f"model must be a DistilBertForSentenceEmbedding, got {type(model).__name__}.")
        self.model, self.tokenizer = model, tokenizer
        self.pooling: PoolingConfig = getattr(model.pooling, "config", model.pooling)
        limits = (self.pooling.max_seq_length, tokenizer.model_max_length, model.config.max_position_embeddings)
        self.max_length = min(limit for limit in limits if limit is not None)
        self.width = self.pooling.width(model.config.dim)  # of a vector

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        backend: str | None = None,
        precision: str | None = "float32",
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Load model and tokenizer from a folder or hub id.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            backend: "native", which needs no framework, or "pt", "tf" or "flax". Default: "native" where this package's
                own kernels can compute the model, else the first of the others whose framework is installed.
            precision: of a frozen model: "float32", "bfloat16" or "int8". None is a framework's model itself, which can
                be trained.
            revision: of the hub model: a branch, a tag or a commit hash; default its main branch.
            local_files_only: take a hub model from the cache, without the network.
            options: go to the model's `from_pretrained`; a `dtype` needs `precision=None`.

        Raises:
            CheckpointError, TokenizerError: the files are not a model's. ValueError: an argument is wrong.
        """
        if backend not in (None, NATIVE, *BACKENDS):
            raise ValueError(f"backend must be one of {NATIVE}, {', '.join(BACKENDS)}, got {backend!r}.")
        if precision is not None:
            check_precision(precision)
            if options.get("dtype") is not None:
                raise ValueError("dtype is of the model itself: give precision=None with it, or a precision alone.")
        folder = find_folder(folder_or_hub_id, encoder_files, revision=revision, local_files_only=local_files_only)
        model, source = _load(folder, backend, precision, options)
        return cls(model, DistilBertTokenizerFast.from_pretrained(source.parent))

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int | None = None,
        token_budget: int | None = None,
        normalize: bool = False,
        progress: bool | Advance = False,
    ) -> Vectors:
        """One vector per text, (texts, width), float32, in the order of the texts; (width,) for a single string.

        Texts longer than the model allows are cut. Texts of like length are computed together, and which they are
        changes a vector by rounding only.

        Args:
            texts: a list, or anything that gives texts one by one.
            batch_size: the most texts of a batch.
            token_budget: the most tokens of a batch; default `TOKEN_BUDGET` if `batch_size` is not given either.
            normalize: scale vectors to length 1, if the model does not.
            progress: True shows a bar on standard error; a function is called with the texts that are done and how
                many there are, None if that is not known.

        Raises:
            DataError: a text is no valid Unicode, or has more tokens than `token_budget`. ValueError: an argument is
                not positive. TypeError: something is no text, or `progress` is neither bool nor function.
        """
        if not isinstance(progress, bool):
            _check_callable("True, False", progress)
        options: dict[str, Any] = {"batch_size": batch_size, "token_budget": token_budget, "normalize": normalize}
        if isinstance(texts, str):
            return self.encode([texts], progress=progress, **options)[0]
        bar = show_progress("Embedding") if progress is True else contextlib.nullcontext(progress or None)
        with bar as advance:
            tell = None if advance is None else lambda done: advance(done, _count(texts))
            with contextlib.closing(self.encode_iter(texts, progress=tell, **options)) as parts:
                return self._joined(parts, _count(texts))

    def encode_iter(
        self,
        texts: Iterable[str],
        *,
        batch_size: int | None = None,
        token_budget: int | None = None,
        normalize: bool = False,
        window: int = WINDOW,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Vectors]:
        """As `encode`, part by part: for more texts than memory holds vectors.

        Args:
            texts: read in the caller's thread, up to two windows ahead.
            batch_size: as for `encode`, and so are the next two.
            token_budget: the most tokens of a batch.
            normalize: scale vectors to length 1.
            window: how many texts are sorted together, and the rows of a part.
            progress: called with the number of texts that are done.

        Returns:
            an iterator over (window, width) arrays, the last one shorter, in the order of the texts.
        """
        if progress is not None:
            _check_callable("None", progress)
        if batch_size is None and token_budget is None:
            token_budget = max(TOKEN_BUDGET, self.max_length)
        limits: dict[str, Any] = {
            "batch_size": batch_size,
            "token_budget": token_budget,
            "window": check_count("window", window, 1),
        }
        length_sorted_batches([], **limits)  # refuses wrong limits at once
        return self._parts(_checked(texts), limits, normalize=normalize, progress=progress)

    def _parts(
        self,
        texts: Iterator[str],
        limits: dict[str, Any],
        *,
        normalize: bool,
        progress: Callable[[int], None] | None,
    ) -> Generator[Vectors]:
        windows = iter(lambda: list(itertools.islice(texts, limits["window"])), [])
        with contextlib.closing(map_ahead(self._token_ids, windows)) as tokenized:
            done = 0
            for ids in tokenized:
                vectors = self._empty(len(ids))
                for rows, items in length_sorted_batches(ids, **limits, padded=not self._packs, start=done):
                    vectors[rows] = self._embed(items)
                    done += len(rows)
                    if progress is not None:
                        progress(done)
                yield _normalized(vectors) if normalize else vectors

    @property
    def _packs(self) -> bool:
        """Whether the model computes without padding."""
        return isinstance(self.model, FrozenModel)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def _embed(self, ids: list[list[int]]) -> NDArray[Any]:
        """The vectors of one batch, (batch, width)."""
        if self._packs:
            return _as_numpy(self.model(ids, **ALONE).embeddings)
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="np")
        with self.model.evaluating() as model:
            return _as_numpy(model(**batch, **ALONE).embeddings)

    def _empty(self, rows: int) -> Vectors:
        return np.empty((rows, self.width), np.float32)

    def _joined(self, parts: Iterable[Vectors], total: int | None) -> Vectors:
        """All parts in one array, made at first where it is known how many texts there are."""
        if total is None:
            return np.concatenate([self._empty(0), *parts])
        vectors, start = self._empty(total), 0
        for part in parts:
            vectors[start : start + len(part)] = part
            start += len(part)
        return vectors[:start]


def _checked(texts: Any) -> Iterator[str]:
    """The texts one by one, refused by their number in the whole stream.

    Raises:
        TypeError: at once, it is nothing that holds texts in an order; later, one is no text.
    """
    unfit = isinstance(texts, str | bytes | bytearray | Mapping | AbstractSet)
    if unfit or not hasattr(texts, "__iter__") or getattr(texts, "ndim", 1) != 1:
        raise TypeError(f"texts must be a string or a list of strings, got {type(texts).__name__}.")
    return map(_check, iter(texts), itertools.count())


def _load(folder: Path, backend: str | None, precision: str | None, options: Mapping[str, Any]) -> tuple[Any, Path]:
    """A model that embeds, frozen unless `precision` is None, and the file with its weights."""
    if backend == NATIVE or (backend is None and precision is not None and not options):
        from distilbert.native import DistilBertForSentenceEmbedding, NoKernelsError

        if precision is None:
            raise ValueError(f"backend {NATIVE!r} has frozen models only: give a precision, or another backend.")
        try:
            model = DistilBertForSentenceEmbedding.from_pretrained(folder, precision=precision, **options)
            return model, Path(model.load_report.source)
        except NoKernelsError:
            if backend == NATIVE:
                raise
    backend = backend or first_installed()
    model = load_backend(backend).DistilBertForSentenceEmbedding.from_pretrained(folder, **options)
    source = Path(model.load_report.source)
    if precision is not None:
        model = load_inference(backend).optimize(model, precision, keep_model=False)
    return model, source


def _check_callable(other: str, progress: Any) -> None:
    if not callable(progress):
        raise TypeError(f"progress must be {other} or a function, got {type(progress).__name__}.")


def _count(texts: Any) -> int | None:
    """How many texts there are, if that is known."""
    return len(texts) if hasattr(texts, "__len__") else None


def _check(text: Any, number: int) -> str:
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, got {type(text).__name__} at {number}.")
    if not text.isascii():
        check_unicode(text, "texts", number)
    return text


def _normalized(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)


def _as_numpy(array: Any) -> NDArray[Any]:
    """A backend's array on the host; PyTorch has no way from bfloat16 to NumPy but through float32."""
    return np.asarray(array.float().cpu() if hasattr(array, "cpu") and hasattr(array, "float") else array)
