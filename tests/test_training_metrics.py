"""Metrics: cases worked out by hand, and what their libraries say."""

import json
import math
import string
from collections import Counter

import numpy as np
import pytest

from distilbert.errors import DataError, MissingDependencyError
from distilbert.training import metrics
from distilbert.training.answers import Window, answer_scores, best_spans, exact_match, normalized, word_f1
from distilbert.training.batches import Batch
from distilbert.training.evaluation import EVALUATIONS, LESS_IS_BETTER, evaluation_of
from distilbert.training.metrics import Entity
from distilbert.training.objective import HEAD_OF


def near(**expected):
    return pytest.approx(expected, abs=1e-12)


def test_classification_by_hand():
    # Class 0: precision 1, recall 1/3, F1 1/2. Class 1: 1/2, 1/2, 1/2. Class 2: 1/3, 1, 1/2. Then class 3: 1.
    labels, predicted = np.array([0, 0, 0, 1, 1, 2, 3]), np.array([0, 1, 2, 1, 2, 2, 3])
    found = metrics.classification(predicted, labels)
    assert found == near(accuracy=4 / 7, f1_macro=2.5 / 4, f1_micro=4 / 7, f1_weighted=(6 / 2 + 1) / 7)
    # Class 0: precision 1/2, recall 1. Class 1: 1, 2/3.
    found = metrics.classification(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert found["f1_weighted"] == pytest.approx((2 / 3 + 3 * 4 / 5) / 4)


def test_multi_label_by_hand():
    labels = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    predicted = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    # By label: 1, 1, 0, and 0 for the one that never comes. Over all: 2 right, 3 predicted, 3 wanted.
    found = metrics.multi_label(predicted, labels)
    assert found == near(exact_match=1 / 3, f1_macro=1 / 2, f1_micro=2 / 3, f1_weighted=2 / 3)


def test_losses_by_hand():
    logits = np.log(np.array([[0.2, 0.8], [0.5, 0.5]])) + 1000.0
    expected = -(math.log(0.8) + math.log(0.5)) / 2
    assert metrics.cross_entropy(logits, np.array([1, 0])) == pytest.approx(expected, abs=1e-12)
    assert metrics.binary_cross_entropy(np.array([[0.0, 1000.0]]), np.array([[1, 1]])) == pytest.approx(math.log(2) / 2)


def test_regression_by_hand():
    predicted, targets = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [3.0], [2.0]])
    # Centred: (-4/3, -1/3, 5/3) and (-1, 1, 0); product 1, squares 42/9 and 2. Ranks 1 2 3 and 1 3 2.
    pearson = 1.0 / math.sqrt(42 / 9 * 2)
    found = metrics.regression(predicted, targets)
    assert found == near(mean_squared_error=5 / 3, pearson=pearson, spearman=0.5)
    both = metrics.regression(np.hstack([predicted, targets]), np.hstack([targets, targets]))
    assert both == near(mean_squared_error=5 / 6, pearson=(pearson + 1) / 2, spearman=0.75)


def test_what_is_constant_does_not_correlate():
    constant = np.full((3, 1), 2.0, np.float32)
    found = metrics.regression(constant, np.array([[1.0], [2.0], [3.0]]))
    assert found == near(mean_squared_error=2 / 3, pearson=0.0, spearman=0.0)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", []),
        ("O O", []),
        ("B-PER", [("PER", 0, 0)]),
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),  # another kind begins an entity
        ("O I-ORG I-ORG O", [("ORG", 1, 2)]),  # and so does an inside without a begin
        ("I-ORG O I-ORG", [("ORG", 0, 0), ("ORG", 2, 2)]),
        ("B-a-b I-a-b", [("a-b", 0, 1)]),
    ],
)
def test_entities_of_bio_tags(tags, expected):
    assert metrics.entities(tags.split()) == {Entity(*one) for one in expected}


