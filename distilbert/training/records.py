"""Records from files, one at a time: JSONL, CSV, Parquet, or texts. The files may be larger than memory.

What is wrong with a file is said with its name and line, and either stops the reading or is skipped and counted.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

from distilbert.errors import DataError
from distilbert.optional import require

MAX_LINE_BYTES = 16 << 20
KEPT_FAULTS = 10  # messages of skipped records that a report shows
BYTE_ORDER_MARK = "\ufeff"
_PART = 1 << 16  # bytes of a line that is too long, read at once to get past it
_ROWS = 256  # of a Parquet file, decoded at once
_ESCAPED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

OnError = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class Record:
    """What one line, or one row, of a file holds: values by name. Lines are counted from 1."""

    path: str
    line: int
    values: Mapping[str, Any]


class RecordError(DataError):
    """A line cannot be used. `reason` is a short name for a count; the message says where and what."""

    def __init__(self, path: str, line: int, reason: str, detail: str) -> None:
        super().__init__(f"{path}:{line}: {detail}")
        self.reason = reason


class Faults:
    """What becomes of bad records: the first one stops the reading, or each is skipped and counted.

    Attributes:
        counts: skipped records by reason.
        first: the messages of the first of them.
    """

    def __init__(self, on_error: OnError = "stop") -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}.")
        self.on_error = on_error
        self.counts: Counter[str] = Counter()
        self.first: list[str] = []

    def add(self, error: RecordError) -> None:
        """Stop, or skip and count.

        Raises:
            RecordError: the policy is to stop.
        """
        if self.on_error == "stop":
            raise error
        self.counts[error.reason] += 1
        if len(self.first) < KEPT_FAULTS:
            self.first.append(str(error))

    def drop(self, reason: str) -> None:
        """Count what is left out and is no fault, such as a text that is too short to learn from."""
        self.counts[reason] += 1


def read(path: str | os.PathLike[str], faults: Faults | None = None) -> Iterator[Record]:
    """The records of a .jsonl, .csv, .txt (each also .gz or .xz) or .parquet file, in order.

    JSONL: an object a line. CSV: the first row names the columns, and all values are texts. Text: {"text": line}.
    Empty lines hold no record.

    Args:
        path: of the file.
        faults: what becomes of bad lines; default: the first one stops.

    Raises:
        DataError: once it is reached: the file cannot be read, is of another kind, or holds no examples; or, as
            `faults` says, a line is wrong.
    """
    name = os.fspath(path)
    faults = Faults() if faults is None else faults
    skipped = faults.counts.total()
    found = False
    for record in _reader(name)(name, faults):
        found = True
        yield record
    if not found and faults.counts.total() == skipped:
        raise DataError(f"{name}: holds no examples.")


def read_all(paths: Iterable[str | os.PathLike[str]], faults: Faults | None = None) -> Iterator[Record]:
    """The records of several files, one file after the other."""
    for path in paths:
        yield from read(path, faults)


def _reader(name: str) -> Callable[[str, Faults], Iterator[Record]]:
    suffixes = Path(name).suffixes
    if suffixes and suffixes[-1] in (".gz", ".xz"):
        suffixes.pop()
    elif suffixes and suffixes[-1] == ".parquet":
        return _read_parquet
    if suffixes and suffixes[-1] in _READERS:
        return _READERS[suffixes[-1]]
    kinds = ", ".join(_READERS)
    raise DataError(f"{name}: must end in {kinds} (each also with .gz or .xz) or .parquet to be read.")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _read_json(name: str, faults: Faults) -> Iterator[Record]:
    for line, text in _texts(name, faults):
        try:
            value: Any = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            faults.add(RecordError(name, line, "not JSON", f"is not JSON: {_cause(error)}."))
            continue
        if not isinstance(value, dict):
            faults.add(RecordError(name, line, "not JSON", f"must be a JSON object, got {type(value).__name__}."))
            continue
        yield Record(name, line, cast("dict[str, Any]", value))


def _cause(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number of thousands of digits" if "int_max" in str(error) else str(error)


def _read_text(name: str, faults: Faults) -> Iterator[Record]:
    for line, text in _texts(name, faults):
        yield Record(name, line, {"text": text})


def _texts(name: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that hold something, without their ends."""
    for line, data in _lines(name, faults):
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            faults.add(RecordError(name, line, "not UTF-8", _not_utf8(f" (byte {error.start})")))
            continue
        text = text.removeprefix(BYTE_ORDER_MARK) if line == 1 else text
        if text.strip():
            yield line, text.rstrip("\r\n")


