"""Answers in a context: from the logits of a question's windows to text, and how SQuAD scores it.

Sources: Rajpurkar et al. 2016, arXiv 1606.05250, section 6 (exact match and F1); Rajpurkar et al. 2018, arXiv
1806.03822 (questions without an answer). Axes: seq (tokens of a window).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Window(NamedTuple):
    """What a model found in one window of a question's context.

    start_logits, end_logits: (seq,), or more where rows are padded. offsets: (seq, 2), where each token begins and
    ends in `text`, in characters; (-1, -1) for tokens outside it: of the question, and special ones. text: the
    context, or the part of it that the window covers. The first token stands for: no answer here.
    """

    start_logits: NDArray[Any]
    end_logits: NDArray[Any]
    offsets: NDArray[Any]
    text: str


class Answer(NamedTuple):
    """A text, the sum of its logits, and where it stands: `start` to `end` in the text of a window by its number.

    No answer is an empty text, at 0 to 0.
    """

    text: str
    score: float
    window: int
    start: int
    end: int


def best_spans(
    windows: Sequence[Window], *, max_answer_length: int = 30, n_best: int = 20, may_be_empty: bool = False
) -> list[Answer]:
    """The best answers over all windows of a question, best first; of equal texts the best, and at least one.

    Every span is weighed, not only those between the likeliest starts and ends.

    Args:
        windows: of the question, at least one.
        max_answer_length: in tokens.
        n_best: at most so many.
        may_be_empty: whether "no answer" takes part, with its least score over the windows: each of them must say
            so. Otherwise it is given only where no window has a token of the context.

    Raises:
        ValueError: a limit below 1.
    """
    if max_answer_length < 1 or n_best < 1:
        raise ValueError(f"max_answer_length and n_best must be at least 1, got {max_answer_length} and {n_best}.")
    found = [answer for i, window in enumerate(windows) for answer in _spans(i, window, max_answer_length, n_best)]
    if may_be_empty or not found:
        scores = [float(window.start_logits[0]) + float(window.end_logits[0]) for window in windows]
        found.append(Answer("", min(scores), int(np.argmin(scores)), 0, 0))
    best: dict[str, Answer] = {}
    for answer in sorted(found, key=lambda answer: -answer.score):
        best.setdefault(answer.text, answer)
    return list(best.values())[:n_best]


def _spans(number: int, window: Window, max_answer_length: int, n_best: int) -> list[Answer]:
    """The best spans of a window, as many as are asked for of all windows."""
    tokens = np.flatnonzero(window.offsets[:, 0] >= 0)
    starts, ends = window.start_logits[tokens].astype(np.float64), window.end_logits[tokens].astype(np.float64)
    first, length = np.indices((len(tokens), min(max_answer_length, len(tokens)))).reshape(2, -1)
    first, length = first[first + length < len(tokens)], length[first + length < len(tokens)]
    scores = starts[first] + ends[first + length]
    best = np.argsort(-scores, kind="stable")[:n_best]
    begins, finishes = window.offsets[tokens[first[best]], 0], window.offsets[tokens[first[best] + length[best]], 1]
    places = zip(scores[best].tolist(), begins.tolist(), finishes.tolist(), strict=True)
    return [Answer(window.text[begin:end], score, number, begin, end) for score, begin, end in places]


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words apart by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 if both are the same once normalized, else 0."""
    return float(normalized(answer) == normalized(gold))


def word_f1(answer: str, gold: str) -> float:
    """F1 of the words that both share; where one has none, 1 if the other has none either."""
    ours, theirs = normalized(answer).split(), normalized(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def answer_scores(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means of exact match and F1 over questions, from 0 to 1, each the best over the question's gold answers.

    answers: one a question, empty for none. golds: those of each question; without any, or where nothing is left of
    them once normalized, the right answer is none.
    """
    exact = f1 = 0.0
    for answer, gold in zip(answers, golds, strict=True):
        accepted = [text for text in gold if normalized(text)] or [""]
        exact += max(exact_match(answer, text) for text in accepted)
        f1 += max(word_f1(answer, text) for text in accepted)
    return {"exact_match": exact / len(answers), "f1": f1 / len(answers)}