def test_entity_scores_by_hand():
    labels = ["B-PER I-PER O B-LOC", "O B-ORG", "B-LOC O"]
    predicted = ["B-PER I-PER O B-ORG", "B-ORG I-ORG", "B-LOC B-LOC"]
    # Wanted 4, predicted 5; right: the person, and the place of the last sentence.
    found = metrics.entity_scores([tags.split() for tags in predicted], [tags.split() for tags in labels])
    assert found == near(precision=0.4, recall=0.5, f1=4 / 9)
    assert metrics.entity_scores([["O"]], [["O"]]) == near(precision=0.0, recall=0.0, f1=0.0)
    with pytest.raises(ValueError, match="as many tags as labels, got 1 and 2"):
        metrics.entity_scores([["O"]], [["O", "O"]])


def test_which_labels_are_entities():
    assert metrics.has_entities(["O", "B-PER", "I-PER"])
    assert not metrics.has_entities(["O", "NOUN"])
    assert not metrics.has_entities(["O", "B-PER", "NOUN"])
    assert not metrics.has_entities(["O"])
    assert not metrics.has_entities(["O", "B-"])


def test_masked_tokens_are_sums_over_any_cut():
    random = np.random.RandomState(0)
    logits, labels = random.randn(50, 7).astype(np.float32), random.randint(0, 7, 50)
    whole, parts = metrics.MaskedTokens(), metrics.MaskedTokens()
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    tokens, losses = logits.argmax(1), -np.log(probabilities[np.arange(50), labels])
    whole.add(tokens, labels, losses)
    for cut in (slice(0, 1), slice(1, 1), slice(1, 30), slice(30, 50)):
        parts.add(tokens[cut], labels[cut], losses[cut])
    loss = losses.mean()
    expected = {"perplexity": math.exp(loss), "accuracy": (logits.argmax(1) == labels).mean(), "loss": loss}
    assert whole.result() == pytest.approx(expected)
    assert parts.result() == pytest.approx(whole.result())
    with pytest.raises(ValueError, match="at least one masked token"):
        metrics.MaskedTokens().result()


def test_a_guess_has_the_perplexity_of_the_vocabulary_and_a_wild_one_a_finite_one():
    even, wild = metrics.MaskedTokens(), metrics.MaskedTokens()
    even.add(np.array([0, 0, 0]), np.array([0, 1, 2]), np.full(3, math.log(8)))
    wild.add(np.array([1]), np.array([0]), np.array([1e6]))
    assert even.result()["perplexity"] == pytest.approx(8)
    assert math.isfinite(wild.result()["perplexity"])


def test_retrieval_by_hand(monkeypatch):
    # The first finds its own, the second ranks it second, the third third.
    anchors = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    positives = np.array([[2.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
    expected = near(**{"recall@1": 1 / 3, "recall@10": 1.0, "mean_reciprocal_rank": (1 + 1 / 3 + 1 / 2) / 3})
    assert metrics.retrieval(anchors, positives) == expected
    monkeypatch.setattr(metrics, "SCORES", 1)
    assert metrics.retrieval(anchors, positives) == expected


def test_vectors_that_are_all_the_same_find_nothing():
    same = np.ones((20, 3), np.float32)
    assert metrics.retrieval(same, same) == near(**{"recall@1": 0.0, "recall@10": 0.0, "mean_reciprocal_rank": 0.05})


def test_recall_at_ten():
    angles = np.linspace(0.0, 1.0, 12)
    positives = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Every anchor points at the first: pair number i has the rank i + 1.
    found = metrics.retrieval(np.repeat(positives[:1], 12, axis=0), positives)
    mean = sum(1 / rank for rank in range(1, 13)) / 12
    assert found == near(**{"recall@1": 1 / 12, "recall@10": 10 / 12, "mean_reciprocal_rank": mean})


def test_similarity_is_that_of_cosines_not_of_products():
    anchors = np.array([[1.0, 0.0], [10.0, 0.0], [1.0, 0.0]])
    positives = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 9.0]])
    found = metrics.similarity(anchors, positives, np.array([1.0, math.sqrt(0.5), 0.0]))
    assert found == near(pearson=1.0, spearman=1.0)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    with pytest.raises(MissingDependencyError, match=r"computing F1 needs .*distilbert\[train\]"):
        metrics.classification(np.array([0]), np.array([0]))


