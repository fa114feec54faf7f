"""What a run found, by step: `log.jsonl`, which a killed and resumed run ends with the same bytes, and TensorBoard.

A line is a JSON object with the `step` it belongs to: a training step with its numbers, `evaluation` with the metrics
after that step, or `event` with something that happened. There is no clock in it; speeds go to TensorBoard only, into
event files of TensorBoard's own records and messages. Its writer of files, and tensorboardX, are left aside: they
import TensorFlow or PyTorch into any process that can import them.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distilbert.checkpoint import safely
from distilbert.errors import DataError, MissingDependencyError
from distilbert.optional import require

NAME = "log.jsonl"
EVENTS = "tensorboard"  # the folder of the event files

Line = dict[str, Any]


class Log:
    """The log of one run, open for appending. Of several processes, that of rank 0 has it.

    What belongs to a step must be written, and `sync` called, before the checkpoint of that step is published: a run
    that goes on from there keeps the lines up to this step, and writes all later ones anew.
    """

    def __init__(self, folder: Path, *, resume_from_step: int | None = None, tensorboard: bool = True) -> None:
        """Open the log of the run in `folder`.

        Args:
            folder: gets `log.jsonl` and `tensorboard/`; made if it is missing.
            resume_from_step: of the checkpoint from which the run goes on. None begins anew: no line is kept.
            tensorboard: whether to write event files; without the package, a warning says that there are none.

        Raises:
            DataError: a line before the last is none of a log.
        """
        self.path = folder / NAME
        _cut(self.path, resume_from_step)
        self._file = self.path.open("ab")
        first_step = 0 if resume_from_step is None else resume_from_step + 1
        self._events = _open_events(folder / EVENTS, first_step) if tensorboard else None

    def step(self, step: int, values: Mapping[str, float], *, tokens_per_second: float | None = None) -> None:
        """Write what a training step found. Its speed, which no two runs share, is for TensorBoard alone."""
        self._write({"step": step, **_plain(values)})
        speed = {} if tokens_per_second is None else {"tokens_per_second": tokens_per_second}
        self._show(step, "train", {**values, **speed})

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of the model as it is after a step."""
        self._write({"step": step, "evaluation": _plain(metrics)})
        self._show(step, "evaluation", metrics)

    def event(self, step: int, event: Mapping[str, Any]) -> None:
        """Write what happened after a step, unless it stands there: a run may be resumed from a step more than once."""
        line: Line = {"step": step, "event": _plain(event)}
        if line not in read(self.path, from_step=step):
            self._write(line)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        safely.sync(self.path)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Line) -> None:
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def _show(self, step: int, group: str, values: Mapping[str, float]) -> None:
        if self._events is not None:
            self._events.write(step, {f"{group}/{name}": value for name, value in values.items()})


def read(path: Path, *, from_step: int = 0) -> list[Line]:
    """The lines of a log, from a step on. A torn last line is left out: its writer was killed, or is at it.

    Raises:
        DataError: a line before the last is none of a log.
    """
    return [line for _, line in _lines(path) if line["step"] >= from_step]


def _lines(path: Path) -> Iterator[tuple[bytes, Line]]:
    """Each line as it stands in the file, and as an object."""
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            line = _parsed(data)
            if line is not None:
                yield data, line
            elif file.read(1):
                raise DataError(f"{path}:{number}: is no line of a log; move the file away to go on without it.")


def _parsed(data: bytes) -> Line | None:
    """The object of a whole line, or None."""
    try:
        line = json.loads(data)
    except ValueError:
        return None
    return line if data.endswith(b"\n") and isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _plain(values: Mapping[str, Any]) -> Line:
    """Values that JSON has: a number that is not finite becomes null."""
    return {name: None if _not_finite(value) else value for name, value in values.items()}


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _cut(path: Path, last_step: int | None) -> None:
    """Keep the lines up to a step, or none."""
    with safely.write_file(path) as temporary, temporary.open("wb") as file:
        if last_step is not None and path.exists():
            file.writelines(data for data, line in _lines(path) if line["step"] <= last_step)


def _open_events(folder: Path, first_step: int) -> EventFile | None:
    try:
        return EventFile(folder, first_step)
    except MissingDependencyError as error:
        warnings.warn(f"There will be no event files: {error}", stacklevel=3)
        return None


class EventFile:
    """A new event file of TensorBoard, which shows numbers as curves over steps.

    What other files in its folder hold from `first_step` on is out of date.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._messages = _part("compat.proto.event_pb2")
        self._summaries = _part("compat.proto.summary_pb2")
        records = _part("summary.writer.record_writer")
        folder.mkdir(parents=True, exist_ok=True)
        self._records = records.RecordWriter(_new_file(folder).open("xb"))
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=self._messages.SessionLog(status=self._messages.SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve by its name, which may hold a group before a slash."""
        value = self._summaries.Summary.Value
        summary = self._summaries.Summary(value=[value(tag=name, simple_value=x) for name, x in values.items()])
        self._add(step=step, summary=summary)

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._messages.Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def _part(module: str) -> Any:
    """A module of TensorBoard."""
    require("tensorboard", extra="train", needed_for="writing event files")
    return importlib.import_module(f"tensorboard.{module}")


def _new_file(folder: Path) -> Path:
    """A name that sorts behind those of the folder's other event files, as TensorBoard reads them in that order."""
    now = int(time.time())
    names = (folder / f"events.out.tfevents.{now:010d}.{number:04d}" for number in itertools.count())
    return next(name for name in names if not name.exists())
