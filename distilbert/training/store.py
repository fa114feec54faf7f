"""Examples on disk: every line is checked before training begins, lengths are known, any example is read at random.

A store is a folder: for each column NAME.bin, the values one after the other, and NAME.offsets, where each example
begins; `lengths.bin`; `counts.bin`; and store.json, which says what it was made from. All numbers are little-endian.
It is published as a whole, with a manifest. Memory holds the lengths, 4 bytes an example, and nothing else that grows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distilbert.checkpoint import manifest, safely
from distilbert.checkpoint.publishing import new_folder, updated_folder
from distilbert.errors import CheckpointError, DataError, DistilBertError
from distilbert.progress import Advance
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training.records import Faults, OnError, Record, read_all
from distilbert.training.tasks.base import Example, Task

STORE_FILE = "store.json"
FORMAT = 1  # a store of another format is not read
_LENGTHS, _COUNTS = "lengths.bin", "counts.bin"
_TOGETHER = 1024  # records that are tokenized at once, at most, and
_TOGETHER_CHARACTERS = 1 << 20  # of their texts, after which no other record joins them
_OFFSET = np.dtype("<i8")


def fingerprint(paths: Sequence[str | os.PathLike[str]], task: Task, on_error: OnError = "stop") -> str:
    """What a store depends on, as one sha256: the bytes of the files, the tokenizer, the task, the policy, the format.

    Raises:
        DataError: a file cannot be read.
    """
    parts = {
        "format": FORMAT,
        "files": [_file_digest(path) for path in paths],
        "tokenizer": tokenizer_digest(task.tokenizer),
        "task": task.settings(),
        "on_error": on_error,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_digest(tokenizer: DistilBertTokenizerFast) -> str:
    """Vocabulary, added tokens and options of a tokenizer, as one sha256."""
    added = {i: dataclasses.asdict(token) for i, token in tokenizer.added_tokens.items()}
    parts = [sorted(tokenizer.vocabulary.items()), sorted(added.items()), dataclasses.asdict(tokenizer.options)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _file_digest(path: str | os.PathLike[str]) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror}.") from None


def prepare(
    folder: Path,
    paths: Sequence[str | os.PathLike[str]],
    task: Task,
    *,
    on_error: OnError = "stop",
    rebuild: bool = False,
    advance: Advance | None = None,
) -> Store:
    """The store of the examples of some files: the one in `folder` if it was made from the same, else a new one there.

    Args:
        folder: of the store.
        paths: of the data files, in their order.
        task: what labels and the like it does not know it learns from the files; see `Store.task`. To evaluate, give
            the task of the training store with `evaluation=True`.
        on_error: what becomes of bad lines.
        rebuild: replace a store that was made from other data or settings, instead of refusing it.
        advance: is told how many records are done.

    Raises:
        DataError: names file and line of what is wrong, or the store that does not fit.
    """
    wanted = fingerprint(paths, task, on_error)
    found = _open_fitting(folder, task, wanted, rebuild=rebuild)
    if found is not None:
        return found
    try:
        _build(folder, paths, task, wanted, on_error, rebuild=rebuild, advance=advance)
    except CheckpointError as error:
        found = _open_fitting(folder, task, wanted, rebuild=False) if error.kind == "DestinationExists" else None
        if found is None:
            raise
        return found  # another process was faster
    return Store(folder, task)


def _open_fitting(folder: Path, task: Task, wanted: str, *, rebuild: bool) -> Store | None:
    """The store in the folder; None if there is none, or it does not fit and may be replaced."""
    if not (folder / STORE_FILE).exists():
        return None
    try:
        found = Store(folder, task)
    except DistilBertError:
        if rebuild:
            return None
        raise
    if found.fingerprint == wanted:
        return found
    found.close()
    if rebuild:
        return None
    raise DataError(f"{folder}: was made from other data or settings; remove it, or choose another folder.")


def _build(
    folder: Path,
    paths: Sequence[str | os.PathLike[str]],
    task: Task,
    wanted: str,
    on_error: OnError,
    *,
    rebuild: bool,
    advance: Advance | None,
) -> None:
    if not task.is_learned:
        task = _learn(paths, task, Faults(on_error))
    faults = Faults(on_error)
    with _replaced(folder) if rebuild else new_folder(folder) as place:
        with _writing(place, task) as writer:
            for records in _groups(read_all(paths, faults)):
                writer.add(len(records), [one for found in task.features_of(records, faults) for one in found])
                if advance is not None:
                    advance(writer.records, None)
        if not writer.examples:
            raise _nothing_left(paths, faults)
        _finish(place, task, writer, faults, wanted)


def _finish(place: Path, task: Task, writer: _Writer, faults: Faults, wanted: str) -> None:
    """Write what a store knows beside its examples."""
    if writer.counts is not None:
        (place / _COUNTS).write_bytes(writer.counts.astype("<i8").tobytes())
    about = {"format": FORMAT, "fingerprint": wanted, "task": task.name, "learned": task.learned()}
    counted = {"records": writer.records, "skipped": dict(faults.counts), "first_faults": faults.first}
    columns = {name: _stored(dtype).str for name, dtype in task.columns.items()}
    safely.write_json(place / STORE_FILE, {**about, **counted, "columns": columns})


def _replaced(folder: Path) -> AbstractContextManager[Path]:
    """A folder to fill, which takes the place of a store, but for what else a user has put there."""
    try:
        listed = manifest.read(folder) or {}
    except CheckpointError:  # a damaged store is replaced, too
        listed = {}
    return updated_folder(folder, stale=listed.keys())


def _learn(paths: Sequence[str | os.PathLike[str]], task: Task, faults: Faults) -> Task:
    records = read_all(paths, faults)
    first = next(records, None)
    if first is None:
        raise _nothing_left(paths, faults)
    return task.learn(chain([first], records))


def _nothing_left(paths: Sequence[str | os.PathLike[str]], faults: Faults) -> DataError:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in faults.counts.items())
    names = ", ".join(os.fspath(path) for path in paths)
    fault = f"; the first fault: {faults.first[0]}" if faults.first else ""
    return DataError(f"{names}: no example is left ({reasons}){fault}")


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records that are tokenized together: many short ones, or few long ones."""
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += _size(record.values)
        if len(group) == _TOGETHER or size > _TOGETHER_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(value: Any) -> int:
    """About how many characters there are in the texts of a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, cast("Mapping[str, Any]", value).values()))
    return sum(map(_size, cast("list[Any]", value))) if isinstance(value, list) else 1


def _stored(dtype: DTypeLike) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


class _Files(NamedTuple):
    values: BinaryIO
    offsets: BinaryIO


class _Writer:
    """Appends examples to the files of a store."""

    def __init__(self, task: Task, files: Mapping[str, _Files], lengths: BinaryIO) -> None:
        self.records = self.examples = 0
        self.counts: NDArray[np.int64] | None = None
        self._task, self._files, self._lengths = task, files, lengths
        self._dtypes = {name: _stored(dtype) for name, dtype in task.columns.items()}
        self._ends = dict.fromkeys(files, 0)
        for file in files.values():
            file.offsets.write(np.zeros(1, _OFFSET).tobytes())

    def add(self, records: int, examples: Sequence[Example]) -> None:
        """Append the examples that some records have become."""
        self.records += records
        if not examples:
            return
        self.examples += len(examples)
        for name, file in self._files.items():
            arrays = [example[name] for example in examples]
            ends = np.cumsum([len(array) for array in arrays], dtype=_OFFSET) + self._ends[name]
            self._ends[name] = int(ends[-1])
            file.values.write(np.concatenate(arrays).astype(self._dtypes[name], copy=False).tobytes())
            file.offsets.write(ends.astype(_OFFSET, copy=False).tobytes())
        self._lengths.write(np.array([self._task.length(example) for example in examples], "<i4").tobytes())
        if (found := self._task.tally(examples)) is not None:
            self.counts = found if self.counts is None else self.counts + found


@contextlib.contextmanager
def _writing(place: Path, task: Task) -> Generator[_Writer]:
    with contextlib.ExitStack() as stack:

        def create(name: str) -> BinaryIO:
            return stack.enter_context((place / name).open("wb"))

        files = {name: _Files(create(f"{name}.bin"), create(f"{name}.offsets")) for name in task.columns}
        yield _Writer(task, files, create(_LENGTHS))


class Store:
    """Examples in a folder that `prepare` has written.

    Attributes:
        task: with what it has learned, and counted, from the data of the store; an evaluation keeps what it knew.
        fingerprint: of what the store was made from.
        lengths: tokens of the longest row of each example, (examples,) int32.
        records: how many records were read.
        skipped: what was left out, by reason.
        first_faults: the messages of the first records that were skipped.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        """Open a store.

        Raises:
            CheckpointError: a file is missing or damaged. DataError: it is of another task or format.
        """
        meta = safely.read_json(folder / STORE_FILE)
        if (meta.get("format"), meta.get("task")) != (FORMAT, task.name):
            found = f"{meta.get('task')} in format {meta.get('format')}"
            raise DataError(f"{folder}: must be a store of {task.name} in format {FORMAT}, got {found}.")
        listed = manifest.read(folder)
        if listed is None:
            raise CheckpointError(folder, "IncompleteSave", "has no manifest; remove it and prepare the data again")
        if manifest.differences(folder, listed):
            detail = "is not what was written; remove it and prepare the data again"
            raise CheckpointError(folder, "IntegrityMismatch", detail)
        self.folder = folder
        self.fingerprint: str = meta["fingerprint"]
        self.records: int = meta["records"]
        self.skipped: dict[str, int] = meta["skipped"]
        self.first_faults: list[str] = meta["first_faults"]
        self.lengths: NDArray[np.int32] = np.fromfile(folder / _LENGTHS, "<i4").astype(np.int32, copy=False)
        self.task = self._learned(task, meta["learned"])
        self._dtypes = {name: np.dtype(dtype) for name, dtype in meta["columns"].items()}
        self._files = {name: self._open(name) for name in self._dtypes}

    def _learned(self, task: Task, learned: Mapping[str, Any]) -> Task:
        if not (task.evaluation and task.is_learned):
            task = task.with_learned(learned)
        path = self.folder / _COUNTS
        if (task.evaluation and task.counts is not None) or not path.exists():
            return task
        return task.with_counts(np.fromfile(path, "<i8").astype(np.int64, copy=False))

    def _open(self, name: str) -> _Files:
        values, offsets = ((self.folder / f"{name}.{kind}").open("rb", buffering=0) for kind in ("bin", "offsets"))
        return _Files(values, offsets)  # pyright: ignore[reportArgumentType] - raw files

    def __len__(self) -> int:
        return len(self.lengths)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for files in self._files.values():
            for file in files:
                file.close()

    def examples(self, indices: Iterable[int]) -> list[Example]:
        """The examples of those numbers, in that order; their arrays are read-only.

        Raises:
            IndexError: there is no example of a number.
        """
        return [self._example(int(i)) for i in indices]

    def _example(self, i: int) -> Example:
        if not 0 <= i < len(self):
            raise IndexError(f"the store has {len(self)} examples, got the number {i}.")
        return {name: self._read(name, i) for name in self._files}

    def _read(self, name: str, i: int) -> NDArray[Any]:
        files, dtype = self._files[name], self._dtypes[name]
        ends = os.pread(files.offsets.fileno(), 2 * _OFFSET.itemsize, i * _OFFSET.itemsize)
        start, stop = np.frombuffer(ends, _OFFSET).tolist()
        data = os.pread(files.values.fileno(), (stop - start) * dtype.itemsize, start * dtype.itemsize)
        return np.frombuffer(data, dtype)
