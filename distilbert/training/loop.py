"""The loop: steps, evaluations and checkpoints, such that a run that is killed anywhere ends with the same bits.

Everything that a step needs is a function of its number: batches, masks, learning rate, dropout. So a run goes on from
its newest checkpoint as if it had never stopped, and repeats the steps after it, whose lines leave the log first.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from distilbert.errors import StoppedError, TrainingError
from distilbert.progress import Advance
from distilbert.tasks.ahead import map_ahead
from distilbert.training.batches import Batch
from distilbert.training.checkpoints import Checkpoints
from distilbert.training.evaluation import LESS_IS_BETTER
from distilbert.training.metrics import Metrics
from distilbert.training.trainer import Trainer


class Recorder(Protocol):
    """What takes down the numbers of a run."""

    def step(self, step: int, values: Mapping[str, float], *, tokens_per_second: float | None = None) -> None:
        """Those of a training step."""
        ...

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Those of an evaluation after a step."""
        ...

    def sync(self) -> None:
        """Wait until all of them are on the disk."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When what happens: the last step, steps between evaluations and checkpoints, and when to give up.

    metric: which one says what model is better.
    """

    total_steps: int
    learning_rate: Callable[[int], float]
    save_every: int
    evaluate_after: Callable[[int], bool]
    metric: str = ""
    patience: int | None = None
    skip_nonfinite: bool = False


@dataclass
class Progress:
    """What the loop has counted, as a checkpoint keeps it."""

    done: bool = False
    best: float | None = None
    best_step: int = 0
    without_better: int = 0  # evaluations since the best
    skipped_steps: int = 0
    tokens: int = 0


class Loop:
    """A run from the step after its newest checkpoint to its end."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Callable[[int], Sequence[Batch]],
        schedule: Schedule,
        recorder: Recorder,
        *,
        checkpoints: Checkpoints | None,
        evaluate: Callable[[], Metrics] | None = None,
        publish: Callable[[], None] = lambda: None,
        advance: Advance = lambda _done, _all: None,
    ) -> None:
        """Prepare a run.

        Args:
            trainer: of the model.
            batches: the normalized micro-batches of a step.
            schedule: when what happens.
            recorder: of the numbers.
            checkpoints: where they go; None on a process that writes nothing.
            evaluate: gives the metrics of the model as it is.
            publish: puts the model as it is where users find it: the best, or without evaluations the last.
            advance: shows (steps done, steps in all).
        """
        self._trainer, self._batches, self._schedule, self._recorder = trainer, batches, schedule, recorder
        self._checkpoints, self._evaluate, self._publish, self._advance = checkpoints, evaluate, publish, advance
        self.progress = Progress()

    def run(self, start: int = 0, progress: Mapping[str, Any] | None = None) -> int:
        """Go on after step `start`, with what had been counted until then; the last step that was done.

        Raises:
            TrainingError: the loss of a step is not finite. StoppedError: the process was told to end, and has saved.
        """
        self.progress = Progress(**(progress or {}))
        step = start
        with stop_signals() as asked, contextlib.closing(self._steps(start)) as steps:
            for step, batches in steps:
                self._train(step, batches)
                if self._evaluate is not None and self._schedule.evaluate_after(step):
                    self._judge(step, self._evaluate())
                self._advance(step, self._schedule.total_steps)
                stop = self._trainer.agree(bool(asked))
                self._save_if_due(step, stop)
                if self.progress.done:
                    break
                if stop:
                    raise StoppedError(step, asked[0] if asked else signal.SIGTERM)
        return step

    def _steps(self, start: int) -> Generator[tuple[int, Sequence[Batch]]]:
        """The steps that remain, each with its batches, which are made while the step before is computed."""
        numbers: Iterator[int] = (
            iter(()) if self.progress.done else iter(range(start + 1, self._schedule.total_steps + 1))
        )
        return map_ahead(lambda step: (step, self._batches(step)), numbers)

    def _train(self, step: int, batches: Sequence[Batch]) -> None:
        rate, began = self._schedule.learning_rate(step), time.perf_counter()
        result = self._trainer.step(step, batches, rate)
        seconds = time.perf_counter() - began
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            self._leave_out(step, result.loss)
            return
        tokens = sum(batch.tokens for batch in batches)
        self.progress.tokens += tokens
        parts = result.parts if len(result.parts) > 1 else {}
        others = {"gradient_norm": result.gradient_norm, "learning_rate": rate, "tokens": tokens}
        self._recorder.step(step, {"loss": result.loss, **parts, **others}, tokens_per_second=tokens / seconds)

    def _leave_out(self, step: int, loss: float) -> None:
        """Count a step that changed nothing, or end with the state before it saved."""
        if not self._schedule.skip_nonfinite:
            self._save(step - 1)
            raise TrainingError(
                f"step {step}: loss or gradient is not finite (loss {loss}); the weights before it are saved. "
                "Try a smaller learning rate, or leave such steps out with skip_nonfinite."
            )
        self.progress.skipped_steps += 1
        self._recorder.step(step, {"skipped": True})

    def _judge(self, step: int, metrics: Metrics) -> None:
        """Take down an evaluation; publish the model if it is the best so far, end if none has been for long."""
        self._recorder.evaluation(step, metrics)
        name, progress = self._schedule.metric, self.progress
        value, sign = metrics[name], -1 if name in LESS_IS_BETTER else 1
        if math.isfinite(value) and (progress.best is None or sign * value > sign * progress.best):
            progress.best, progress.best_step, progress.without_better = value, step, 0
            self._publish()
            return
        progress.without_better += 1
        progress.done = progress.without_better == self._schedule.patience

    def _save_if_due(self, step: int, stop: bool) -> None:
        self.progress.done |= step == self._schedule.total_steps
        if self.progress.done and self.progress.best is None:  # no evaluation, or none that says something
            self._publish()
        if self.progress.done or stop or step % self._schedule.save_every == 0:
            self._save(step)

    def _save(self, step: int) -> None:
        state = self._trainer.state()  # on every process: they may have to work together
        if self._checkpoints is not None:
            self._recorder.sync()
            self._checkpoints.save(step, state, asdict(self.progress))


@contextlib.contextmanager
def stop_signals() -> Generator[list[int]]:
    """The signals that told the process to end: SIGTERM or an interrupt. A second one ends it at once.

    Handlers belong to the main thread: in another, nothing is handled.
    """
    asked = list[int]()

    def handle(number: int, _frame: Any) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
