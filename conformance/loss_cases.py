"""What of the training losses is compared, as data: each function on ragged, extreme and empty input, in each dtype.

Logits reach 80, vectors are zero, whole rows do not count, labels are -100 where they do not, and once the classes are
the vocabulary of the released models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.cases import DIFFERENTIATED, np_dtype
from conformance.functions import value_and_gradients
from distilbert import reference_losses
from distilbert.checks import IGNORE

Arrays = dict[str, NDArray[Any]]
Random = np.random.Generator

RANKING = "multiple_negatives_ranking_loss"  # which takes its weights by name
VOCAB_SIZE = 30522  # of the released models
# Arguments that the loss is differentiated by; the teacher's too, whose gradient must be zero.
LEARNT = ("logits", "student_logits", "teacher_logits", "x", "student", "teacher", "anchors", "positives")
AS_IN_BATCHES = {"f": np.float32, "i": np.int32}  # the dtypes of labels and weights, whatever the model's is


@dataclass(frozen=True)
class LossCase:
    """One call of one loss: its arguments by name, in the order of its signature."""

    function: str
    what: str
    draw: Callable[[Random], Arrays]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dtype: str = "float64"

    @property
    def name(self) -> str:
        """As reports name it."""
        options = "".join(f", {name} {value:g}" for name, value in self.options.items())
        return f"{self.function} / {self.what}{options} / {self.dtype}"

    def arguments(self) -> Arrays:
        """The call's arguments: vectors in the case's dtype, labels and weights in those of batches."""
        drawn, dtype = self.draw(np.random.default_rng(len(self.what))), np_dtype(self.dtype)
        return {n: x.astype(dtype if n in (*LEARNT, "y") else AS_IN_BATCHES[x.dtype.kind]) for n, x in drawn.items()}

    def expected(self) -> dict[str, Arrays]:
        """The loss and its gradients by the specification."""
        given = {n: x if x.dtype.kind == "i" else x.astype(np.float64) for n, x in self.arguments().items()}
        named = {n: given[n] for n in given if self.function == RANKING and n == "weights"}
        by_place = [x for n, x in given.items() if n not in named]
        value, gradients = getattr(reference_losses, self.function)(*by_place, **named, **self.options)
        names = [name for name in given if name in LEARNT]
        by_name = {name: np.zeros(given[name].shape) for name in names}  # a teacher gets no gradient
        by_name |= dict(zip(names, gradients if isinstance(gradients, tuple) else [gradients], strict=False))
        return {"loss": {"loss": np.asarray(value)}, "gradients": by_name}

    def found(self, backend: str) -> dict[str, Arrays]:
        """The loss and its gradients by the backend."""
        given = self.arguments()
        names = [name for name in given if name in LEARNT]
        value, gradients = value_and_gradients(backend, self.function, given, names, self.dtype, **self.options)
        return {"loss": {"loss": value}, "gradients": gradients}


def normal(random: Random, *shape: int, scale: float = 1.0) -> NDArray[Any]:
    """Numbers of any sign."""
    return random.normal(0.0, scale, shape)


def ragged(random: Random, *shape: int) -> NDArray[Any]:
    """Weights that sum to 1; a third of them, and the last row, are 0."""
    weights = random.random(shape) * (random.random(shape) < 2 / 3)
    weights[-1] = 0.0
    weights.flat[0] = 0.5  # at least one counts
    return weights / weights.sum()


def labels(random: Random, weights: NDArray[Any], classes: int) -> NDArray[Any]:
    """Classes; -100 where nothing counts."""
    return np.where(weights > 0, random.integers(0, classes, weights.shape), IGNORE)


def _classes(random: Random, weights: NDArray[Any], classes: int, scale: float = 1.0) -> Arrays:
    logits = normal(random, *weights.shape, classes, scale=scale)
    return {"logits": logits, "labels": labels(random, weights, classes), "weights": weights}


def _extreme(random: Random, *shape: int) -> NDArray[Any]:
    return random.choice([-80.0, -1.0, 0.0, 80.0], shape)


def _certain(random: Random) -> Arrays:
    return _classes(random, ragged(random, 6, 4), 5) | {"logits": _extreme(random, 6, 4, 5)}


def _errors(random: Random, weights: NDArray[Any], *shape: int) -> Arrays:
    return {"x": normal(random, *shape), "y": normal(random, *shape), "weights": weights}


def _binary(random: Random, logits: NDArray[Any], targets: NDArray[Any]) -> Arrays:
    return {"logits": logits, "labels": targets, "weights": ragged(random, *logits.shape)}


def _taught(random: Random, weights: NDArray[Any], classes: int, scale: float = 2.0) -> Arrays:
    student, teacher = (normal(random, *weights.shape, classes, scale=scale) for _ in range(2))
    return {"student_logits": student, "teacher_logits": teacher, "weights": weights}


def _certain_teacher(random: Random) -> Arrays:
    given = _taught(random, ragged(random, 6, 4), 5)
    return given | {name: _extreme(random, 6, 4, 5) for name in ("student_logits", "teacher_logits")}


def _agreeing(random: Random) -> Arrays:
    given = _taught(random, ragged(random, 6, 4), 5)
    return given | {"teacher_logits": given["student_logits"]}


def _without_some_classes(random: Random) -> Arrays:
    """Classes that neither has, as padding is none to point at."""
    given, gone = _taught(random, ragged(random, 4), 6), np.arange(6) >= np.array([6, 5, 3, 1])[:, None]
    lowest = np.finfo(np.float32).min
    return given | {name: np.where(gone, lowest, given[name]) for name in ("student_logits", "teacher_logits")}


def _vectors(random: Random, weights: NDArray[Any], dim: int = 8, scale: float = 1.0) -> Arrays:
    student, teacher = (normal(random, *weights.shape, dim, scale=scale) for _ in range(2))
    return {"student": student, "teacher": teacher, "weights": weights}


def _zero_vectors(random: Random) -> Arrays:
    given = _vectors(random, np.full(6, 1 / 6))
    given["student"][:2] = 0.0
    given["teacher"][1:3] = 0.0
    given["student"][3] = -given["teacher"][3]
    return given


def _pairs(random: Random, weights: NDArray[Any] | None, pairs: int = 6) -> Arrays:
    given = {"anchors": normal(random, pairs, 8), "positives": normal(random, pairs, 8)}
    return given if weights is None else given | {"weights": weights}


def _zero_pairs(random: Random) -> Arrays:
    given = _pairs(random, None)
    given["anchors"][1] = 0.0
    given["positives"][2] = 0.0
    return given


def _filled_up(random: Random) -> Arrays:
    """The last two of six pairs only fill up the batch, with copies of the first."""
    given = _pairs(random, np.array([0.3, 0.1, 0.4, 0.2, 0.0, 0.0]))
    for name in ("anchors", "positives"):
        given[name][4:] = given[name][0]
    return given


def _none(*shape: int) -> NDArray[Any]:
    return np.zeros(shape)


CALLS: tuple[tuple[str, str, Callable[[Random], Arrays]], ...] = (
    ("weighted_cross_entropy", "ragged weights", lambda r: _classes(r, ragged(r, 6, 4), 5)),
    ("weighted_cross_entropy", "one axis", lambda r: _classes(r, ragged(r, 6), 3)),
    ("weighted_cross_entropy", "logits of 80", _certain),
    ("weighted_cross_entropy", "nothing counts", lambda r: _classes(r, _none(6, 4), 5)),
    ("weighted_cross_entropy", "a vocabulary", lambda r: _classes(r, ragged(r, 6), VOCAB_SIZE, 3.0)),
    ("weighted_squared_error", "ragged weights", lambda r: _errors(r, ragged(r, 6, 4), 6, 4)),
    ("weighted_squared_error", "weights of rows", lambda r: _errors(r, ragged(r, 6, 1), 6, 4)),
    ("weighted_squared_error", "nothing counts", lambda r: _errors(r, _none(6, 1), 6, 4)),
    (
        "weighted_binary_cross_entropy",
        "ragged weights",
        lambda r: _binary(r, normal(r, 6, 4), 1.0 * (normal(r, 6, 4) > 0)),
    ),
    ("weighted_binary_cross_entropy", "soft labels", lambda r: _binary(r, normal(r, 6, 4), r.random((6, 4)))),
    (
        "weighted_binary_cross_entropy",
        "logits of 80",
        lambda r: _binary(r, _extreme(r, 6, 4), 1.0 * (normal(r, 6, 4) > 0)),
    ),
    ("distillation_loss", "ragged weights", lambda r: _taught(r, ragged(r, 6, 4), 5)),
    ("distillation_loss", "logits of 80", _certain_teacher),
    ("distillation_loss", "student is teacher", _agreeing),
    ("distillation_loss", "classes left out", _without_some_classes),
    ("distillation_loss", "nothing counts", lambda r: _taught(r, _none(6, 4), 5)),
    ("distillation_loss", "a vocabulary", lambda r: _taught(r, ragged(r, 6), VOCAB_SIZE, 3.0)),
    ("cosine_loss", "ragged weights", lambda r: _vectors(r, ragged(r, 6, 4))),
    ("cosine_loss", "short vectors", lambda r: _vectors(r, ragged(r, 6), scale=1e-6)),
    ("cosine_loss", "zero and opposite vectors", _zero_vectors),
    ("cosine_loss", "nothing counts", lambda r: _vectors(r, _none(6, 4))),
    (RANKING, "no weights", lambda r: _pairs(r, None)),
    (RANKING, "ragged weights", lambda r: _pairs(r, ragged(r, 6))),
    (RANKING, "filled up", _filled_up),
    (RANKING, "one pair", lambda r: _pairs(r, np.ones(1), pairs=1)),
    (RANKING, "zero vectors", _zero_pairs),
    (RANKING, "nothing counts", lambda r: _pairs(r, _none(6))),
)
TEMPERATURES = (1.0, 2.0, 5.0)


def loss_cases() -> Iterator[LossCase]:
    """Every call in every dtype, distillation at every temperature."""
    for function, what, draw in CALLS:
        varied = [{"temperature": t} for t in TEMPERATURES] if function == "distillation_loss" else [{}]
        varied += [{"scale": 5.0}] if (function, what) == (RANKING, "ragged weights") else []
        yield from (LossCase(function, what, draw, options, dtype) for options in varied for dtype in DIFFERENTIATED)
