"""How good a model is at a task: what `Trainer.predict` returns, batch by batch, made into the metrics of all examples.

One class a task. What has no label, so that its weight is 0, does not count. Axes: rows, seq, num_labels, dim.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distilbert.errors import DataError
from distilbert.optional import require
from distilbert.training import metrics
from distilbert.training.answers import Window, answer_scores, best_spans
from distilbert.training.batches import Arrays, Batch
from distilbert.training.metrics import Metrics
from distilbert.training.planning import by_length, cut, full_size
from distilbert.training.store import Store
from distilbert.training.tasks import SentenceEmbedding, Task, TokenClassification
from distilbert.training.tasks.base import Example
from distilbert.training.trainer import Trainer

LESS_IS_BETTER = ("perplexity", "mean_squared_error", "loss")
LIBRARIES = {"f1_macro": "sklearn.metrics", "pearson": "scipy.stats"}  # that compute a metric
STEP = 0  # of the masks of evaluations: training begins with step 1


class Evaluation(ABC):
    """Collects what the metrics of a task need.

    Attributes:
        NAMES: of the metrics; the first says which of two models is better, unless the user names another.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "loss")

    @abstractmethod
    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            batch: of labelled examples.
            outputs: what `Trainer.predict` returned for it.
            examples: that the batch was made of, and
            numbers: of them in the data.
        """

    @abstractmethod
    def result(self) -> Metrics:
        """The metrics of all batches.

        Raises:
            DataError: nothing counted.
            MissingDependencyError: a library of the extra `train` is not installed.
        """


def evaluate(trainer: Trainer, store: Store, *, batch_size: int, token_budget: int | None = None) -> Metrics:
    """The metrics of the model, as it is, on all examples of the store.

    Raises:
        DataError: none has a label.
    """
    evaluation, multiple = new_evaluation(store.task), trainer.length_multiple
    order, full = by_length(np.arange(len(store)), store.lengths), full_size(len(store), batch_size, token_budget)
    for micro, numbers in enumerate(cut(order, store.lengths, batch_size, token_budget)):
        examples = store.examples(numbers)
        batch = store.task.collate(examples, step=STEP, micro=micro, length_multiple=multiple)
        batch = replace(batch, full=full)
        evaluation.add(batch, trainer.predict(batch), examples, numbers.tolist())
    return evaluation.result()


def deciding_metric(task: Task, name: str | None) -> str:
    """The metric that says which of two models is better: the task's, or the one that the user names.

    Raises:
        ValueError: there is none of that name.
    """
    names = new_evaluation(task).NAMES
    if name is not None and name not in names:
        raise ValueError(f"metric must be one of {', '.join(names)}, got {name!r}.")
    return name or names[0]


def check_installed(task: Task) -> None:
    """Refuse, before any training, an evaluation whose library is missing.

    Raises:
        MissingDependencyError: it is.
    """
    for name in new_evaluation(task).NAMES:
        if name in LIBRARIES:
            require(LIBRARIES[name], extra="train", needed_for=f"the metric {name}")


def new_evaluation(task: Task) -> Evaluation:
    """The evaluation of a task."""
    labels = [*task.config_changes["id2label"].values()] if isinstance(task, TokenClassification) else []
    return evaluation_of(task.problem, labels=labels, scored=isinstance(task, SentenceEmbedding) and task.scored)


def evaluation_of(problem: str, *, labels: Sequence[str] = (), scored: bool = False) -> Evaluation:
    """The evaluation of a task.

    Args:
        problem: its name in an `Objective`.
        labels: of token classification, the names of the classes in their order.
        scored: of sentence embedding, whether pairs have a score.
    """
    if problem == "token_classification" and metrics.has_entities(labels):
        return Entities(labels)
    return ScoredPairs() if problem == "sentence_embedding" and scored else EVALUATIONS[problem]()


class Classes(Evaluation):
    """One of several classes: for a text, for each token, or as the choice among texts."""

    def __init__(self) -> None:
        self._predicted: list[NDArray[np.int32]] = []
        self._labels: list[NDArray[np.int32]] = []
        self._loss = 0.0

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Keep the class that has the largest logit."""
        del examples, numbers
        counts = batch.weights["labels"] > 0  # (rows,) or (rows, seq)
        logits, labels = outputs["logits"][counts], batch.targets["labels"][counts]  # (n, num_labels), (n,)
        if len(labels):
            self._predicted.append(logits.argmax(axis=-1).astype(np.int32))
            self._labels.append(labels)
            self._loss += metrics.cross_entropy(logits, labels) * len(labels)

    def result(self) -> Metrics:
        """Accuracy, F1 and the mean cross entropy."""
        predicted, labels = _joined(self._predicted), _joined(self._labels)
        return {**metrics.classification(predicted, labels), "loss": self._loss / len(labels)}


