"""What the tasks share: fields of records, token ids in batches of calls, padding, weights.

An example is what the store keeps of a record: one-dimensional arrays by column. Axes: rows, seq.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distilbert.checks import IGNORE
from distilbert.errors import DataError
from distilbert.tokenization.checks import check_count, shown
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record, RecordError

Example = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task(ABC):
    """From records to examples, and from examples to batches.

    Attributes:
        tokenizer: of the model.
        max_length: of a row in tokens, special tokens included; default what the tokenizer
            allows, at most `LONGEST`.
        fields: the columns of the files by the names of the fields, where they differ.
        distil: a teacher is followed: labels may be missing, and batches have the weights of its losses.
        evaluation: examples keep what an evaluation needs beside batches, and all classes count alike.
        counts: how often each class occurs in the training data, or each token; None where it is not known.
    """

    name: ClassVar[str]
    LONGEST: ClassVar[int] = 512  # tokens of a row, unless told otherwise
    FIELDS: ClassVar[tuple[str, ...]]  # of a record, by default columns of these names
    LEARNED: ClassVar[tuple[str, ...]] = ()  # attributes that the training data decide where they are None
    COLLATING: ClassVar[tuple[str, ...]] = ("tokenizer", "counts")  # attributes that examples do not depend on

    tokenizer: DistilBertTokenizerFast
    max_length: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    distil: bool = False
    evaluation: bool = False
    counts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in self.FIELDS:
                raise ValueError(f"{self.name} has the fields {', '.join(self.FIELDS)}, got {shown(name)}.")
        if self.max_length is not None:
            check_count("max_length", self.max_length, 4)
            longest = self.tokenizer.model_max_length
            if longest is not None and self.max_length > longest:
                raise ValueError(f"max_length must be at most the tokenizer's {longest}, got {self.max_length}.")

    @property
    @abstractmethod
    def problem(self) -> str:
        """The name of the task in an `Objective`."""

    @property
    def config_changes(self) -> dict[str, Any]:
        """What the data say about the model, as changes of its config."""
        return {}

    @property
    def limit(self) -> int:
        """The most tokens of a row."""
        return self.max_length or min(self.tokenizer.model_max_length or self.LONGEST, self.LONGEST)

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, DTypeLike]:
        """The columns of an example and their dtypes."""

    def settings(self) -> dict[str, Any]:
        """All that examples depend on but the tokenizer, for JSON."""
        names = [item.name for item in dataclasses.fields(self) if item.name not in self.COLLATING]
        values = {name: getattr(self, name) for name in names}
        plain = {
            n: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v for n, v in values.items()
        }
        return {"task": self.name, **plain, "max_length": self.limit}

    def learn(self, records: Iterable[Record]) -> Self:
        """The task with what it takes from the training data as a whole, such as the names of the labels.

        Args:
            records: at least one.

        Raises:
            DataError: the data do not say it.
        """
        del records
        return self

    @property
    def is_learned(self) -> bool:
        """Whether nothing is left to be learned from data."""
        return all(getattr(self, name) is not None for name in self.LEARNED)

    def learned(self) -> dict[str, Any]:
        """What was learned, for JSON."""
        return {name: getattr(self, name) for name in self.LEARNED}

    def with_learned(self, learned: Mapping[str, Any]) -> Self:
        """The task with what `learned` returned."""
        return dataclasses.replace(self, **{n: tuple(v) if isinstance(v, list) else v for n, v in learned.items()})

    def with_counts(self, counts: NDArray[np.int64]) -> Self:
        """The task with what `tally` has found in all training data."""
        return dataclasses.replace(self, counts=counts)

    @abstractmethod
    def read(self, record: Record) -> Any:
        """The checked values of a record, for `encode`.

        Raises:
            RecordError: a field is missing or wrong.
        """

    @abstractmethod
    def encode(self, items: Sequence[Any], faults: Faults) -> list[list[Example]]:
        """The examples of what `read` returned for several records."""

    def features(self, record: Record) -> list[Example]:
        """The examples of one record.

        Raises:
            RecordError: it cannot be used.
        """
        return self.features_of([record], Faults())[0]

    def features_of(self, records: Sequence[Record], faults: Faults) -> list[list[Example]]:
        """The examples of several records, tokenized together; those that `faults` skips have none.

        Raises:
            RecordError: one cannot be used, and the policy is to stop.
        """
        kept: list[Record] = []
        items: list[Any] = []
        for record in records:
            try:
                items.append(self.read(record))
            except RecordError as error:
                faults.add(error)
            else:
                kept.append(record)
        return self._encode(kept, items, faults) if kept else []

    def _encode(self, records: Sequence[Record], items: Sequence[Any], faults: Faults) -> list[list[Example]]:
        try:
            return self.encode(items, faults)
        except RecordError:
            raise
        except DataError as error:  # the tokenizer's, about one of them
            if len(items) == 1:
                faults.add(RecordError(records[0].path, records[0].line, "cannot be tokenized", str(error)))
                return []
        pairs = zip(records, items, strict=True)
        return [found for record, item in pairs for found in self._encode([record], [item], faults)]

    def length(self, example: Example) -> int:
        """The tokens of the longest row that an example becomes."""
        return len(example["input_ids"])

    def tally(self, examples: Sequence[Example]) -> NDArray[np.int64] | None:
        """How often each class, or each token, occurs in examples; None where nobody needs it."""
        del examples
        return None

    @abstractmethod
    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """The batch of some examples, padded to the longest; its weights are not normalized.

        Args:
            examples: at least one.
            step: the number of the step, and
            micro: of the batch in it: what is random depends on them and the seed alone.
            length_multiple: rows are padded to a multiple of it.
        """

    def column(self, name: str) -> str:
        """The column of the files that holds a field."""
        return self.fields.get(name, name)

    def value(self, record: Record, name: str) -> Any:
        """The value of a field; None where it is missing, null, or an empty cell of a CSV file."""
        value = record.values.get(self.column(name))
        return None if value == "" and name not in ("text", "text_pair", "context") else value

    def text(self, record: Record, name: str) -> str:
        """The text of a field that must be there."""
        value = self.value(record, name)
        if value is None:
            raise self.missing(record, name)
        return self.checked_text(record, name, value)

    def optional_text(self, record: Record, name: str) -> str | None:
        """The text of a field, or None."""
        value = self.value(record, name)
        return None if value is None else self.checked_text(record, name, value)

    def checked_text(self, record: Record, name: str, value: Any) -> str:
        """A value that must be a text."""
        if not isinstance(value, str):
            raise self.wrong(record, name, f"must be a text, got {shown(value)}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.wrong(record, name, "holds a lone surrogate, which is no Unicode text") from None
        return value

    def values(self, record: Record, name: str) -> list[Any]:
        """The list of a field that must be there; in a cell of a CSV file it is written as JSON."""
        value = self.value(record, name)
        if value is None:
            raise self.missing(record, name)
        found = as_list(value)
        if found is None:
            raise self.wrong(record, name, f"must be a list, got {shown(value)}")
        return found

    def missing(self, record: Record, name: str) -> RecordError:
        """The error of a field that is not there."""
        there, value = ", ".join(map(repr, record.values)) or "none", record.values.get(self.column(name))
        detail = f"has no value for {self.column(name)!r}; its fields are {there}."
        if value not in (None, ""):
            detail = f"has nothing in {self.column(name)!r} to learn from: {shown(value)}."
        return RecordError(record.path, record.line, f"missing {name}", detail)

    def unsaid(self, record: Record, name: str) -> DataError:
        """The error of a field that no record has, though something is to be learned from it. record: the first."""
        if not self.distil:
            return self.missing(record, name)
        wanted = " and ".join(self.LEARNED)
        return DataError(f"{record.path}: no record has a value for {self.column(name)!r}; give {wanted}.")

    def wrong(self, record: Record, name: str, detail: str) -> RecordError:
        """The error of a field that is not what it must be."""
        return RecordError(record.path, record.line, f"wrong {name}", f"{self.column(name)!r} {detail}.")

    def padded(self, rows: Sequence[NDArray[Any]], length_multiple: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids and attention mask of rows, (rows, seq) int32 each."""
        ids = pad(rows, self.tokenizer.pad_token_id, length_multiple)
        lengths = np.array([len(row) for row in rows])
        return ids, (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int32)


