"""Records to examples, and examples to batches, for each task."""

import dataclasses
import json
import math

import numpy as np
import pytest

from distilbert.checks import IGNORE
from distilbert.errors import DataError
from distilbert.training.batches import normalized
from distilbert.training.objective import HEAD_OF
from distilbert.training.records import Record
from distilbert.training.store import prepare
from distilbert.training.tasks import TASKS, labels
from distilbert.training.tasks.question_answering import find_span
from tests.training_data import CLS, GOOD, LETTERS, PAD, SEP, TOKENS, batch_of, decoded, jsonl, stored, task

# Text classification.


def test_texts_and_numbers_are_classes_in_order(tmp_path):
    rows = [{"text": "a cat", "label": "no"}, {"text": "sat", "label": "maybe"}, {"text": "b", "label": "no"}]
    found = stored(tmp_path, "text-classification", rows)
    assert found.task.problem == "single_label_classification"
    assert found.task.config_changes == {"id2label": {0: "maybe", 1: "no"}, "problem_type": found.task.problem}
    assert found.task.counts.tolist() == [1, 2]
    batch = batch_of(found)
    assert decoded(batch.inputs["input_ids"][0]) == ["[CLS]", "a", "cat", "[SEP]"]
    assert batch.inputs["input_ids"][1].tolist() == [CLS, TOKENS.index("sat"), SEP, PAD]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert batch.targets["labels"].tolist() == [1, 0, 1]
    assert batch.weights.keys() == {"labels"}
    assert batch.weights["labels"].tolist() == [1, 1, 1]
    numbers = stored(tmp_path / "b", "text-classification", [{"text": "a", "label": n} for n in (10, 9, 2)])
    assert numbers.task.labels == ("2", "9", "10")
    assert batch_of(numbers).targets["labels"].tolist() == [2, 1, 0]


def test_lists_are_several_labels(tmp_path):
    rows = [{"text": "a", "label": ["y", "x"]}, {"text": "b", "label": []}, {"text": "c", "label": ["z"]}]
    found = stored(tmp_path, "text-classification", rows, distil=True)
    assert found.task.problem == "multi_label_classification"
    batch = batch_of(found)
    assert batch.targets["labels"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert batch.weights["labels"].shape == batch.weights["logits"].shape == (3, 3)


def test_numbers_with_a_fraction_are_a_regression(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}]
    found = stored(tmp_path, "text-classification", rows)
    assert (found.task.problem, found.task.labels, found.task.counts) == ("regression", ("LABEL_0",), None)
    batch = batch_of(found)
    assert batch.targets["labels"].tolist() == [[1.0], [2.5]]
    assert batch.targets["labels"].dtype == np.float32
    told = {"problem_type": "regression"}
    several = stored(tmp_path / "b", "text-classification", [{"text": "a", "label": [1, 2]}], **told)
    assert batch_of(several).targets["labels"].tolist() == [[1, 2]]
    (tmp_path / "c.csv").write_text("text,label\na,-0.5\n")
    from_csv = prepare(tmp_path / "c", [tmp_path / "c.csv"], task("text-classification", **told))
    assert batch_of(from_csv).targets["labels"].tolist() == [[-0.5]]


def test_too_many_names_are_refused_but_numbers_may_be_many(monkeypatch):
    monkeypatch.setattr(labels, "MAX_LABELS", 3)
    records = [Record("x", i, {"text": "a", "label": i}) for i in range(5)]
    with pytest.raises(DataError, match="there are more than 3 labels: is this the right column"):
        task("text-classification").learn(records)
    with_fraction = Record("x", 6, {"text": "a", "label": 0.5})
    assert task("text-classification").learn([*records, with_fraction]).problem == "regression"


def test_pairs_and_single_texts_go_together_and_are_cut(tmp_path):
    rows = [
        {"s1": "a b", "s2": "c", "y": 0},
        {"s1": "d " * 40, "s2": None, "y": 1},
        {"s1": "e", "s2": "f " * 40, "y": 1},
    ]
    fields = {"text": "s1", "text_pair": "s2", "label": "y"}
    found = stored(tmp_path, "text-classification", rows, fields=fields, max_length=10)
    assert found.lengths.tolist() == [6, 10, 10]
    batch = batch_of(found, length_multiple=8)
    assert batch.inputs["input_ids"].shape == (3, 16)
    assert decoded(batch.inputs["input_ids"][0, :6]) == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    assert decoded(batch.inputs["input_ids"][2, :4]) == ["[CLS]", "e", "[SEP]", "f"]


