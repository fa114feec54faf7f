"""Tokenization: enough for real sentences, from either file, and a clear error for anything else."""

import json
import shutil

import pytest

from distilbert.errors import DataError, TokenizerError
from distilbert.tokenization.fast import DistilBertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "caf", "##e", "##é", "東", "京", ",", "The"]
VOCABULARY = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return tmp_path


def tokens(tokenizer, text):
    return [WORDS[i] for i in tokenizer.encode_batch([text])[0]]


def test_a_vocabulary_and_its_options(folder):
    plain = DistilBertTokenizerFast.from_pretrained(folder)
    assert tokens(plain, "The cats, café 東京 dog") == [
        "[CLS]", "the", "cat", "##s", ",", "caf", "##e", "東", "京", "[UNK]", "[SEP]",
    ]  # fmt: skip
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 4}')
    cased = DistilBertTokenizerFast.from_pretrained(folder)
    assert tokens(cased, "The") == ["[CLS]", "The", "[SEP]"]
    assert cased.model_max_length == 4
    assert tokens(DistilBertTokenizerFast(VOCABULARY, strip_accents=False), "café") == ["[CLS]", "caf", "##é", "[SEP]"]


def test_batches_are_padded_and_cut_only_when_asked_to(folder):
    tokenizer = DistilBertTokenizerFast.from_pretrained(folder)
    batch = tokenizer(["the cats", ""])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 3, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert tokenizer("the cats", truncation=True, max_length=4)["input_ids"].tolist() == [[2, 5, 6, 3]]
    with pytest.raises(DataError, match="text 1 has 5 tokens, more than 4: truncate it"):
        tokenizer(["the", "the cats"], max_length=4)
    with pytest.raises(DataError, match="valid Unicode"):
        tokenizer("lone \ud800 surrogate")


def test_windows_line_ends_and_a_missing_last_one(folder):
    expected = DistilBertTokenizerFast.from_pretrained(folder).encode_batch(["the cats 東京"])
    for text in ("\r\n".join(WORDS) + "\r\n", "\n".join(WORDS)):
        (folder / "vocab.txt").write_bytes(text.encode())
        assert DistilBertTokenizerFast.from_pretrained(folder).encode_batch(["the cats 東京"]) == expected


def test_the_files_of_a_real_model_agree(minilm, tmp_path):
    """tokenizer.json, which fixes a padding of 128 and a cut at 128, and vocab.txt give the same ids, uncut."""
    shutil.copy(minilm / "safetensors" / "vocab.txt", tmp_path)
    texts = ["Hello, wörld! 東京 " * 40, "", "a[SEP]b [MASK] don't"]
    both = [DistilBertTokenizerFast.from_pretrained(f).encode_batch(texts) for f in (minilm / "safetensors", tmp_path)]
    assert both[0] == both[1]
    assert len(both[0][0]) == 242  # six tokens forty times, and two around them
    assert both[0][2] == [101, 1037, 102, 1038, 103, 2123, 1005, 1056, 102]


def test_added_tokens_get_the_ids_of_their_file(minilm, tmp_path):
    content = json.loads((minilm / "safetensors" / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": 30522, "content": "<entity>", "special": True, "normalized": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = DistilBertTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.encode_batch(["a <entity>"]) == [[101, 1037, 30522, 102]]
    content["added_tokens"][-1]["id"] = 40000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="'<entity>' cannot have the id 40000"):
        DistilBertTokenizerFast.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}},
            "pre_tokenizer must be BertPreTokenizer",
        ),
        (
            {"normalizer": {"type": "Replace"}},
            "normalizer must be BertNormalizer in a DistilBERT tokenizer, got Replace",
        ),
        ({"model": {"type": "BPE"}}, "model must be WordPiece"),
        ({"post_processor": None}, "post_processor must be TemplateProcessing or BertProcessing"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(minilm, tmp_path, change, text):
    content = json.loads((minilm / "safetensors" / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=text):
        DistilBertTokenizerFast.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("vocab.txt", "gr\xfc\xdfe".encode("latin-1"), "is not UTF-8 text"),
        ("vocab.txt", b"", "the vocabulary lacks"),
        ("vocab.txt", b"a\nb\n", r"the vocabulary lacks \[UNK\], \[SEP\], \[PAD\], \[CLS\], \[MASK\]"),
        ("tokenizer.json", b"{", "is not valid JSON"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer"),
        ("other.txt", b"", "holds neither tokenizer.json nor vocab.txt"),
    ],
)
def test_broken_files_are_one_error(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=text) as caught:
        DistilBertTokenizerFast.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"do_lower_case": "yes"}, {"strip_accents": 3}, {"tokenize_chinese_chars": []}])
def test_broken_options_are_one_error(folder, options):
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(TokenizerError, match="are not a DistilBERT tokenizer's"):
        DistilBertTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("length", [1, 0, -1])
def test_a_length_without_room_for_the_special_tokens_is_refused(folder, length):
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        DistilBertTokenizerFast.from_pretrained(folder)("the", truncation=True, max_length=length)