class Entities(Classes):
    """A BIO tag for each token: whole entities count."""

    NAMES = ("f1", "precision", "recall", "accuracy", "loss")

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = list(names)
        self._lengths: list[int] = []  # of the sentences

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Keep the classes, and where sentences end."""
        super().add(batch, outputs, examples, numbers)
        self._lengths += (batch.weights["labels"] > 0).sum(axis=1).tolist()

    def result(self) -> Metrics:
        """Precision, recall and F1 of entities; accuracy of tags and their mean cross entropy."""
        predicted, labels = _joined(self._predicted), _joined(self._labels)
        found = metrics.entity_scores(self._sentences(predicted), self._sentences(labels))
        return {**found, "accuracy": metrics.accuracy(predicted, labels), "loss": self._loss / len(labels)}

    def _sentences(self, numbers: NDArray[np.int32]) -> list[list[str]]:
        parts = np.split(numbers, np.cumsum(self._lengths)[:-1])
        return [[self._names[number] for number in part] for part in parts]


class Labels(Evaluation):
    """Any number of labels for a text: those whose logits are above 0."""

    NAMES = ("f1_micro", "f1_macro", "f1_weighted", "exact_match", "loss")

    def __init__(self) -> None:
        self._logits: list[NDArray[Any]] = []
        self._labels: list[NDArray[Any]] = []

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Keep the logits."""
        del examples, numbers
        counts = (batch.weights["labels"] > 0).any(axis=1)  # (rows,)
        self._logits.append(outputs["logits"][counts])
        self._labels.append(batch.targets["labels"][counts])

    def result(self) -> Metrics:
        """F1, exact match and the mean binary cross entropy."""
        logits, labels = _joined(self._logits), _joined(self._labels)
        return {**metrics.multi_label(logits > 0, labels), "loss": metrics.binary_cross_entropy(logits, labels)}


class Numbers(Labels):
    """Numbers for a text."""

    NAMES = ("pearson", "spearman", "mean_squared_error")

    def result(self) -> Metrics:
        """Mean squared error and correlations."""
        return metrics.regression(_joined(self._logits), _joined(self._labels))


class Answers(Evaluation):
    """Answers in contexts, over all windows of a question."""

    NAMES = ("f1", "exact_match")

    def __init__(self) -> None:
        self._windows: dict[int, Window] = {}  # by the number of the example
        self._golds: dict[int, list[str]] = {}  # of a question, by the number of its first window

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Keep the logits of tokens, and of first windows the gold answers."""
        known = batch.weights["start_positions"] > 0  # (rows,)
        for row in np.flatnonzero(known).tolist():
            example, number = examples[row], numbers[row]
            offsets = example["offsets"].reshape(-1, 2)
            start, end = (outputs[name][row, : len(offsets)].copy() for name in ("start_logits", "end_logits"))
            self._windows[number] = Window(start, end, offsets, _text(example["text"]))
            if not example["window"][0]:
                self._golds[number] = json.loads(_text(example["answers"]))

    def result(self) -> Metrics:
        """Exact match and F1. Where a question has no answer in the data, models may give none."""
        if not self._golds:
            raise _nothing()
        order = sorted(self._windows)
        first = [i for i, number in enumerate(order) if number in self._golds]
        questions = [order[begin:end] for begin, end in zip(first, [*first[1:], len(order)], strict=True)]
        windows = [[self._windows[number] for number in question] for question in questions]
        golds = [self._golds[question[0]] for question in questions]
        may_be_empty = not all(golds)
        found = [best_spans(each, n_best=1, may_be_empty=may_be_empty)[0].text for each in windows]
        return answer_scores(found, golds)


class Tokens(Evaluation):
    """The tokens that were masked."""

    NAMES = ("perplexity", "accuracy", "loss")

    def __init__(self) -> None:
        self._tokens = metrics.MaskedTokens()

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Count."""
        del examples, numbers
        counts = batch.weights["labels"] > 0  # (n,)
        self._tokens.add(outputs["tokens"][counts], batch.targets["labels"][counts], outputs["losses"][counts])

    def result(self) -> Metrics:
        """Perplexity, accuracy and the mean cross entropy."""
        return self._tokens.result()


class Pairs(Evaluation):
    """Embeddings of pairs: whether those that belong together find each other."""

    NAMES = ("recall@1", "recall@10", "mean_reciprocal_rank")

    def __init__(self) -> None:
        self._anchors: list[NDArray[Any]] = []
        self._positives: list[NDArray[Any]] = []

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Keep the embeddings of pairs."""
        del examples, numbers
        if batch.paired:
            anchors, positives = np.split(outputs["embeddings"], 2)
            self._anchors.append(anchors)
            self._positives.append(positives)

    def result(self) -> Metrics:
        """Recall and mean reciprocal rank."""
        return metrics.retrieval(_joined(self._anchors), _joined(self._positives))


class ScoredPairs(Pairs):
    """Embeddings of pairs: whether they are as alike as the data say."""

    NAMES = ("spearman", "pearson")

    def __init__(self) -> None:
        super().__init__()
        self._scores: list[NDArray[Any]] = []

    def add(self, batch: Batch, outputs: Arrays, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        """Keep the scores too."""
        super().add(batch, outputs, examples, numbers)
        self._scores.append(batch.targets["labels"])

    def result(self) -> Metrics:
        """Correlations of cosines with the scores."""
        return metrics.similarity(_joined(self._anchors), _joined(self._positives), _joined(self._scores))


EVALUATIONS: dict[str, type[Evaluation]] = {
    "single_label_classification": Classes,
    "token_classification": Classes,
    "multi_label_classification": Labels,
    "regression": Numbers,
    "multiple_choice": Classes,
    "question_answering": Answers,
    "masked_lm": Tokens,
    "sentence_embedding": Pairs,
}


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if not sum(map(len, parts)):
        raise _nothing()
    return np.concatenate(parts)


def _nothing() -> DataError:
    return DataError("nothing can be evaluated: no example has what the metrics of the task compare with.")


def _text(data: NDArray[np.uint8]) -> str:
    return data.tobytes().decode()