def test_class_weights_are_those_given_or_balanced(tmp_path):
    rows = [{"text": "a", "label": label} for label in "xxxy"]
    found = stored(tmp_path, "text-classification", rows, class_weights="balanced")
    np.testing.assert_allclose(batch_of(found).weights["labels"], [4 / 6, 4 / 6, 4 / 6, 4 / 2])
    given = dataclasses.replace(found.task, class_weights=[0.0, 3.0])
    assert given.collate(found.examples(range(4))).weights["labels"].tolist() == [0, 0, 0, 3]
    evaluated = dataclasses.replace(given, evaluation=True)
    assert evaluated.collate(found.examples(range(4))).weights["labels"].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="class_weights must be 2 numbers, one for each class, got 3"):
        dataclasses.replace(found.task, class_weights=[1, 2, 3]).collate(found.examples([0]))
    with pytest.raises(ValueError, match="class_weights must be 'balanced' or"):
        dataclasses.replace(found.task, class_weights=[1, math.nan])


def test_a_teacher_needs_no_labels(tmp_path):
    rows = [{"text": "a"}, {"text": "b", "label": "x"}]
    found = stored(tmp_path, "text-classification", rows, distil=True, labels=("x", "y"))
    assert batch_of(found).weights["labels"].tolist() == [0, 1]
    assert batch_of(found).weights["logits"].tolist() == [1, 1]
    assert batch_of(found).weights["hidden"].tolist() == [[1, 1, 1], [1, 1, 1]]
    for kind, shape in (("multi_label_classification", (2, 2)), ("regression", (2, 2))):
        rows = [{"text": "a"}, {"text": "b", "label": [1, 0] if kind == "regression" else ["y"]}]
        options = {"labels": ("x", "y"), "problem_type": kind, "distil": True}
        batch = batch_of(stored(tmp_path / kind, "text-classification", rows, **options))
        assert batch.weights["labels"].tolist() == [[0, 0], [1, 1]]
        assert batch.weights["logits"].shape == shape
        assert np.isfinite(batch.targets["labels"]).all()
    with pytest.raises(DataError, match="no record has a value for 'label'; give problem_type and labels"):
        stored(tmp_path / "none", "text-classification", [{"text": "a"}], distil=True)


# Token classification.


def test_the_first_token_of_a_word_bears_its_label(tmp_path):
    rows = [
        {"tokens": ["the", "catting", "sat"], "labels": ["O", "B-X", "O"]},
        {"tokens": ["\u200b", "ab"], "labels": ["B-X", "I-X"]},
    ]
    found = stored(tmp_path, "token-classification", rows)
    assert found.task.config_changes == {"id2label": {0: "B-X", 1: "I-X", 2: "O"}}
    first, second = found.examples([0, 1])
    assert decoded(first["input_ids"]) == ["[CLS]", "the", "cat", "##ting", "sat", "[SEP]"]
    assert first["labels"].tolist() == [IGNORE, 2, 0, IGNORE, 2, IGNORE]
    assert second["labels"].tolist() == [IGNORE, 1, IGNORE, IGNORE]  # the first word is nothing to the tokenizer
    batch = batch_of(found)
    assert batch.weights["labels"].tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    every = stored(tmp_path / "all", "token-classification", rows, label_all=True, distil=True)
    assert every.examples([0])[0]["labels"].tolist() == [IGNORE, 2, 0, 0, 2, IGNORE]
    assert batch_of(every).weights["logits"].tolist() == batch_of(every).inputs["attention_mask"].tolist()
    balanced = dataclasses.replace(found.task, class_weights="balanced").collate(found.examples([0, 1]))
    np.testing.assert_allclose(balanced.weights["labels"][0], [0, 4 / 6, 4 / 3, 0, 4 / 6, 0], rtol=1e-6)
    cut = stored(tmp_path / "cut", "token-classification", rows, max_length=4).examples([0])[0]
    assert cut["labels"].tolist() == [IGNORE, 2, 0, IGNORE]


# Question answering.

CONTEXT = "the cat sat. ab, cd, ef, gh? ij kl mn. zoé, the fox, sat?"


def answered(text, context=CONTEXT, **more):
    answers = {"text": [text], "answer_start": [context.index(text)]}
    return {"question": "a b?", "context": context, "answers": answers, **more}


def answer_in(example):
    """The text between the positions of an example, by its own offsets; None at the first token."""
    start, end = int(example["start_positions"][0]), int(example["end_positions"][0])
    spans = example["offsets"].reshape(-1, 2)
    return bytes(example["text"]).decode()[spans[start, 0] : spans[end, 1]] if start or end else None


