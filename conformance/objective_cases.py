"""What of training through a whole model is compared, as data: the losses of every task against labels and a teacher.

A tiny student and a teacher with other weights see ragged rows. Class weights, rows and positions that do not count,
and padding make the weights ragged too. A trainer takes clipped steps of several micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.cases import CONFIG, input_ids, masks, weights
from conformance.functions import objective_parts, trained
from conformance.loss_cases import labels, ragged
from distilbert import reference_objectives, weight_map
from distilbert.reference_training import Gradients, moment
from distilbert.training.batches import Batch, normalized
from distilbert.training.objective import WITHOUT_CLASSES, Objective
from distilbert.training.trainer import Optimization, StepResult

Arrays = dict[str, NDArray[Any]]
Parts = dict[str, Arrays]
Random = np.random.Generator

STUDENT = CONFIG.replace(n_layers=1, dropout=0.0, attention_dropout=0.0)
TEACHER = STUDENT.replace(n_layers=2)
ALL: dict[str, float] = {"alpha_task": 2.0, "alpha_kl": 5.0, "alpha_cos": 3.0, "alpha_mse": 0.05}
WITHOUT_KL = ALL | {"alpha_kl": 0.0}
# Decay and epsilon are large, so that a wrong decay shows above the rounding of float32, and rounding of gradients near
# zero is not scaled up to the learning rate; the gradients are about twenty times as long as what they are clipped to.
LEAST = -1e30  # what is below stands for a logit that does not exist
OPTIMIZATION = Optimization(betas=(0.8, 0.95), eps=1e-4, weight_decay=0.5, max_grad_norm=0.5)
LEARNING_RATES = (5e-5, 3e-5)  # of the first step and of the second


@dataclass(frozen=True)
class ObjectiveCase:
    """One pass of a teacher and of its student, forth and back."""

    what: str
    objective: Objective
    dtype: str = "float64"
    mask: str = "right padding"

    @property
    def name(self) -> str:
        """As reports name it."""
        return f"{self.objective.task} / {self.what} / {self.mask} / {self.dtype}"

    def batch(self) -> Batch:
        """What both get."""
        return batch_of(self.objective.task, self.mask, to_cosines=self.what == "cosines given")

    def student(self) -> Arrays:
        """The weights in training."""
        return weights(STUDENT, self.objective.head, dtype=self.dtype)

    def teacher(self) -> Arrays:
        """The teacher's weights."""
        return weights(TEACHER, self.objective.head, dtype=self.dtype, seed=4)

    def expected(self) -> Parts:
        """What the specification says."""
        batch, objective = self.batch(), self.objective
        taught = reference_objectives.teach(TEACHER, self.teacher(), batch.inputs, batch.targets, objective)
        given = (batch.inputs, batch.targets, batch.weights, objective, taught)
        parts, gradients = reference_objectives.distillation(STUDENT, self.student(), *given)
        loss = {name: np.asarray(value) for name, value in parts.items()}
        return {"outputs": counting(taught, batch), "loss": loss, "gradients": gradients}

    def found(self, backend: str) -> Parts:
        """What the backend computes."""
        models = ((STUDENT, self.student()), (TEACHER, self.teacher()))
        taught, loss, gradients = objective_parts(backend, models, self.batch(), self.objective, self.dtype)
        return {"outputs": counting(taught, self.batch()), "loss": loss, "gradients": gradients}


