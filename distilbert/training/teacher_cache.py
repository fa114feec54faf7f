"""A teacher's outputs on disk: for each step and micro-batch, the largest logits in half precision.

The teacher then runs once for any number of students, ablations and resumptions whose batches are the same. Of a
distribution over many classes only the `top_k` largest logits are kept; what is left of the probability at the
distilling temperature is spread evenly over the other classes.
Axes: n (distributions), classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert.checkpoint import safely, safetensors
from distilbert.checkpoint.tensors import TensorInfo
from distilbert.errors import DataError
from distilbert.training.batches import Batch
from distilbert.training.objective import Objective
from distilbert.training.resuming import Identity
from distilbert.training.trainer import StepResult, Trainer

Arrays = Mapping[str, NDArray[Any]]

IDENTITY_FILE = "cache.json"
FEW = 1024  # classes, all of whose logits are kept
_MAX_BYTES = 1 << 20


def check_cacheable(objective: Objective, vocab_size: int, top_k: int) -> None:
    """Refuse an objective that needs more than what is kept of logits: their distribution.

    Raises:
        ValueError: it compares the logits themselves, and not all are kept, or some are no numbers.
    """
    cut = objective.task == "masked_lm" and vocab_size > max(top_k, FEW)
    if objective.alpha_mse and (cut or objective.task == "question_answering"):
        raise ValueError(
            f"teacher_cache keeps the distributions of {objective.task}, not the logits that alpha_mse compares: "
            "leave out one of the two."
        )


class TeacherCache:
    """The outputs of one teacher for one sequence of batches, in `folder`."""

    def __init__(self, folder: Path, identity: Identity, *, top_k: int, temperature: float) -> None:
        """Open or begin a cache.

        Args:
            folder: where it is.
            identity: what its contents depend on: teacher, data, and everything that shapes a batch.
            top_k: logits kept of a distribution.
            temperature: at which the rest of the probability is measured.

        Raises:
            DataError: the folder holds the outputs of another teacher, or for other batches.
        """
        self._folder, self._top_k, self._temperature = folder, top_k, temperature
        wanted = {**identity, "top_k": top_k, "temperature": temperature}
        path = folder / IDENTITY_FILE
        if not path.exists():
            safely.write_json(path, wanted)
            return
        stored = safely.read_json(path, _MAX_BYTES)
        different = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
        if different:
            raise DataError(
                f"{folder}: holds the outputs of another teacher or for other batches ({', '.join(different)}); "
                "choose another folder for teacher_cache."
            )

    def get(self, step: int, micro: int) -> Arrays | None:
        """The outputs for a micro-batch of a step, `logits` and `hidden` in float32; None if they are not there."""
        path = self._path(step, micro)
        return self._restored(dict(safetensors.read(path))) if path.exists() else None

    def put(self, step: int, micro: int, outputs: Arrays, *, write: bool = True) -> Arrays:
        """Keep the outputs for a micro-batch of a step; what `get` will give for them, also if nothing is written."""
        kept = self._kept(outputs)
        if write:
            info = {name: TensorInfo(array.shape, array.dtype.name) for name, array in kept.items()}
            safetensors.write(self._path(step, micro), info, kept.__getitem__)
        return self._restored(kept)

    def _kept(self, outputs: Arrays) -> Arrays:
        kept = {"hidden": outputs["hidden"].astype(np.float16)} if "hidden" in outputs else {}
        if "logits" not in outputs:
            return kept
        logits = outputs["logits"]
        if logits.shape[-1] <= max(self._top_k, FEW):
            with np.errstate(over="ignore"):  # the least number, where no answer can be, becomes -inf
                return kept | {"logits": logits.astype(np.float16)}
        return kept | _largest(logits, self._top_k, self._temperature)

    def _restored(self, kept: Arrays) -> Arrays:
        whole = {name: kept[name].astype(np.float32) for name in ("hidden", "logits") if name in kept}
        return whole | ({"logits": _spread(kept, self._temperature)} if "values" in kept else {})

    def _path(self, step: int, micro: int) -> Path:
        return self._folder / f"{step // 1000:05d}" / f"{step:08d}-{micro:03d}.safetensors"


class TaughtTrainer:
    """A trainer whose batches come with what the teacher gave for them, from a cache that it fills."""

    def __init__(self, trainer: Trainer, cache: TeacherCache, *, writes: bool) -> None:
        """Put a cache before a trainer; `writes` on the one process that fills it."""
        self._trainer, self._cache, self._writes = trainer, cache, writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def step(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """As the trainer's."""
        taught = [self._taught(step, micro, batch) for micro, batch in enumerate(batches)]
        return self._trainer.step(step, taught, learning_rate)

    def _taught(self, step: int, micro: int, batch: Batch) -> Batch:
        outputs = self._cache.get(step, micro)
        if outputs is None:
            outputs = self._cache.put(step, micro, self._trainer.teach(batch), write=self._writes)
        return replace(batch, teacher=outputs)


def _largest(logits: NDArray[Any], top_k: int, temperature: float) -> dict[str, NDArray[Any]]:
    """The largest logits, shifted so that their distribution needs no sum, and the logarithm of what it leaves over."""
    scaled = logits / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    total = np.exp(scaled).sum(axis=-1, keepdims=True, dtype=np.float64)
    classes = np.argpartition(-logits, top_k - 1, axis=-1)[..., :top_k]
    logs = np.take_along_axis(scaled, classes, axis=-1) - np.log(total)  # of probabilities
    rest = np.clip(1.0 - np.exp(logs).sum(axis=-1), 1e-30, None)
    return {
        "values": (logs * temperature).astype(np.float16),
        "classes": classes.astype(np.int32),
        "rest": np.log(rest).astype(np.float32),
        "size": np.array([logits.shape[-1]], np.int64),
    }


def _spread(stored: Arrays, temperature: float) -> NDArray[np.float32]:
    """Logits of all classes, whose distribution at `temperature` is the one that was kept."""
    size, kept = int(stored["size"][0]), stored["values"].shape[-1]
    even = temperature * (stored["rest"] - np.log(max(size - kept, 1)))  # (n,)
    logits = np.repeat(even[..., None], size, axis=-1).astype(np.float32)
    np.put_along_axis(logits, stored["classes"], stored["values"].astype(np.float32), axis=-1)
    return logits