def _not_utf8(where: str = "") -> str:
    return f"is not UTF-8 text{where}; convert it to UTF-8."


def _read_csv(name: str, faults: Faults) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)  # for the whole process: the module has no other way, and 128 KiB by default
    rows = csv.reader(_csv_lines(name, faults), strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            faults.add(RecordError(name, line, "not CSV", f"is not CSV: {error}."))
            continue
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = _header(name, row)
        elif (fault := _csv_fault(name, line, row, header)) is not None:
            faults.add(fault)
        else:
            yield Record(name, line, dict(zip(header, row, strict=True)))


def _csv_lines(name: str, faults: Faults) -> Iterator[str]:
    for line, data in _lines(name, faults):
        text = data.decode(errors="surrogateescape")
        yield text.removeprefix(BYTE_ORDER_MARK) if line == 1 else text


def _header(name: str, row: list[str]) -> list[str]:
    if _ESCAPED.search("".join(row)):
        raise RecordError(name, 1, "not UTF-8", _not_utf8())
    for column, count in Counter(row).items():
        if count > 1:
            raise RecordError(name, 1, "not CSV", f"the header names the column {column!r} twice.")
    return row


def _csv_fault(name: str, line: int, row: list[str], header: list[str]) -> RecordError | None:
    if len(row) != len(header):
        detail = f"must have {len(header)} values, as the header has, got {len(row)}."
        return RecordError(name, line, "ragged row", detail)
    if _ESCAPED.search("".join(row)):
        return RecordError(name, line, "not UTF-8", _not_utf8())
    return None


def _read_parquet(name: str, faults: Faults) -> Iterator[Record]:
    parquet = require("pyarrow.parquet", extra="train", needed_for="reading Parquet files")
    failures = (require("pyarrow", extra="train", needed_for="reading Parquet files").ArrowException, OSError)
    row = 0
    try:
        with parquet.ParquetFile(name, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS):
                for values in batch.to_pylist():
                    row += 1
                    yield Record(name, row, values)
    except failures as error:
        faults.add(RecordError(name, row + 1, "not Parquet", f"cannot be read as Parquet: {error}."))


def _lines(name: str, faults: Faults) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, none longer than MAX_LINE_BYTES; the rest of one is never kept."""
    line = 1
    with _open(name) as file:
        while True:
            try:
                data = file.readline(MAX_LINE_BYTES + 1)
                too_long = len(data) > MAX_LINE_BYTES and not _skip_line(file, data)
            except _BROKEN:
                detail = "the compressed file is damaged or ends too early; copy or download it again."
                faults.add(RecordError(name, line, "damaged file", detail))
                return
            except OSError as error:  # such as a folder
                raise DataError(f"{name}: cannot be read: {error.strerror or error}.") from None
            if not data:
                return
            if too_long:
                detail = f"is longer than {MAX_LINE_BYTES >> 20} MiB; split it."
                faults.add(RecordError(name, line, "line too long", detail))
            else:
                yield line, data
            line += 1


def _skip_line(file: BinaryIO, data: bytes) -> bool:
    """Read on to the end of a line that began with `data`, one part at a time; whether it fits after all."""
    if data.endswith(b"\n"):
        return True
    while data and not data.endswith(b"\n"):
        data = file.readline(_PART)
    return False


def _open(name: str) -> BinaryIO:
    try:
        if name.endswith(".gz"):
            return cast("BinaryIO", gzip.open(name, "rb"))
        if name.endswith(".xz"):
            return cast("BinaryIO", lzma.open(name, "rb"))
        return Path(name).open("rb")
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}.") from None


_READERS: dict[str, Callable[[str, Faults], Iterator[Record]]] = {
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
}