def test_normalized_answers():
    assert normalized("  The  U.S. Theatre,\nan  A-team ") == "us theatre ateam"
    assert normalized("the") == ""
    assert normalized("Äther “x”") == "äther “x”"  # only ASCII punctuation goes


def test_exact_match_and_f1_by_hand():
    assert exact_match("The Cat!", "cat") == 1.0
    assert exact_match("cats", "cat") == 0.0
    assert word_f1("the big black cat", "black cats and a cat") == pytest.approx(2 * 2 / (3 + 4))
    assert word_f1("cat cat cat", "cat dog") == pytest.approx(2 * 1 / 5)
    assert (word_f1("", ""), word_f1("the", "a"), word_f1("x", ""), word_f1("", "x")) == (1.0, 1.0, 0.0, 0.0)


def test_each_question_takes_its_best_gold_answer_and_none_means_none():
    answers = ["red car", "", "blue", ""]
    golds = [["a car", "the red car"], [], ["", "the"], ["", "x"]]
    assert answer_scores(answers, golds) == near(exact_match=0.5, f1=0.5)
    assert answer_scores(["red car"], [["car", "green"]]) == near(exact_match=0.0, f1=2 / 3)


CONTEXT = "Ada met Tim in  Rome."


def window(start, end, offsets, text=CONTEXT):
    return Window(np.array(start, np.float32), np.array(end, np.float32), np.array(offsets, np.int32), text)


OUTSIDE = (-1, -1)
# [CLS] who [SEP] Ada met Tim | [CLS] who [SEP] Tim in Rome . [PAD]
FIRST = [OUTSIDE, OUTSIDE, OUTSIDE, (0, 3), (4, 7), (8, 11)]
SECOND = [OUTSIDE, OUTSIDE, OUTSIDE, (0, 3), (4, 6), (8, 12), (12, 13), OUTSIDE]  # of the context from "Tim" on


def test_the_best_span_is_found_over_all_windows_in_the_characters_of_the_context():
    one = window([9, 9, 0, 1, 0, 0], [9, 9, 0, 0, 0, 1], FIRST)
    two = window([9, 0, 0, 1, 2, 0, 0, 9], [9, 0, 0, 3, 0, 3, 0, 9], SECOND, CONTEXT[8:])
    found = best_spans([one, two])
    assert next(answer for answer in found if answer.text == "Tim").score == 4.0  # its better one
    assert found[0] == ("in  Rome", 5.0, 1, 4, 12)
    assert len({answer.text for answer in found}) == len(found) == 6 + 10 - 1  # both windows have "Tim"
    assert [answer.score for answer in found] == sorted((answer.score for answer in found), reverse=True)
    assert best_spans([one], n_best=1) == [("Ada met Tim", 2.0, 0, 0, 11)]


def test_spans_are_no_longer_than_told_and_never_run_backwards():
    one = window([0, 0, 0, 5, 0, 1], [0, 0, 0, 0, 2, 5], FIRST)
    assert best_spans([one], max_answer_length=3)[0].text == "Ada met Tim"
    assert best_spans([one], max_answer_length=2)[0].text == "Ada met"
    assert best_spans([one], max_answer_length=1)[0].text == "Tim"
    backwards = window([0, 0, 0, 0, 0, 9], [0, 0, 0, 9, 0, 0], FIRST)
    assert all(answer.start < answer.end for answer in best_spans([backwards]))
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 20"):
        best_spans([one], max_answer_length=0)


def test_no_answer_must_be_said_by_every_window():
    sure = [5, 0, 0, 1, 0, 0]
    assert best_spans([window(sure, sure, FIRST)])[0].text == "Ada"
    assert best_spans([window(sure, sure, FIRST)], may_be_empty=True)[0] == ("", 10.0, 0, 0, 0)
    unsure = [0.5, 0, 0, 0, 2, 0, 0, 0]
    both = [window(sure, sure, FIRST), window(unsure, unsure, SECOND, CONTEXT[8:])]
    assert best_spans(both, may_be_empty=True)[0] == ("in", 4.0, 1, 4, 6)
    assert best_spans([window([1], [2], [OUTSIDE])]) == [("", 3.0, 0, 0, 0)]


