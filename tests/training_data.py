"""A tiny tokenizer, and stores of a few rows: what the tests of training data share."""

import json

from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training.store import prepare
from distilbert.training.tasks import TASKS
from tests.support import SPECIAL_TOKENS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = [*SPECIAL_TOKENS, *LETTERS, *(f"##{c}" for c in LETTERS), "the", "cat", "sat", "##ting", ".", ",", "?", "é"]
TOKENIZER = DistilBertTokenizerFast(
    {token: i for i, token in enumerate(TOKENS)}, model_max_length=64, strip_accents=False
)
CLS, SEP, PAD = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.pad_token_id


def jsonl(path, rows):
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def task(name, **options):
    return TASKS[name](tokenizer=TOKENIZER, **options)


def stored(folder, name, rows, **options):
    """A store of some rows, which lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    on_error = options.pop("on_error", "stop")
    return prepare(folder / "store", [jsonl(folder / "data.jsonl", rows)], task(name, **options), on_error=on_error)


def batch_of(found, **options):
    return found.task.collate(found.examples(range(len(found))), **options)


def decoded(ids):
    return TOKENIZER.convert_ids_to_tokens(ids.tolist())


GOOD = {
    "text-classification": {"text": "a", "label": "x"},
    "token-classification": {"tokens": ["a"], "labels": ["x"]},
    "multiple-choice": {"question": "a", "choices": ["b", "c"], "label": 0},
    "question-answering": {"question": "a", "context": "b", "answers": {"text": [], "answer_start": []}},
    "sentence-embedding": {"text": "a", "positive": "b", "score": 0.5},
    "masked-lm": {"text": "a b c d e f g h i j k l m"},
}
