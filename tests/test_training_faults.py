"""Records that a task cannot use: each is said with file and line, or skipped and counted."""

import json

import pytest

from distilbert.errors import DataError
from distilbert.training.store import prepare
from tests.training_data import GOOD, task

FAULTS = [
    ("text-classification", {"text": "a"}, {}, "has no value for 'label'; its fields are 'text'."),
    ("text-classification", {"label": "x"}, {}, "has no value for 'text'; its fields are 'label'."),
    ("text-classification", {"text": 5, "label": "x"}, {}, "'text' must be a text, got 5."),
    (
        "text-classification",
        {"text": "\ud800", "label": "x"},
        {},
        "'text' holds a lone surrogate, which is no Unicode text.",
    ),
    ("text-classification", {"text": "a", "label": "z"}, {}, "'label' must be one of 'x', 'y', got 'z'."),
    ("text-classification", {"text": "a", "label": 2}, {}, "'label' must be one of 'x', 'y', got 2."),
    ("text-classification", {"text": "a", "label": -1}, {}, "'label' must be one of 'x', 'y', got -1."),
    ("text-classification", {"text": "a", "label": 0.5}, {}, "'label' must be a text or a whole number, got 0.5."),
    (
        "text-classification",
        {"text": "a", "label": "x"},
        {"problem_type": "multi_label_classification"},
        "'label' must be a list of labels, got 'x'.",
    ),
    (
        "text-classification",
        {"text": "a", "label": "nan"},
        {"problem_type": "regression", "labels": ("v",)},
        "'label' must be a finite number, got 'nan'.",
    ),
    (
        "text-classification",
        {"text": "a", "label": [1.0, 2.0]},
        {"problem_type": "regression", "labels": ("v",)},
        "'label' must hold as many numbers as the model gives, 1, got 2.",
    ),
    (
        "token-classification",
        {"tokens": ["a"], "labels": []},
        {},
        "'labels' must be 1 labels, one for each word, got 0.",
    ),
    (
        "token-classification",
        {"tokens": ["a"], "labels": ["q"]},
        {},
        "'labels' must each be one of 'x', 'y', got 'q'.",
    ),
    ("token-classification", {"tokens": "a", "labels": ["x"]}, {}, "'tokens' must be a list, got 'a'."),
    (
        "multiple-choice",
        {"question": "a", "choices": ["b"], "label": 0},
        {},
        "'choices' must be 2 texts, as in the records before, got 1.",
    ),
    (
        "multiple-choice",
        {"question": "a", "choices": ["b", "c"], "label": 2},
        {},
        "'label' must be a whole number from 0 to 1, got 2.",
    ),
    (
        "question-answering",
        {"question": "a", "context": "b"},
        {},
        "has no value for 'answers'; its fields are 'question', 'context'.",
    ),
    (
        "question-answering",
        {"question": "a", "context": "a cat", "answers": {"text": ["cat"], "answer_start": [1]}},
        {},
        "'answers' has 'cat' at character 1, where the context has another text.",
    ),
    (
        "question-answering",
        {"question": "a", "context": "a cat", "answers": ["cat"]},
        {},
        '\'answers\' must be {"text": [...], "answer_start": [...]} with as many texts as whole numbers.',
    ),
    ("sentence-embedding", {"text": "a"}, {}, "has no value for 'positive'; its fields are 'text'."),
    (
        "sentence-embedding",
        {"text": "a", "positive": "b", "score": 3},
        {"scored": True},
        "'score' must be a number from -1 to 1, got 3.",
    ),
    ("masked-lm", {"txt": "a"}, {}, "has no value for 'text'; its fields are 'txt'."),
]
KNOWN = {
    "text-classification": {"problem_type": "single_label_classification", "labels": ("x", "y")},
    "token-classification": {"labels": ("x", "y")},
    "multiple-choice": {"num_choices": 2},
}


@pytest.mark.parametrize(("name", "row", "options", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_wrong_record_is_said_with_file_and_line_or_skipped(tmp_path, name, row, options, message):
    options = {**KNOWN.get(name, {}), **options}
    good = GOOD[name]
    if options.get("problem_type") == "regression":
        good = {"text": "a", "label": 1.5}
    elif options.get("problem_type") == "multi_label_classification":
        good = {"text": "a", "label": ["x"]}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (good, good, row, good)))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "stop", [path], task(name, **options))
    assert str(caught.value) == f"{path}:3: {message}"
    assert not (tmp_path / "stop").exists()
    found = prepare(tmp_path / "skip", [path], task(name, **options), on_error="skip")
    assert (found.records, len(found), sum(found.skipped.values())) == (4, 3, 1)
    assert found.first_faults == [f"{path}:3: {message}"]
