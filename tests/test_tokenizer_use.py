"""Both tokenizers as people use and misuse them: what is given in odd forms, changed halfway, or very large."""

import copy
import json
import time

import numpy as np
import pytest

from distilbert import AddedToken, DistilBertTokenizer, DistilBertTokenizerFast
from distilbert.errors import DataError, TokenizerError
from tests.test_tokenizer import CLASSES, VOCABULARY, cases, real


@pytest.fixture(params=CLASSES, ids=["pure", "fast"])
def tokenizer(request):
    return request.param(VOCABULARY)


def test_texts_come_in_many_forms(tokenizer):
    expected = tokenizer(["the", "the cats"])["input_ids"]
    for given in (
        ("the", "the cats"),
        np.array(["the", "the cats"]),
        iter(["the", "the cats"]),
        {"the": 1, "the cats": 2}.keys(),
    ):
        if isinstance(given, type({}.keys())):
            with pytest.raises(TypeError, match="must be a string or a list"):
                tokenizer(given)
            continue
        assert tokenizer(given)["input_ids"] == expected
    words = [["the"], ["the", "cats"], []]
    by_word = tokenizer(words, is_split_into_words=True)["input_ids"]
    assert by_word == [*expected, [2, 3]]
    assert tokenizer((row for row in words), is_split_into_words=True)["input_ids"] == by_word
    assert tokenizer(map(np.array, words[:2]), is_split_into_words=True)["input_ids"] == by_word[:2]
    for wrong in (b"the", {"the": 1}, {"the"}, 7, np.array("the")):
        with pytest.raises(TypeError, match="text must be a string or a list of strings, got"):
            tokenizer(wrong)
    with pytest.raises(TypeError, match="tokenize takes one text"):
        tokenizer.tokenize(["the"])
    assert tokenizer.tokenize("the", "cats", add_special_tokens=True) == [
        "[CLS]",
        "the",
        "[SEP]",
        "cat",
        "##s",
        "[SEP]",
    ]