def pad(rows: Sequence[NDArray[Any]], fill: int, multiple: int = 1) -> NDArray[np.int32]:
    """Rows on one width: that of the longest, rounded up to a multiple. (rows, seq) int32."""
    lengths = np.array([len(row) for row in rows])
    width = -(-int(lengths.max()) // multiple) * multiple
    padded = np.full((len(rows), width), fill, np.int32)
    padded[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
    return padded


def encode_pairs(
    tokenizer: DistilBertTokenizerFast, firsts: Sequence[str], seconds: Sequence[str | None], limit: int
) -> list[list[int]]:
    """The ids of texts, and of pairs where there is a second text, cut to `limit` tokens."""
    pairs = [(first, second) for first, second in zip(firsts, seconds, strict=True) if second is not None]
    texts = [first for first, second in zip(firsts, seconds, strict=True) if second is None]
    options: Any = {"truncation": True, "max_length": limit, "return_attention_mask": False}
    alone = iter(tokenizer(texts, **options)["input_ids"] if texts else ())
    both = iter(tokenizer(*map(list, zip(*pairs, strict=True)), **options)["input_ids"] if pairs else ())
    return [next(alone if second is None else both) for second in seconds]


def as_list(value: Any) -> list[Any] | None:
    """A list, or what a text holds as a JSON list; None if it is neither."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def int32(values: Any) -> NDArray[np.int32]:
    """An array of a column."""
    return np.array(values, np.int32)


def counting(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where a label counts."""
    return labels != IGNORE