def test_spans_equal_a_search_of_everything():
    random = np.random.RandomState(1)
    context = "".join(random.choice(list(string.ascii_lowercase + " "), 200))
    begins = np.sort(random.choice(195, 40, replace=False))
    offsets = [OUTSIDE] * 4 + [(b, b + 3) for b in begins] + [OUTSIDE] * 3
    logits = random.randn(2, 47)
    expected = Counter()
    for i in range(4, 44):
        for j in range(i, min(i + 7, 44)):
            expected[offsets[i][0], offsets[j][1]] = logits[0, i] + logits[1, j]
    found = best_spans([Window(*logits, np.array(offsets), context)], max_answer_length=7, n_best=9)
    assert [(a.start, a.end) for a in found] == [place for place, _ in expected.most_common(9)]
    assert all(a.text == context[a.start : a.end] for a in found)


def batch_of(labels, weights=None, *, paired=False, name="labels"):
    labels = np.array(labels)
    weights = np.ones(labels.shape) if weights is None else np.array(weights)
    inputs = {"input_ids": np.zeros((len(labels), 1), np.int32)}
    return Batch(inputs, {name: labels}, {name: weights.astype(np.float32)}, paired=paired)


def evaluated(task, *rounds, **options):
    """The result of batches, each with the outputs of the model."""
    evaluation = evaluation_of(task, **options)
    for batch, outputs in rounds:
        arrays = {name: np.array(array, np.float32) for name, array in outputs.items()}
        evaluation.add(batch, arrays, [{}] * batch.rows, range(batch.rows))
    result = evaluation.result()
    assert {*evaluation.NAMES} == {*result}
    return result


def test_every_task_has_an_evaluation_that_refuses_to_say_something_of_nothing():
    assert EVALUATIONS.keys() == HEAD_OF.keys()
    for task in HEAD_OF:
        with pytest.raises((DataError, ValueError), match=r"nothing can be evaluated|at least one masked token"):
            evaluated(task)


@pytest.mark.parametrize("task", ["single_label_classification", "multiple_choice"])
def test_classes_count_where_they_have_a_weight(task):
    found = evaluated(
        task,
        (batch_of([0, 1, -100], [0.5, 2.0, 0.0]), {"logits": [[2, 0], [1, 0], [0, 0]]}),
        (batch_of([1, -100], [1, 0]), {"logits": [[0, 5], [9, 9]]}),
    )
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1)) + math.log(1 + math.exp(-5))) / 3
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(expected)
    assert found["f1_macro"] == pytest.approx(2 / 3)


def test_tags_are_entities_only_if_they_look_like_it():
    names = ["O", "B-X", "I-X"]
    rows = [
        (batch_of([[-100, 1, 2, 0]], [[0, 1, 1, 1]]), {"logits": [[[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 9, 0]]]}),
        (batch_of([[1, 1], [0, -100]], [[1, 1], [1, 0]]), {"logits": [[[0, 9, 0], [0, 0, 9]], [[9, 0, 0], [0, 9, 0]]]}),
    ]
    # Wanted: "1 2" of the first sentence, and two of one word; found: "1 2", "3", and both words as one.
    found = evaluated("token_classification", *rows, labels=names)
    assert found.pop("loss") == pytest.approx(found_loss(4, 6), abs=1e-6)
    assert found == near(precision=1 / 3, recall=1 / 3, f1=1 / 3, accuracy=4 / 6)
    assert evaluated("token_classification", *rows, labels=["a", "b", "c"])["accuracy"] == pytest.approx(4 / 6)
    assert evaluation_of("token_classification", labels=names).NAMES[0] == "f1"
    assert evaluation_of("token_classification", labels=["a", "b", "c"]).NAMES[0] == "accuracy"


def found_loss(right, count):
    """Of logits that are 9 for one class of three, and 0 for the others."""
    return math.log(1 + 2 * math.exp(-9)) + (count - right) * 9 / count