def test_numbers_of_numpy_are_numbers(tokenizer):
    assert tokenizer("the cats", truncation=True, max_length=np.int64(4))["input_ids"] == [2, 5, 6, 3]
    assert tokenizer.convert_ids_to_tokens(np.array([5, 6])) == ["the", "cat"]
    for wrong in (True, 4.0, "4", None, 1 << 40):
        if wrong is not None:
            with pytest.raises(ValueError, match="max_length must be a whole number"):
                tokenizer("the", truncation=True, max_length=wrong)
    assert tokenizer("the", padding=None, truncation=None)["input_ids"] == [2, 5, 3]
    for name in ("padding", "truncation"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            tokenizer("the", **{name: ["longest"]})


@pytest.mark.parametrize("ids", [[[5, 6]], np.array([[5, 6]]), "abc", None, [5.0], ["5"], [True], [None]])
def test_only_ids_of_one_row_are_decoded(tokenizer, ids):
    with pytest.raises(TypeError, match="ids must be whole numbers, one or a list; rows of them go to batch_decode"):
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1], [1]]}, "attention_mask must have a value for each token"),
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1]]}, "attention_mask must have a value for each token"),
        ([{"input_ids": [1]}, {"labels": 1}], "must have the names of the first one, row 1 has not"),
        ([[1, 2]], "must have the names of the first one, row 0 has not"),
        ({"input_ids": ["ab"]}, "input_ids must be rows of whole numbers, got 'ab' as row 0"),
        ({"input_ids": [[1.5]]}, "input_ids must be rows of whole numbers"),
        ([{"input_ids": np.array([[1, 2]])}], "input_ids must be rows of whole numbers"),
        (None, "encoded must be a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_padded_is_refused(tokenizer, encoded, text):
    with pytest.raises((ValueError, TypeError), match=text):
        tokenizer.pad(encoded)


def test_one_row_is_padded_too(tokenizer):
    found = tokenizer.pad(tokenizer("the cats"), padding="max_length", max_length=6)
    assert found == {"input_ids": [2, 5, 6, 7, 3, 0], "attention_mask": [1] * 5 + [0]}
    assert tokenizer.pad(tokenizer("the"), return_tensors="np")["input_ids"].tolist() == [[2, 5, 3]]
    assert tokenizer("", add_special_tokens=False, return_offsets_mapping=True, return_tensors="np")[
        "offset_mapping"
    ].shape == (1, 0, 2)


def test_a_change_that_fails_changes_nothing(tokenizer):
    tokenizer.add_tokens("<x>")
    before = copy.deepcopy(vars(tokenizer.options)), dict(tokenizer.added_tokens), tokenizer("the <x>")["input_ids"]
    changes = [
        lambda: setattr(tokenizer, "unk_token", "<x>"),
        lambda: tokenizer.add_special_tokens({"unk_token": "<new>"}),
        lambda: tokenizer.add_special_tokens({"additional_special_tokens": "<a>"}),
        lambda: tokenizer.add_special_tokens(["<a>"]),
        lambda: tokenizer.add_tokens("\ud800"),
        lambda: tokenizer.add_tokens("\u200d"),
        lambda: tokenizer.add_tokens("y" * 257),
        lambda: tokenizer.add_tokens(AddedToken(" ", rstrip=True)),
        lambda: tokenizer.add_tokens(None),
        lambda: setattr(tokenizer, "pad_token_id", 99),
        lambda: tokenizer.set_options(padding_side="up"),
    ]
    for change in changes:
        with pytest.raises((ValueError, TypeError)) as caught:
            change()
        assert "\n" not in str(caught.value)
        after = vars(tokenizer.options), tokenizer.added_tokens, tokenizer("the <x>")["input_ids"]
        assert after == before
    tokenizer.pad_token_id = 5
    assert (tokenizer.pad_token, tokenizer(["", "a"], padding=True)["input_ids"][0][-1]) == ("the", 5)
    tokenizer.model_max_length = int(1e30)
    assert tokenizer.model_max_length is None
    tokenizer.additional_special_tokens = ["cat"]
    assert tokenizer.decode([5, 6], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ([None], {}, TypeError, "vocab must be a map of tokens to ids or the path"),
        ([{**VOCABULARY, "q": -1}], {}, TokenizerError, "the id of 'q' must be a number from 0, got -1"),
        ([{**VOCABULARY, "q": "x"}], {}, TokenizerError, "the id of 'q' must be a number from 0, got 'x'"),
        ([{**VOCABULARY, "q": 3}], {}, TokenizerError, "gives an id twice"),
        ([{**VOCABULARY, 7: 15}], {}, TokenizerError, "must map texts to ids, got 7"),
        ([{**VOCABULARY, "\ud800": 15}], {}, TokenizerError, "must be valid Unicode"),
        ([VOCABULARY], {"do_lowercase": False}, TypeError, "do_lowercase is not an option; did you mean do_lower_case?"),
        ([VOCABULARY], {"added_tokens": {15: "x"}}, TypeError, "must be a map of ids to AddedToken"),
        (["missing.txt"], {}, TokenizerError, "missing.txt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cls", CLASSES)
def test_a_tokenizer_that_cannot_be_is_refused(cls, arguments, options, error, text):
    with pytest.raises(error, match=text) as caught:
        cls(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_words_that_are_never_split_are_for_the_slow_dialect():
    with pytest.raises(ValueError, match='never_split needs dialect="slow"'):
        DistilBertTokenizer(VOCABULARY, never_split=["a.b"])
    with pytest.raises(TypeError, match="never_split must be a list"):
        DistilBertTokenizer(VOCABULARY, dialect="slow", never_split="a.b")
    with pytest.raises(ValueError, match="dialect must be one of"):
        DistilBertTokenizer(VOCABULARY, dialect="new")


def test_an_encoding_forgets_its_texts_with_its_rows(tokenizer):
    encoding = tokenizer(["the", "the cats"])
    assert encoding.word_ids(-1) == [None, 0, 1, 1, None]
    for call in (lambda: encoding.word_ids(2), lambda: encoding.token_to_chars(0, 9), lambda: encoding.tokens(5)):
        with pytest.raises(IndexError, match="got the index"):
            call()
    other = copy.copy(encoding)
    other.update(input_ids=encoding["input_ids"][1:])
    with pytest.raises(ValueError, match="no longer knows its texts"):
        other.word_ids(0)
    with pytest.raises(AttributeError, match="has input_ids, attention_mask, not 'labels'"):
        _ = encoding.labels


def test_a_text_without_spaces_keeps_its_end(minilm):
    """Cut at the left: the last piece of the word, not the piece that its last letter would be."""
    for cls in CLASSES:
        loaded = real(cls, minilm)
        for text in ("x" * 5000, "the internationalization", "naïve" * 40):
            whole = loaded(text, add_special_tokens=False)["input_ids"]
            found = loaded(text, truncation=True, max_length=3, truncation_side="left")["input_ids"]
            assert found == [101, whole[-1], 102]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("text", ["東京都は日本の首都。", "ab\ncd\tef\n", "naïve ideas "])
def test_the_parts_of_long_texts_give_the_row_of_the_whole(cls, side, text, minilm):
    loaded = real(cls, minilm)
    whole = loaded(text * 600, add_special_tokens=False, return_offsets_mapping=True)
    options = {"truncation": True, "max_length": 22, "truncation_side": side, "return_offsets_mapping": True}
    found = loaded(text * 600, **options)
    kept = slice(20) if side == "right" else slice(-20, None)
    assert found["input_ids"][1:-1] == whole["input_ids"][kept]
    assert found["offset_mapping"][1:-1] == whole["offset_mapping"][kept]
    words = [text] * 600
    by_word = loaded(words, is_split_into_words=True, add_special_tokens=False)
    found = loaded(words, is_split_into_words=True, truncation=True, max_length=22, truncation_side=side)
    assert found["input_ids"][1:-1] == by_word["input_ids"][kept]
    assert found.word_ids()[1:-1] == by_word.word_ids()[kept]


def test_windows_take_time_that_grows_with_the_text(minilm):
    loaded = real(DistilBertTokenizerFast, minilm)

    def seconds(n):
        start = time.process_time()
        rows = loaded("the cat " * n, max_length=64, stride=16, return_overflowing_tokens=True,
                      return_special_tokens_mask=True, return_token_type_ids=True)  # fmt: skip
        assert len(rows["input_ids"]) > n // 32
        return time.process_time() - start

    def best(n):  # of several: other tests' threads and objects to collect cost whole seconds now and then
        return min(seconds(n) for _ in range(3))

    assert best(80_000) < 2.6**3 * best(10_000) + 1


def test_only_second_cuts_pairs_without_special_tokens_too(tokenizer):
    options = {"truncation": "only_second", "max_length": 3, "add_special_tokens": False}
    assert tokenizer("the the", "cat cat", **options)["input_ids"] == [5, 5, 6]
    with pytest.raises(DataError, match="cannot be cut"):
        tokenizer("the the the", "cat", **options)


def test_a_token_with_a_line_end_is_found_wherever_a_long_text_is_cut(minilm):
    both = [cls(minilm / "safetensors" / "vocab.txt") for cls in CLASSES]
    for tokenizer in both:
        tokenizer.add_tokens(AddedToken("qa\tqb"))
    for n in range(65_525, 65_540, 3):
        text = "é" + " " * n + "qa\tqb ok"
        assert both[0](text)["input_ids"] == both[1](text)["input_ids"]


def test_a_tokenizer_that_was_saved_is_the_same(tokenizer, tmp_path):
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True), "Dog"])
    tokenizer.add_special_tokens({"cls_token": "<s>", "additional_special_tokens": ["<user>"]})
    tokenizer.padding_side, tokenizer.model_max_length = "left", 30
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert (again.options, again.added_tokens, again.get_vocab()) == (
        tokenizer.options,
        tokenizer.added_tokens,
        tokenizer.get_vocab(),
    )
    texts = ["The Dog <x><user>!", "", "café [MASK]"]
    assert again(texts, padding=True) == tokenizer(texts, padding=True)
    assert type(tokenizer).from_pretrained(tmp_path, padding_side="right").padding_side == "right"
    with pytest.raises(TypeError, match="added_tokens is read from the files"):
        type(tokenizer).from_pretrained(tmp_path, added_tokens={})
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 30


def test_the_two_classes_agree_on_a_mixed_batch(minilm):
    """Plain texts and others take different roads in the fast class, and must come back in their order."""
    texts = [case["text"] for case in cases("single")]
    both = [real(cls, minilm)(texts, return_offsets_mapping=offsets) for cls in CLASSES for offsets in (False, True)]
    assert all(found["input_ids"] == both[0]["input_ids"] for found in both)
    assert both[1]["offset_mapping"] == both[3]["offset_mapping"]
    assert all(both[0].word_ids(i) == both[2].word_ids(i) for i in range(0, len(texts), 7))
