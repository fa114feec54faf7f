"""Texts from a file and vectors into one, a row at a time: the files may be larger than memory."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from distilbert.checkpoint import safely
from distilbert.errors import DataError

STANDARD_INPUT = "-"
BYTE_ORDER_MARK = "\ufeff"
MAX_LINE_BYTES = 64 << 20


@contextlib.contextmanager
def open_texts(source: str, field: str | None = None) -> Generator[Iterator[str]]:
    """The texts of a UTF-8 file, one a line, an empty line too, so that row i of a result belongs to line i.

    A byte order mark at the beginning is no text.

    Args:
        source: the path of a file, or "-" for standard input.
        field: lines are JSON objects, and the text is their string of this name.

    Raises:
        DataError: it cannot be read; once it is reached, a line is too long, not UTF-8, or has no such string.
    """
    if source == STANDARD_INPUT:
        if sys.stdin is None:
            raise DataError("standard input is closed.")
        yield _texts("standard input", sys.stdin.buffer, field)
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed below; an error of the reader's work is not one of opening
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}.") from None
    with file:
        yield _texts(source, file, field)


def _texts(name: str, file: BinaryIO, field: str | None) -> Iterator[str]:
    number = 0
    while line := _read_line(name, file):
        number += 1
        place = f"{name}, line {number}"
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{place}: is longer than {MAX_LINE_BYTES} bytes.")
        if number == 1:
            text = text.removeprefix(BYTE_ORDER_MARK)
        yield text if field is None else _value(place, text, field)


def _read_line(name: str, file: BinaryIO) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except OSError as error:  # such as a folder
        raise DataError(f"{name}: cannot be read: {error.strerror}.") from None


def _value(place: str, line: str, field: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{place}: is not JSON.") from None
    text: Any = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place}: must be a JSON object with a string {field!r}.")
    return text


def write_vectors(path: Path, parts: Iterable[NDArray[np.float32]], width: int) -> int:
    """Write the rows of all parts, each (rows, width), into an .npy file, all or nothing; returns how many.

    Raises:
        OSError: the disk is full, or may not be written to. And what `parts` raise.
    """
    rows = 0
    with safely.write_file(path) as temporary, temporary.open("wb") as file:
        _write_header(file, rows, width)
        start = file.tell()
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").data)
            rows += len(part)
        file.seek(0)
        _write_header(file, rows, width)  # as long as before: NumPy leaves room for rows to come
        if file.tell() != start:
            raise RuntimeError("NumPy's header has grown over the data.")
    return rows


def _write_header(file: BinaryIO, rows: int, width: int) -> None:
    npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
