"""Both classes give the ids of the reference for the tokenizers that it saved, and keep them over a save."""

import json

import pytest

from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.tokenization.slow import DistilBertTokenizer
from tests.support import DATA

GOLDENS = sorted((DATA / "tokenizers").iterdir())
LONGER = 99  # than any of the texts: one of the tokenizers has a limit of 12


@pytest.mark.parametrize("cls", [DistilBertTokenizer, DistilBertTokenizerFast])
@pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: folder.name)
def test_ids_are_those_of_the_reference_before_and_after_a_save(folder, cls, tmp_path):
    expected = json.loads((folder / "expected.json").read_text())
    cls.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    for place in (folder, tmp_path / "saved"):
        tokenizer = cls.from_pretrained(place)
        found = {text: list(tokenizer(text, max_length=LONGER)["input_ids"]) for text in expected["ids"]}
        assert found == expected["ids"]
        batch = tokenizer(list(expected["ids"]), padding=True, truncation=True, max_length=9)["input_ids"]
        assert [list(row) for row in batch] == expected["batch"]


@pytest.mark.parametrize("folder", [folder for folder in GOLDENS if folder.name.endswith("slow")], ids=lambda f: f.name)
def test_the_slow_dialect_is_the_slow_reference(folder):
    expected = json.loads((folder / "expected.json").read_text())
    tokenizer = DistilBertTokenizer.from_pretrained(folder, dialect="slow")
    assert {text: list(tokenizer(text, max_length=LONGER)["input_ids"]) for text in expected["ids"]} == expected["ids"]