@dataclass(frozen=True)
class StepCase:
    """Two steps of a trainer, each of two micro-batches, in float32: a trainer has no other weights."""

    what: str
    optimization: Optimization
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """As reports name it."""
        return f"two steps / {self.what} / {self.dtype}"

    @property
    def models(self) -> ObjectiveCase:
        """Whose student is trained, by its teacher."""
        return ObjectiveCase("all losses", Objective("masked_lm", **ALL), self.dtype)

    def steps(self) -> list[list[Batch]]:
        """The micro-batches of each step, unlike from step to step."""
        everything = np.ones(2, np.bool_)
        batches = [batch_of("masked_lm", mask) for mask in ("right padding", "holes")]
        return [[batch.take(np.array(rows), everything) for rows in ((0, 2), (3, 1))] for batch in batches]

    def expected(self) -> Parts:
        """What the specification says."""
        objective, earlier = self.models.objective, list[Gradients]()
        tensors: Arrays = dict(self.models.student())
        loss: Arrays = {"count": np.asarray(float(len(LEARNING_RATES)))}
        for number, (batches, rate) in enumerate(zip(self.steps(), LEARNING_RATES, strict=True)):
            taught = [replace(batch, teacher=self._taught(batch)) for batch in batches]
            step = reference_objectives.step(STUDENT, tensors, taught, objective, self.optimization, rate, earlier)
            result, gradients, after = step
            earlier.insert(0, gradients)
            tensors |= after | dict.fromkeys(
                weight_map.tied(STUDENT, objective.head), after[weight_map.WORD_EMBEDDINGS]
            )
            loss |= by_name(result, number)
        moments = {f"mean/{n}": moment([g[n] for g in earlier], self.optimization.betas[0]) for n in earlier[0]}
        moments |= {f"square/{n}": moment([g[n] ** 2 for g in earlier], self.optimization.betas[1]) for n in earlier[0]}
        return {"loss": loss, "gradients": moments, "step": {f"weight/{name}": tensors[name] for name in earlier[0]}}

    def found(self, backend: str) -> Parts:
        """What the backend's trainer does."""
        models = ((STUDENT, self.models.student()), (TEACHER, self.models.teacher()))
        given = (self.models.objective, self.optimization, self.steps(), LEARNING_RATES)
        results, state = trained(backend, models, *given)
        loss: Arrays = {"count": state.pop("count").astype(np.float64)}
        for number, result in enumerate(results):
            loss |= by_name(result, number)
        after = {name: array for name, array in state.items() if name.startswith("weight/")}
        return {"loss": loss, "gradients": {n: a for n, a in state.items() if n not in after}, "step": after}

    def _taught(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        objective = self.models.objective
        return reference_objectives.teach(TEACHER, self.models.teacher(), batch.inputs, batch.targets, objective)


def by_name(result: StepResult, number: int) -> Arrays:
    """What a step found, the losses by their names."""
    values = {"loss": result.loss, "gradient_norm": result.gradient_norm, **result.parts}
    return {f"{name}.{number}": np.asarray(value) for name, value in values.items()}


def counting(taught: Mapping[str, NDArray[Any]], batch: Batch) -> Arrays:
    """What a teacher gave, 0 where nothing counts: what stands at padding is a backend's own affair."""
    found: Arrays = {}
    for name, array in taught.items():
        counts = batch.weights[name] > 0
        counts = counts.reshape(array.shape[: counts.ndim] if name == "logits" else array.shape[:-1])
        counts = counts.reshape(*counts.shape, *[1] * (array.ndim - counts.ndim))
        found[name] = np.where(counts & (array > LEAST), array, 0.0)
    return found


def batch_of(task: str, mask: str, *, to_cosines: bool = False) -> Batch:
    """A batch of the task, whose weights sum to 1."""
    kept: Any = masks()[mask]
    inputs = {"input_ids": input_ids().astype(np.int32), "attention_mask": kept.astype(np.int32)}
    batch = DRAWN[task](inputs, np.random.default_rng(5))
    if to_cosines:
        batch = replace(batch, targets={"labels": np.array([0.3, -0.2, 0.9, 0.0], np.float32)})
    return normalized([replace(batch, weights={n: x.astype(np.float32) for n, x in batch.weights.items()})])[0]


def _tokens(inputs: Arrays) -> NDArray[Any]:
    """Every token that is no padding counts, but those of the last row."""
    counts = inputs["attention_mask"].astype(np.float64)
    counts[-1] = 0.0
    return counts


def _rows(inputs: Arrays, random: Random) -> Batch:
    counts = np.array([0.5, 0.0, 1.0, 2.0])
    targets = {"labels": labels(random, counts, CONFIG.num_labels).astype(np.int32)}
    given = {"labels": counts, "logits": np.array([1.0, 1.0, 1.0, 0.0]), "hidden": _tokens(inputs)}
    return Batch(inputs, targets, given)


def _numbers(inputs: Arrays, random: Random) -> Batch:
    shape = (len(inputs["input_ids"]), CONFIG.num_labels)
    given = {"labels": ragged(random, *shape), "logits": ragged(random, *shape), "hidden": _tokens(inputs)}
    return Batch(inputs, {"labels": random.normal(size=shape).astype(np.float32)}, given)


def _several(inputs: Arrays, random: Random) -> Batch:
    batch = _numbers(inputs, random)
    return replace(batch, targets={"labels": (batch.targets["labels"] > 0).astype(np.float32)})


def _each_token(inputs: Arrays, random: Random) -> Batch:
    tokens = _tokens(inputs)
    counts = tokens * ragged(random, *tokens.shape)
    targets = {"labels": labels(random, counts, CONFIG.num_labels).astype(np.int32)}
    return Batch(inputs, targets, {"labels": counts, "logits": tokens, "hidden": tokens})


def _spans(inputs: Arrays, _random: Random) -> Batch:
    """The last row's answer lies outside of it."""
    targets = {"start_positions": np.array([2, 0, 1, 99]), "end_positions": np.array([4, 3, 2, 99])}
    given = {"start_positions": np.array([1.0, 2.0, 0.5, 0.0]), "end_positions": np.array([1.0, 1.0, 1.0, 0.0])}
    given |= {"logits": np.array([1.0, 0.5, 1.0, 0.0]), "hidden": _tokens(inputs)}
    return Batch(inputs, {name: array.astype(np.int32) for name, array in targets.items()}, given)


def _choices(inputs: Arrays, _random: Random) -> Batch:
    given = {
        "labels": np.array([1.0, 0.5]),
        "logits": np.array([0.5, 1.0]),
        "hidden": _tokens(inputs).reshape(2, 2, -1),
    }
    inputs = {name: array.reshape(2, 2, -1) for name, array in inputs.items()}
    return Batch(inputs, {"labels": np.array([1, 0], np.int32)}, given)


def _chosen(inputs: Arrays, random: Random) -> Batch:
    """Eight tokens; not all of them have a label that counts, and not all are compared with the teacher."""
    places = random.permutation(np.flatnonzero(inputs["attention_mask"]))[:8]
    positions = np.sort(places).astype(np.int32)
    counts = ragged(random, len(positions))
    targets = {"positions": positions, "labels": labels(random, counts, CONFIG.vocab_size).astype(np.int32)}
    return Batch(
        inputs, targets, {"labels": counts, "logits": ragged(random, len(positions)), "hidden": _tokens(inputs)}
    )


def _pairs(inputs: Arrays, _random: Random) -> Batch:
    """Four pairs; the last only fills up the batch."""
    both = {name: np.concatenate([array, array[::-1]]) for name, array in inputs.items()}
    given = {"labels": np.array([1.0, 0.5, 1.0, 0.0]), "hidden": np.array([1.0, 1.0, 0.5, 0.0, 1.0, 1.0, 2.0, 0.0])}
    return Batch(both, {}, given, paired=True)


DRAWN: dict[str, Callable[[Arrays, Random], Batch]] = {
    "single_label_classification": _rows,
    "multi_label_classification": _several,
    "regression": _numbers,
    "token_classification": _each_token,
    "question_answering": _spans,
    "multiple_choice": _choices,
    "masked_lm": _chosen,
    "sentence_embedding": _pairs,
}
EMBEDDING = WITHOUT_KL | {"alpha_mse": 2.0}
BY_TASK = {
    **{task: Objective(task, **ALL) for task in DRAWN if task not in WITHOUT_CLASSES},
    "question_answering": Objective("question_answering", **ALL, temperature=0.5),  # 1 / T must not lose what is masked
    "regression": Objective("regression", **WITHOUT_KL),
    "sentence_embedding": Objective("sentence_embedding", **EMBEDDING),
}


def objective_cases() -> Iterator[ObjectiveCase]:
    """Every task with all its losses; masked LM with every mask, without a teacher, and in float32 too."""
    yield from (ObjectiveCase("all losses", objective) for objective in BY_TASK.values())
    yield ObjectiveCase("cosines given", BY_TASK["sentence_embedding"], mask="one row all masked")
    masked = BY_TASK["masked_lm"]
    yield from (ObjectiveCase("all losses", masked, mask=m) for m in ("left padding", "holes", "one row all masked"))
    yield ObjectiveCase("labels alone", Objective("masked_lm"))
    yield ObjectiveCase("all losses", masked, "float32")


def step_cases() -> Iterator[StepCase]:
    """With and without clipping."""
    yield StepCase("clipped", OPTIMIZATION)
    yield StepCase("not clipped", replace(OPTIMIZATION, max_grad_norm=None))