@pytest.mark.parametrize("answer", ["zoé", "zoé, the fox", "fox", "fox, sat?", "?", "cat", "the cat", "ef, gh"])
def test_a_window_points_to_the_answer_if_it_holds_all_of_it(tmp_path, answer):
    rows = [answered(answer, id="q1"), answered("cat", "cat", id=7)]
    options = {"max_length": 20, "stride": 8}
    found = stored(tmp_path, "question-answering", rows, evaluation=True, **options)
    *examples, last = found.examples(range(len(found)))
    assert [int(example["window"][0]) for example in (*examples, last)] == [*range(len(examples)), 0]
    assert len(examples) > 3
    for example in examples:
        part = bytes(example["text"]).decode()
        begin, where = CONTEXT.index(part), CONTEXT.index(answer)
        is_there = begin <= where and where + len(answer) <= begin + len(part)
        assert answer_in(example) == (answer if is_there else None)
    assert answer in map(answer_in, examples)
    assert json.loads(bytes(examples[0]["answers"])) == [answer]
    assert [bytes(examples[0]["id"]), bytes(last["id"])] == [b"q1", b"7"]
    trained = stored(tmp_path / "train", "question-answering", rows, **options)
    for example, kept in zip((*examples, last), trained.examples(range(len(trained))), strict=True):
        assert kept.keys() == {"input_ids", "start_positions", "end_positions"}
        for name, array in kept.items():
            np.testing.assert_array_equal(example[name], array)


def test_an_answer_that_a_window_cuts_is_not_in_it():
    offsets = np.array([[-1, -1], [5, 8], [9, 12], [13, 15], [-1, -1]], np.int32)
    inner = {"is_first": False, "is_last": False}
    assert find_span(offsets, 9, 12, **inner) == (2, 2)
    assert find_span(offsets, 10, 11, **inner) == (2, 2)  # part of a token
    assert find_span(offsets, 5, 15, **inner) == (1, 3)
    assert find_span(offsets, 4, 8, **inner) == (0, 0)
    assert find_span(offsets, 4, 8, is_first=True, is_last=False) == (1, 1)  # what comes before is no token
    assert find_span(offsets, 13, 16, **inner) == (0, 0)
    assert find_span(offsets, 13, 16, is_first=False, is_last=True) == (3, 3)
    assert find_span(offsets, 20, 22, is_first=True, is_last=True) == (0, 0)


def test_questions_without_an_answer_point_to_the_first_token(tmp_path):
    unanswered = {"question": "a?", "context": "the cat", "answers": {"text": [], "answer_start": []}}
    found = stored(tmp_path, "question-answering", [unanswered], distil=True)
    batch = batch_of(found)
    assert batch.targets["start_positions"].tolist() == batch.targets["end_positions"].tolist() == [0]
    assert {name: w.tolist() for name, w in batch.weights.items() if name != "hidden"} == {
        "start_positions": [1],
        "end_positions": [1],
        "logits": [1],
    }
    unknown = stored(tmp_path / "b", "question-answering", [{"question": "a?", "context": "b"}], distil=True)
    assert batch_of(unknown).weights["start_positions"].tolist() == [0]


def test_a_question_that_leaves_no_room_is_one_bad_record(tmp_path):
    long = {**answered("cat"), "question": "a " * 30}
    path = jsonl(tmp_path / "x.jsonl", [answered("cat"), long, answered("zoé")])
    with pytest.raises(DataError, match=r"x.jsonl:2: .*the other text has 30 tokens"):
        prepare(tmp_path / "a", [path], task("question-answering", max_length=20, stride=4))
    found = prepare(tmp_path / "b", [path], task("question-answering", max_length=20, stride=4), on_error="skip")
    assert found.skipped == {"cannot be tokenized": 1}


# Multiple choice, sentence embedding, masked LM.


def test_choices_are_rows_of_one_example(tmp_path):
    rows = [
        {"question": "a", "context": "the cat", "choices": ["b", "c d e"], "label": 1},
        {"question": "a", "choices": ["b", "c"], "label": "0"},
    ]
    found = stored(tmp_path, "multiple-choice", rows, distil=True)
    assert found.lengths.tolist() == [9, 5]
    batch = batch_of(found)
    assert batch.inputs["input_ids"].shape == batch.weights["hidden"].shape == (2, 2, 9)
    assert decoded(batch.inputs["input_ids"][0, 1]) == ["[CLS]", "the", "cat", "[SEP]", "a", "c", "d", "e", "[SEP]"]
    assert decoded(batch.inputs["input_ids"][1, 0, :5]) == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]
    assert batch.targets["labels"].tolist() == [1, 0]
    assert batch.weights["logits"].tolist() == [1, 1]


