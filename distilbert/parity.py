"""One checkpoint, every backend, every layer: does each compute what the float64 reference computes?

The comparison that the test suite makes on small models, offered for any checkpoint: embeddings, every hidden state,
every attention map and what the head makes of them, on a ragged batch with an empty text and one of maximum length.

In float64 every position is compared. In float32 only kept positions are: a query at a dropped one (padding) is
computed like any other, but nothing ever reads it, and without a trained meaning it can amplify rounding a
hundredfold (measured on MiniLM-L6: 2e-4 at padding, 4e-6 at tokens, 1e-12 everywhere in float64).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert import reference
from distilbert.backends import load_backend
from distilbert.checkpoint.folder import find_weights
from distilbert.checkpoint.opening import find_head, open_checkpoint, read_config
from distilbert.checkpoint.sentence_transformers import is_sentence_folder
from distilbert.checkpoint.tensors import raw_bytes
from distilbert.config import DistilBertConfig
from distilbert.errors import DataError
from distilbert.tokenization import has_tokenizer
from distilbert.tokenization.fast import DistilBertTokenizerFast

Batch = Mapping[str, NDArray[np.int64]]
Arrays = dict[str, NDArray[Any]]

# Largest absolute difference from the reference. Measured at base size: rounding 5e-6 in float32, the weakest planted
# fault (LayerNorm epsilon 1e-6) 2.5e-4. In float64 only the mathematics is left: rounding 1e-13.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
UNIT_VECTOR_TOLERANCES = {"float32": 2e-6, "float64": 1e-10}  # of embeddings that are scaled to length 1
BATCH_ROWS = 8
MASKED_LM_ROWS = 2  # of (seq, vocab_size) logits in float64: 250 MB at base size
MAX_TEXT_BYTES = 16 << 20

TEXTS = (
    "",
    "Seven otters crossed the river before the ferry left.",
    "The compiler refused the file, so she read the message twice, fixed the type and ran the tests again.",
    "Naïve café — 東京, “quotes”, and 100% of 3.5 kg!",
)
BARE_HEAD = "DistilBertForSentenceEmbedding"  # for an encoder without a head: it adds no weights
SENTENCE_EMBEDDING = "sentence embedding"
BY_THE_LARGEST = ", by the largest"  # of a place whose difference is divided by its largest entry, if that is above 1


@dataclass(frozen=True)
class Row:
    """A place in the model and the largest difference that was found there."""

    place: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class BackendResult:
    """What one backend made of one folder.

    The first folder is run and compared with the reference; of a further one, which should hold the same model in
    another format, the weights as loaded must be the first's bit for bit, and `rows` stays empty.
    """

    backend: str
    folder: str
    rows: tuple[Row, ...]
    other_tensor: str  # the first tensor whose bits are not those of the first folder; "" when there is none
    seconds: float

    @property
    def first_failure(self) -> str:
        """What differs first, in the order of computation; "" when nothing does."""
        if self.other_tensor:
            return f"{self.other_tensor} has other bits than in the first folder"
        failed = (row for row in self.rows if not row.passed)
        return next((f"{r.place} differs by {r.difference:.1e}, allowed {r.tolerance:.0e}" for r in failed), "")


@dataclass(frozen=True)
class ParityReport:
    """All results of one comparison."""

    dtype: str
    shape: tuple[int, int]  # (batch, seq) of the largest batch
    not_compared: tuple[str, ...]  # tensors of the checkpoint that the encoder does not use
    results: tuple[BackendResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every backend agrees from every folder."""
        return not any(result.first_failure for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it; a difference that is not finite is null."""
        values = dataclasses.asdict(self)
        for entry, result in zip(values["results"], self.results, strict=True):
            entry["first_failure"] = result.first_failure
            for row in entry["rows"]:
                row["difference"] = row["difference"] if math.isfinite(row["difference"]) else None
        return values | {"passed": self.passed}


def compare(
    folders: Sequence[Path],
    backends: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Run each backend and the reference on the first folder; hold the others to the first bit for bit.

    Args:
        folders: the same checkpoint, in one or several formats.
        backends: of "pt", "tf", "flax".
        texts: what to run on, beside an empty text and one of maximum length.
        dtype: "float32" or "float64".
        progress: called with (batches done, batches in all).

    Raises:
        ValueError and its kinds: an argument or a checkpoint is wrong. MissingDependencyError: a backend is missing.
    """
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype must be one of {', '.join(TOLERANCES)}, got {dtype!r}.")
    modules = {name: load_backend(name) for name in backends}
    head = _find_class(folders[0])
    source = open_checkpoint(folders[0], head, dtype=dtype)
    rows = MASKED_LM_ROWS if head == "DistilBertForMaskedLM" else BATCH_ROWS
    batches = list(make_batches(source.path.parent, source.config, texts, rows))
    runs = [_Run(name, module, _load(module, head, folders[0], dtype), dtype) for name, module in modules.items()]
    others = [_compare_bits(run, folder) for run in runs for folder in folders[1:]]
    weights, specification = dict(source), reference.HEADS[head]
    for done, batch in enumerate(batches):  # outermost, so that the arrays of one batch are in memory at a time
        inputs = {name: x[None] for name, x in batch.items()} if head == "DistilBertForMultipleChoice" else batch
        expected = _places(specification(source.config, weights, **source.settings, **inputs))
        for run in runs:
            run.compare(inputs, expected)
        if progress is not None:
            progress(done + 1, len(batches))
    pooling = source.settings.get("pooling")
    unit = pooling.normalize if pooling is not None and is_sentence_folder(folders[0]) else None
    firsts = [BackendResult(r.backend, str(folders[0]), _rows(r.differences, dtype, unit), "", r.seconds) for r in runs]
    largest = max((batch["input_ids"].shape for batch in batches), key=lambda shape: shape[0] * shape[1])
    return ParityReport(dtype, (largest[0], largest[1]), tuple(source.report.skipped), (*firsts, *others))


@dataclass
class _Run:
    """A backend's model, and the largest difference that each place has shown so far."""

    backend: str
    module: Any
    model: Any
    dtype: str
    differences: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0

    def compare(self, batch: Batch, expected: Arrays) -> None:
        """Run the model on a batch and note how far each place is from what was expected."""
        start = time.perf_counter()
        with self.module.exact(self.dtype), self.model.evaluating() as model:
            found = _places(model(**batch, output_hidden_states=True, output_attentions=True))
        mask = batch["attention_mask"].reshape(-1, batch["attention_mask"].shape[-1])
        compared = (mask != 0) | (self.dtype == "float64")  # (batch, seq)
        for place, wanted in expected.items():
            scale = max(1.0, float(np.abs(wanted).max())) if place.endswith(BY_THE_LARGEST) else 1.0
            difference = largest_difference(wanted, found[place], compared) / scale
            self.differences[place] = max(difference, self.differences.get(place, 0.0))
        self.seconds += time.perf_counter() - start


def _find_class(folder: Path) -> str:
    """The class to run: the one that the folder was saved from."""
    if is_sentence_folder(folder):
        return BARE_HEAD
    find_weights(folder)
    head = find_head(folder, read_config(folder))
    return BARE_HEAD if head == "DistilBertModel" else head


def _load(module: Any, head: str, folder: Path, dtype: str) -> Any:
    with module.exact(dtype):
        return getattr(module, head).from_pretrained(folder, dtype=dtype)


def _compare_bits(run: _Run, folder: Path) -> BackendResult:
    """Whether the backend loads from `folder` the bits that it has from the first."""
    start = time.perf_counter()
    first, found = digests(run.model), digests(_load(run.module, type(run.model).__name__, folder, run.dtype))
    names = [*first, *(found.keys() - first.keys())]
    other = next((name for name in names if first.get(name) != found.get(name)), "")
    return BackendResult(run.backend, str(folder), (), other, time.perf_counter() - start)


def digests(model: Any) -> dict[str, str]:
    """A hash of dtype, shape and bits of each tensor of a model, and of the settings of a pooling, by name."""
    found = {"the pooling settings": repr(model.pooling.config)} if hasattr(model, "pooling") else {}
    for name, array in model.weights_by_name().items():
        head = f"{array.dtype.name} {array.shape} ".encode()
        found[name] = hashlib.sha256(head + raw_bytes(array)).hexdigest()
    return found


def _rows(differences: Mapping[str, float], dtype: str, unit: bool | None) -> tuple[Row, ...]:
    """The rows of the report; `unit` says whether embeddings have length 1, None leaves them out."""
    rows = [Row(place, d, TOLERANCES[dtype]) for place, d in differences.items() if place != SENTENCE_EMBEDDING]
    if unit is not None:
        tolerance = (UNIT_VECTOR_TOLERANCES if unit else TOLERANCES)[dtype]
        rows.append(Row(SENTENCE_EMBEDDING, differences[SENTENCE_EMBEDDING], tolerance))
    return tuple(rows)


def make_batches(
    folder: Path, config: DistilBertConfig, texts: Sequence[str] | None, rows: int = BATCH_ROWS
) -> Iterator[Batch]:
    """Batches of the texts, the first with an empty one and one of maximum length.

    A batch has at most `rows` texts. A folder without a tokenizer gets token ids drawn from a fixed seed instead, in
    the same ragged shape.
    """
    if not has_tokenizer(folder):
        if texts is not None:
            raise DataError(f"{folder}: has no tokenizer, so texts cannot be used.")
        batch = _random_batch(config)
        for start in range(0, len(batch["input_ids"]), rows):
            yield {name: x[start : start + rows] for name, x in batch.items()}
        return
    tokenizer = DistilBertTokenizerFast.from_pretrained(folder)
    limit = config.max_position_embeddings
    longest = " ".join([TEXTS[2]] * limit)
    lines = [*TEXTS, longest] if texts is None else ["", longest, *texts]
    ids = tokenizer(lines, truncation=True, max_length=limit)["input_ids"]
    for start in range(0, len(ids), rows):
        yield tokenizer.pad({"input_ids": ids[start : start + rows]}, return_tensors="np")


def _random_batch(config: DistilBertConfig) -> Batch:
    seq = config.max_position_embeddings
    lengths = np.array([seq, min(2, seq), max(seq // 2, 1), max(seq // 3, 1)])
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (len(lengths), seq))
    return {"input_ids": ids, "attention_mask": (np.arange(seq) < lengths[:, None]).astype(np.int64)}


def _places(output: Any) -> Arrays:
    places: Arrays = {"embeddings": np.asarray(output.hidden_states[0])}
    for i, (hidden, attention) in enumerate(zip(output.hidden_states[1:], output.attentions, strict=True)):
        places[f"layer {i} attention"] = np.asarray(attention)
        places[f"layer {i} hidden state"] = np.asarray(hidden)
    for name in output._fields[: -len(("hidden_states", "attentions"))]:
        array = np.asarray(getattr(output, name))
        if name == "embeddings":
            places[SENTENCE_EMBEDDING] = array
        else:  # logits grow with their weights, and rounding with them
            per_token = name in ("start_logits", "end_logits")
            places[name.replace("_", " ") + BY_THE_LARGEST] = array[..., None] if per_token else array
    return places


def largest_difference(expected: NDArray[Any], found: NDArray[Any], at: NDArray[np.bool_] | None = None) -> float:
    """The largest absolute difference; infinite when the shapes differ or anything, padding included, is not finite.

    `at`, (batch, seq) of bool, selects positions of a hidden state and queries of an attention map.
    """
    if expected.shape != found.shape:
        return math.inf
    difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    if not np.isfinite(difference).all():
        return math.inf
    if at is not None and difference.ndim > 2:
        difference = difference[at] if difference.ndim == 3 else difference.swapaxes(1, 2)[at]
    return float(difference.max())


def read_texts(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without the empty ones.

    Raises:
        DataError: the file is missing, too large, not UTF-8, or has no text.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{path}: is larger than {MAX_TEXT_BYTES} bytes.")
        lines = [line.strip() for line in path.read_bytes().decode().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    texts = [line for line in lines if line]
    if not texts:
        raise DataError(f"{path}: holds no text.")
    return texts
