"""How good predictions are: pure functions of NumPy arrays, and sums where a corpus would be too large for arrays.

Well-kept libraries compute what they have: scikit-learn F1, SciPy correlations. Every result is a finite float.
Axes: n (examples, tokens or pairs), num_labels, dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilbert.optional import require

Metrics = dict[str, float]

AVERAGES = ("macro", "micro", "weighted")
SCORES = 1 << 24  # cosines that are in memory at once, 128 MiB
LARGEST = 700.0  # whose exponential is still a float


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the probabilities. logits and result: (..., num_labels)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of -log softmax(logits)[label]. logits: (n, num_labels); labels: (n,)."""
    chosen = np.take_along_axis(log_softmax(logits), labels[:, None].astype(np.intp), axis=1)
    return float(-chosen.mean())


def binary_cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean over examples and labels. logits and labels, of 0 and 1: (n, num_labels)."""
    logits = logits.astype(np.float64)
    return float((np.logaddexp(0.0, logits) - logits * labels).mean())


def accuracy(predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of examples whose class is right. predicted, labels: (n,)."""
    return float((predicted == labels).mean())


def classification(predicted: NDArray[Any], labels: NDArray[Any]) -> Metrics:
    """Accuracy, and F1 averaged over the classes that occur. predicted, labels: (n,), numbers of classes.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    return {"accuracy": accuracy(predicted, labels), **_f1(predicted, labels)}


def multi_label(predicted: NDArray[Any], labels: NDArray[Any]) -> Metrics:
    """F1 averaged over labels, and the share of examples whose labels are all right. Both: (n, num_labels), 0 or 1.

    A label that neither occurs nor is predicted has the F1 0.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    predicted, labels = predicted.astype(np.int8), labels.astype(np.int8)
    return {"exact_match": float((predicted == labels).all(axis=1).mean()), **_f1(predicted, labels)}


def _f1(predicted: NDArray[Any], labels: NDArray[Any]) -> Metrics:
    score = require("sklearn.metrics", extra="train", needed_for="computing F1").f1_score
    return {f"f1_{average}": float(score(labels, predicted, average=average, zero_division=0)) for average in AVERAGES}


def regression(predicted: NDArray[Any], targets: NDArray[Any]) -> Metrics:
    """Mean squared error, and the correlations; several targets have the mean of theirs. Both: (n, num_labels).

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    predicted, targets = predicted.astype(np.float64), targets.astype(np.float64)
    found = [correlations(x, y) for x, y in zip(predicted.T, targets.T, strict=True)]
    means = {name: float(np.mean([one[name] for one in found])) for name in ("pearson", "spearman")}
    return {"mean_squared_error": float(((predicted - targets) ** 2).mean()), **means}


def correlations(x: NDArray[Any], y: NDArray[Any]) -> Metrics:
    """Pearson's of values and Spearman's of ranks; 0 where one side is constant, and says nothing. Both: (n,).

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    stats = require("scipy.stats", extra="train", needed_for="computing correlations")
    if x.min() == x.max() or y.min() == y.max():
        return {"pearson": 0.0, "spearman": 0.0}
    return {"pearson": float(stats.pearsonr(x, y)[0]), "spearman": float(stats.spearmanr(x, y)[0])}


class Entity(NamedTuple):
    """Words `first` to `last` of a sentence, counted from 0."""

    kind: str
    first: int
    last: int


def has_entities(names: Iterable[str]) -> bool:
    """Whether labels of words are BIO tags: `O`, and `B-KIND` or `I-KIND`."""
    names = [name for name in names if name != "O"]
    return bool(names) and all(name[:2] in ("B-", "I-") and len(name) > 2 for name in names)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a sentence by its BIO tags, as CoNLL's evaluation reads them.

    `B-` begins one, and so does `I-` behind `O` or behind another kind. Source: Tjong Kim Sang and De Meulder 2003.
    """
    return set(_entities(tags))


def _entities(tags: Sequence[str]) -> Iterator[Entity]:
    first, kind = 0, ""  # of the entity that is open
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, next_kind = tag.partition("-")
        goes_on = prefix == "I" and next_kind == kind
        if kind and not goes_on:
            yield Entity(kind, first, place - 1)
        if not goes_on:
            first, kind = place, next_kind


def entity_scores(predicted: Iterable[Sequence[str]], labels: Iterable[Sequence[str]]) -> Metrics:
    """Precision, recall and F1 of entities over all sentences, each a sequence of BIO tags.

    An entity is right if its kind and both of its ends are. Nothing predicted, or nothing there, gives 0.

    Raises:
        ValueError: sentences of unlike lengths.
    """
    right = found = wanted = 0
    for ours, theirs in zip(predicted, labels, strict=True):
        if len(ours) != len(theirs):
            raise ValueError(f"a sentence must have as many tags as labels, got {len(ours)} and {len(theirs)}.")
        both = entities(ours), entities(theirs)
        right, found, wanted = right + len(both[0] & both[1]), found + len(both[0]), wanted + len(both[1])
    f1 = 2 * right / max(found + wanted, 1)
    return {"precision": right / max(found, 1), "recall": right / max(wanted, 1), "f1": f1}


class MaskedTokens:
    """The masked LM over a corpus: sums only, whatever its size."""

    def __init__(self) -> None:
        self._count = self._right = 0
        self._total = 0.0  # of the cross entropy

    def add(self, tokens: NDArray[Any], labels: NDArray[Any], losses: NDArray[Any]) -> None:
        """Count some tokens: the guessed ones, those that were there, and their cross entropies, (n,) each."""
        self._count += len(labels)
        self._right += int((tokens == labels).sum())
        self._total += float(losses.sum(dtype=np.float64))

    def result(self) -> Metrics:
        """Perplexity, the exponential of the mean cross entropy; that mean as `loss`; share of tokens that are right.

        Raises:
            ValueError: there was no token.
        """
        if not self._count:
            raise ValueError("there must be at least one masked token to count, got none.")
        loss = self._total / self._count
        return {"perplexity": math.exp(min(loss, LARGEST)), "accuracy": self._right / self._count, "loss": loss}


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Rows scaled to length 1; a zero row stays zero. vectors: (n, dim)."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


def retrieval(anchors: NDArray[Any], positives: NDArray[Any]) -> Metrics:
    """How well an anchor finds its positive among all positives, by cosine. Both: (n, dim), row by row a pair.

    Recall at 1 and at 10, and the mean reciprocal rank. Of equal cosines the anchor's own is taken to come last, so
    that vectors which are all the same find nothing.
    """
    ranks = np.concatenate(list(_ranks(unit(anchors), unit(positives))))
    recalls = {f"recall@{k}": float((ranks <= k).mean()) for k in (1, 10)}
    return {**recalls, "mean_reciprocal_rank": float((1.0 / ranks).mean())}


def _ranks(anchors: NDArray[np.float64], positives: NDArray[np.float64]) -> Iterator[NDArray[np.int64]]:
    block = max(SCORES // len(positives), 1)
    for begin in range(0, len(anchors), block):
        scores = anchors[begin : begin + block] @ positives.T  # (block, n)
        rows = np.arange(len(scores))
        own = scores[rows, begin + rows]
        yield (scores >= own[:, None]).sum(axis=1)


def similarity(anchors: NDArray[Any], positives: NDArray[Any], scores: NDArray[Any]) -> Metrics:
    """Correlations of the cosines of pairs with the scores that they should have. (n, dim) twice, and (n,).

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    return correlations((unit(anchors) * unit(positives)).sum(axis=1), scores)
