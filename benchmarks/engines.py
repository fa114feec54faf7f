"""Engines that take turns: each in a process of its own interpreter, asleep on a pipe when it is not its turn.

The driver has an `Engine`; the process calls `serve`. They talk in lines of JSON: first what the engine says of itself,
then an answer to each order. The processes run in others' interpreters: nothing but the standard library here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent
Answer = dict[str, Any]


class EngineError(Exception):
    """An engine could not do what it was asked to."""


class Engine:
    """A process that does one job at a time.

    Args:
        name: for messages.
        command: an interpreter and its arguments; it must call `serve`.
        environment: what is set beside what this process has.
        log: where the process's other output goes; None: nowhere.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], *, log: Path | None = None
    ) -> None:
        self.name, self._hello = name, None
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        with Path(log or os.devnull).open("w") as errors:
            self._process: Any = subprocess.Popen(  # noqa: S603 - our own code
                [str(part) for part in command],
                cwd=ROOT,
                env=inherited | {"PYTHONPATH": str(ROOT)} | dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def hello(self) -> Answer:
        """What the engine says of itself once it is there; waits for that."""
        if self._hello is None:
            self._hello = self._answer()
        return self._hello

    def run(self, order: Mapping[str, Any]) -> Answer:
        """Do a job and wait for the answer.

        Raises:
            EngineError: the job failed, or the process ended.
        """
        _ = self.hello
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineError(f"{self.name} has ended.") from error
        return self._answer()

    def _answer(self) -> Answer:
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"{self.name} ended with {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def serve(start: Callable[[], tuple[Answer, Callable[[Answer], Answer]]]) -> None:
    """Answer orders until standard input ends.

    `start` gives what the engine says of itself, and what does a job. What libraries print goes to standard error, so
    that it cannot look like an answer. An exception becomes an answer with its text as "error".
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(work: Callable[[], Answer]) -> None:
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is its answer
            sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
            found = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    job: list[Callable[[Answer], Answer]] = []

    def introduce() -> Answer:
        hello, do = start()
        job.append(do)
        return hello

    answer(introduce)
    if not job:
        return
    for line in sys.stdin:
        answer(lambda order=line: job[0](json.loads(order)))