def test_labels_and_numbers():
    rows = batch_of([[1, 0], [1, 1], [0, 0]], [[1, 1], [1, 1], [0, 0]])
    found = evaluated("multi_label_classification", (rows, {"logits": [[3, -1], [2, -2], [5, 5]]}))
    assert (found["exact_match"], found["f1_micro"]) == pytest.approx((0.5, 2 * 2 / (2 + 3)))
    rows = batch_of([[1.0], [2.0], [3.0], [0.0]], [[1], [1], [1], [0]])
    found = evaluated("regression", (rows, {"logits": [[2], [4], [6], [-50]]}))
    assert found == near(mean_squared_error=14 / 3, pearson=1.0, spearman=1.0)


def test_answers_are_taken_over_the_windows_of_a_question_in_whatever_order_they_come():
    def example(number, text, offsets, *answers):
        data = json.dumps(answers, ensure_ascii=False).encode()
        columns = {"window": [number], "text": list(text.encode()), "offsets": offsets, "answers": list(data)}
        dtypes = {"text": np.uint8, "answers": np.uint8}
        return {name: np.array(values, dtypes.get(name, np.int32)) for name, values in columns.items()}

    examples = [
        example(0, "Köln am", [-1, -1, 0, 4, 5, 7], "Rhein", "the Rhein"),
        example(1, "am Rhein", [-1, -1, 0, 2, 3, 8], "Rhein", "the Rhein"),
        example(0, "no idea", [-1, -1, 0, 2, 3, 7], "an idea"),
        example(0, "not known", [-1, -1, 0, 3, 4, 9]),
    ]
    start = np.array([[0, 0, 0, 9], [0, 0, 4, 9], [0, 1, 0, 9], [0, 5, 5, 9]], np.float32)  # 9: padding
    end = np.array([[0, 2, 0, 9], [0, 0, 4, 9], [0, 0, 1, 9], [0, 5, 5, 9]], np.float32)

    def result(order, known):
        evaluation = evaluation_of("question_answering")
        for rows in order:
            weights = {"start_positions": np.array([known[row] for row in rows], np.float32)}
            batch = Batch({"input_ids": np.zeros((len(rows), 4), np.int32)}, {}, weights)
            outputs = {"start_logits": start[rows], "end_logits": end[rows]}
            evaluation.add(batch, outputs, [examples[row] for row in rows], rows)
        return evaluation.result()

    # "Rhein" is right, "no idea" shares a word of two with "idea"; the last is not known to have no answer.
    expected = near(exact_match=1 / 2, f1=(1 + 2 / 3) / 2)
    assert result([[0, 1], [2, 3]], [1, 1, 1, 0]) == expected
    assert result([[2], [1, 3], [0]], [1, 1, 1, 0]) == expected
    assert result([[3, 1], [0, 2]], [1, 1, 1, 1]) == near(exact_match=1 / 3, f1=(1 + 2 / 3) / 3)
    start[3] = end[3] = [9, 0, 0, 0]
    assert result([[3, 1], [0, 2]], [1, 1, 1, 1]) == near(exact_match=2 / 3, f1=(2 + 2 / 3) / 3)
    start[:3, 0] = 20  # "no answer" is none where every question has one
    assert result([[0, 1], [2, 3]], [1, 1, 1, 0]) == expected


def test_masked_tokens_count_where_they_have_a_weight():
    found = evaluated(
        "masked_lm", (batch_of([0, 1, 1], [1, 1, 0]), {"tokens": [0, 0, 0], "losses": [math.log(2), math.log(2), 50]})
    )
    assert found == pytest.approx({"perplexity": 2.0, "accuracy": 0.5, "loss": math.log(2)})
    assert evaluation_of("masked_lm").NAMES[0] in LESS_IS_BETTER


def test_pairs_with_and_without_scores():
    one = (batch_of([1.0], paired=True), {"embeddings": [[1, 0], [2, 0]]})
    two = (batch_of([0.0, 0.7], paired=True), {"embeddings": [[1, 0], [0, 1], [0, 3], [1, 1.01]]})
    alone = (batch_of([0.0]), {"embeddings": [[1, 0]]})
    assert evaluated("sentence_embedding", one, alone, two)["recall@1"] == pytest.approx(1 / 3)
    assert evaluated("sentence_embedding", one, two, scored=True)["spearman"] == pytest.approx(1.0)