def test_pairs_are_anchors_and_then_positives(tmp_path):
    rows = [{"text": "a b c", "positive": "d", "score": 1}, {"text": "e", "positive": "f", "score": -0.5}]
    found = stored(tmp_path, "sentence-embedding", rows, scored=True)
    batch = batch_of(found)
    assert batch.paired
    assert [decoded(row[:3])[1] for row in batch.inputs["input_ids"]] == ["a", "e", "d", "f"]
    assert batch.targets["labels"].tolist() == [1, -0.5]
    assert batch.weights["labels"].tolist() == [1, 1]
    unscored = batch_of(stored(tmp_path / "b", "sentence-embedding", rows, distil=True))
    assert (unscored.targets, unscored.weights["hidden"].shape) == ({}, (4,))
    alone = batch_of(stored(tmp_path / "c", "sentence-embedding", rows, distil=True, paired=False))
    assert (alone.paired, alone.rows, list(alone.weights)) == (False, 2, ["hidden"])
    with pytest.raises(ValueError, match="texts without pairs teach only where a teacher is followed"):
        task("sentence-embedding", paired=False)


def test_long_documents_are_cut_into_chunks_and_short_ones_left_out(tmp_path):
    rows = [{"text": "a " * 101}, {"text": "b c"}, {"text": "ü " * 20}]
    found = stored(tmp_path, "masked-lm", rows, max_length=32, min_length=14)
    assert found.lengths.tolist() == [32, 32, 32]  # chunks of 30 and two more; the last would have 13
    assert found.skipped == {"shorter than 14 tokens": 2, "unknown words": 1}
    assert [example["input_ids"][[0, -1]].tolist() for example in found.examples([0, 2])] == [[CLS, SEP]] * 2
    every = stored(tmp_path / "b", "masked-lm", rows, max_length=32, min_length=3, max_unknown=2.0)
    assert every.lengths.tolist() == [32, 32, 32, 13, 4, 22]
    assert found.task.counts[TOKENS.index("a")] == 90
    assert len(found.task.counts) == len(TOKENS)


def test_masked_tokens_depend_on_the_step_alone(tmp_path):
    rows = [{"text": " ".join(LETTERS)}, {"text": "the cat sat " * 6}]
    found = stored(tmp_path, "masked-lm", rows, distil=True)
    batch, again, other = (batch_of(found, step=step) for step in (1, 1, 2))
    plain = found.examples([0, 1])
    assert batch.targets["positions"].tobytes() == again.targets["positions"].tobytes()
    assert batch.inputs["input_ids"].tobytes() != other.inputs["input_ids"].tobytes()
    assert len(batch.targets["positions"]) == math.ceil(0.15 * found.lengths.sum())
    row, column = np.divmod(batch.targets["positions"], batch.seq)
    assert [plain[r]["input_ids"][c] for r, c in zip(row, column, strict=True)] == batch.targets["labels"].tolist()
    for name in ("labels", "logits"):
        np.testing.assert_array_equal(batch.weights[name], np.ones(len(row)))


def test_a_teacher_can_be_followed_at_all_tokens(tmp_path):
    rows = [{"text": " ".join(LETTERS)}, {"text": "the cat sat " * 6}]
    found = stored(tmp_path, "masked-lm", rows, distil=True)
    masked = batch_of(found, step=3)
    every = dataclasses.replace(found.task, logit_positions="all").collate(found.examples([0, 1]), step=3)
    np.testing.assert_array_equal(every.inputs["input_ids"], masked.inputs["input_ids"])
    np.testing.assert_array_equal(every.targets["positions"], np.flatnonzero(every.inputs["attention_mask"]))
    guessed = every.weights["labels"] == 1
    np.testing.assert_array_equal(every.targets["positions"][guessed], masked.targets["positions"])
    np.testing.assert_array_equal(every.targets["labels"][guessed], masked.targets["labels"])
    assert every.weights["logits"].all()
    assert every.weights["labels"].sum() == len(masked.targets["positions"])


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_split_and_normalized(tmp_path, name):
    options = {"scored": True} if name == "sentence-embedding" else {}
    found = stored(tmp_path, name, [GOOD[name]] * 3, distil=True, **options)
    assert found.task.problem in HEAD_OF
    batch = batch_of(found, length_multiple=4)
    assert batch.seq % 4 == 0
    parts = [part for one in normalized([batch]) for part in one.split(2)]
    for weight in batch.weights:
        assert math.isclose(sum(part.weights[weight].sum() for part in parts), 1, rel_tol=1e-5)
    for array in (*batch.inputs.values(), *batch.targets.values()):
        assert array.dtype in (np.int32, np.float32)
