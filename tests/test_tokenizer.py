"""Both tokenizers through their public interface: the reference's results, and clear errors for anything else."""

import copy
import functools
import itertools
import json
import lzma
import pickle
import random
import threading
import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from distilbert import DistilBertTokenizer, DistilBertTokenizerFast
from distilbert.errors import DataError, TokenizerError
from distilbert.tokenization.options import AddedToken
from tests.support import ROOT

CLASSES = [DistilBertTokenizer, DistilBertTokenizerFast]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "caf", "##e", "##é", "東", "京", ",", "The"]
VOCABULARY = {word: i for i, word in enumerate(WORDS)}
CASES = ROOT / "tests" / "data" / "tokenizer_cases.jsonl.xz"  # what the reference's tokenizers returned


@pytest.fixture(params=CLASSES, ids=["pure", "fast"])
def cls(request):
    return request.param


@pytest.fixture
def tokenizer(cls):
    return cls(VOCABULARY)


@functools.cache
def cases(kind):
    return [case for case in map(json.loads, lzma.open(CASES, "rt")) if case["kind"] == kind]


@functools.cache
def real(cls, minilm, **options):
    return cls(minilm / "safetensors" / "vocab.txt", **options)


def plain(encoding):
    """The encoding as JSON has it."""
    return json.loads(json.dumps(dict(encoding)))


def as_rust(minilm):
    """The Rust library called directly, with the vocabulary of the real model."""
    rust = tokenizers.Tokenizer.from_file(str(minilm / "safetensors" / "tokenizer.json"))
    rust.no_padding()
    rust.no_truncation()
    return rust


def test_single_texts_as_the_reference(cls, minilm):
    for case in cases("single"):
        tokenizer = real(cls, minilm, **case["options"])
        found = tokenizer(case["text"], return_offsets_mapping=True)
        assert plain(found) == case["fast"], case["text"]
        assert tokenizer(case["text"])["input_ids"] == case["fast"]["input_ids"]
        assert tokenizer.decode(found["input_ids"]) == case["decoded"]
        assert tokenizer.decode(np.array(found["input_ids"]), skip_special_tokens=True) == case["decoded_skip"]


def test_pairs_as_the_reference(cls, minilm):
    """Where the reference returns a row longer than `max_length`, as truncation was not asked for, we raise."""
    tokenizer, too_long = real(cls, minilm), 0
    for case in cases("pair"):
        text, pair, call, expected = case["text"], case["pair"], dict(case["call"]), case["fast"]
        if "error" in expected:
            with pytest.raises(DataError, match="cannot be cut by truncation="):
                tokenizer(text, pair, **call)
            continue
        if not call.get("truncation") and len(expected["input_ids"]) > call.get("max_length", 1000):
            with pytest.raises(DataError, match="truncate it"):
                tokenizer(text, pair, **call)
            call, too_long = {}, too_long + 1
        found = tokenizer(text, pair, return_offsets_mapping=True, return_special_tokens_mask=True, **call)
        assert plain(found) == expected
        as_batch = tokenizer([text], [pair], return_tensors="np", **call)
        assert as_batch["input_ids"].tolist() == [expected["input_ids"]]
        assert as_batch["attention_mask"].tolist() == [expected["attention_mask"]]
    assert too_long == 14


def test_windows_as_the_reference(cls, minilm):
    tokenizer = real(cls, minilm)
    for case in cases("window"):
        assert plain(tokenizer(case["text"], case["pair"], **case["call"])) == case["fast"]


def test_words_as_the_reference(cls, minilm):
    tokenizer = real(cls, minilm)
    for case in cases("words"):
        found = tokenizer(case["words"], is_split_into_words=True, return_offsets_mapping=True)
        assert plain(found) == case["fast"]
        assert found.word_ids() == case["word_ids"]
        again = tokenizer([case["words"]], is_split_into_words=True)
        assert (again["input_ids"], again.word_ids(0)) == ([case["fast"]["input_ids"]], case["word_ids"])


def test_the_slow_dialect_as_the_slow_reference(minilm):
    for case in cases("single"):
        tokenizer = real(DistilBertTokenizer, minilm, dialect="slow", **case["options"])
        assert tokenizer(case["text"])["input_ids"] == case["slow_ids"], case["text"]
        assert tokenizer.tokenize(case["text"]) == case["slow_tokens"]


LETTERS = st.text("ab c", max_size=14)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["longest_first", "only_first", "only_second"]),
    st.integers(7, 13),
    st.integers(0, 3),
    st.sampled_from(["left", "right"]),
    st.sampled_from(["left", "right"]),
)
def test_truncation_windows_and_padding_as_the_library(samples, pairs, strategy, length, stride, cut, side):
    """The Rust library's own truncation, special tokens and padding, which ours do not use."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a", "##b", "##c"]
    tokenizer = DistilBertTokenizerFast({word: i for i, word in enumerate(words)})
    rust = tokenizer._engine._tokenizer
    rust.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    first, second = map(list, zip(*samples, strict=True))
    given = {"truncation": strategy, "max_length": length, "stride": stride, "truncation_side": cut}
    wanted = {"return_overflowing_tokens": True, "return_offsets_mapping": True, "return_special_tokens_mask": True}
    wanted |= {"return_token_type_ids": True, "return_length": True, "padding": True, "padding_side": side}
    try:
        found = tokenizer(first, second if pairs else None, **given, **wanted)
    except ValueError as error:  # the library panics, ends in an error, or returns rows that are too long
        reasons = "cannot be cut by", "must be more than stride", "needs pairs"
        if not any(reason in str(error) for reason in reasons):
            raise
        return
    rust.enable_truncation(length, stride=stride, strategy=strategy, direction=cut)
    rust.enable_padding(direction=side, pad_id=0)
    made = rust.encode_batch(samples if pairs else first)
    rows = [(i, row) for i, encoding in enumerate(made) for row in (encoding, *encoding.overflowing)]
    assert found["overflow_to_sample_mapping"] == [i for i, _ in rows]
    names = {
        "input_ids": "ids",
        "attention_mask": "attention_mask",
        "token_type_ids": "type_ids",
        "special_tokens_mask": "special_tokens_mask",
        "offset_mapping": "offsets",
    }
    for name, attribute in names.items():
        assert found[name] == [getattr(row, attribute) for _, row in rows], name
    for i, (_, row) in enumerate(rows):
        check_alignment(found, i, row)


def test_a_pair_is_shared_out_as_by_the_library():
    """Every pair of lengths and every length of a row: who keeps the odd token, who is cut at all."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}
    fast, slow = DistilBertTokenizerFast(vocabulary), DistilBertTokenizer(vocabulary, dialect="slow")
    rust = fast._engine._tokenizer
    rust.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    for first, second, length in itertools.product(range(1, 8), range(1, 8), range(5, 15)):
        pair, options = ("a " * first, "b " * second), {"truncation": True, "max_length": length}
        rust.enable_truncation(length)
        expected = rust.encode(*pair).ids
        assert fast(*pair, **options)["input_ids"] == expected
        kept = slow(*pair, **options)["input_ids"]
        if (
            first == second and first + second + 3 > length and length % 2 == 0
        ):  # an odd number beside the special tokens
            assert (kept.count(5), kept.count(6)) == (expected.count(6), expected.count(5))


def check_alignment(found, i, row):
    """Every way from tokens to words and characters and back, against the library's."""
    assert found.tokens(i) == row.tokens
    assert found.word_ids(i) == row.word_ids
    assert found.sequence_ids(i) == row.sequence_ids
    for token in range(len(row)):
        assert found.token_to_chars(i, token) == row.token_to_chars(token)
        assert found.token_to_sequence(i, token) == row.token_to_sequence(token)
    for sequence in (0, 1) if 1 in row.sequence_ids else (0,):
        for index in range(15):
            assert found.char_to_token(i, index, sequence) == row.char_to_token(index, sequence)
            assert found.char_to_word(i, index, sequence) == row.char_to_word(index, sequence)
            assert found.word_to_tokens(i, index, sequence) == row.word_to_tokens(index, sequence)
            assert found.word_to_chars(i, index, sequence) == row.word_to_chars(index, sequence)


def test_one_text_or_many_as_lists_or_padded(tokenizer):
    assert plain(tokenizer("the cats")) == {"input_ids": [2, 5, 6, 7, 3], "attention_mask": [1, 1, 1, 1, 1]}
    assert tokenizer(["the cats", ""])["input_ids"] == [[2, 5, 6, 7, 3], [2, 3]]
    padded = tokenizer(["the cats", ""], padding=True, return_tensors="np")
    assert padded["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 3, 0, 0, 0]]
    assert padded.attention_mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    left = tokenizer(["the cats", ""], padding=True, padding_side="left", return_tensors="np")
    assert left["input_ids"].tolist() == [[2, 5, 6, 7, 3], [0, 0, 0, 2, 3]]
    assert left["attention_mask"].tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    left = tokenizer(["the cats", ""], padding="max_length", max_length=6, pad_to_multiple_of=4, padding_side="left")
    assert left["input_ids"] == [[0, 0, 0, 2, 5, 6, 7, 3], [0] * 6 + [2, 3]]
    assert tokenizer([], padding=True, return_tensors="np")["input_ids"].shape == (0, 0)
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == [5]
    assert tokenizer.encode("the", "cat") == [2, 5, 3, 6, 3]
    assert list(tokenizer("the", return_attention_mask=False)) == ["input_ids"]
    assert tokenizer("the", "", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1]
    assert tokenizer.num_special_tokens_to_add(pair=True) == 3


@pytest.mark.parametrize(("kind", "module", "dtype"), [
    ("np", "numpy", "int64"), ("pt", "torch", "int64"), ("tf", "tensorflow", "int32"), ("jax", "jax", "int32"),
])  # fmt: skip
def test_arrays_of_each_framework(tokenizer, kind, module, dtype):
    found = tokenizer(["the cats", "cat"], padding=True, return_tensors=kind, return_offsets_mapping=True)
    assert all(type(array).__module__.split(".")[0].startswith(module) for array in found.values())
    assert all(dtype in str(array.dtype) for array in found.values())
    assert np.asarray(found["input_ids"]).tolist() == [[2, 5, 6, 7, 3], [2, 6, 3, 0, 0]]
    assert np.asarray(found["offset_mapping"]).shape == (2, 5, 2)
    assert tokenizer.batch_decode(found["input_ids"], skip_special_tokens=True) == ["the cats", "cat"]
    assert tokenizer(["the cats"], return_tensors=kind, truncation=True, max_length=4)["input_ids"].shape == (1, 4)
    assert found.tokens(1) == ["[CLS]", "cat", "[SEP]", "[PAD]", "[PAD]"]
    if kind == "pt":
        assert found.to("meta")["input_ids"].device.type == "meta"


def test_rows_are_padded_again_for_a_batch(tokenizer):
    rows = [
        dict(tokenizer("the cats", return_token_type_ids=True), label=1),
        dict(tokenizer("", return_token_type_ids=True), label=0),
    ]
    found = tokenizer.pad(rows, return_tensors="np")
    assert {name: np.asarray(values).tolist() for name, values in found.items()} == {
        "input_ids": [[2, 5, 6, 7, 3], [2, 3, 0, 0, 0]],
        "token_type_ids": [[0] * 5] * 2,
        "attention_mask": [[1] * 5, [1, 1, 0, 0, 0]],
        "label": [1, 0],
    }
    assert tokenizer.pad({"input_ids": [np.array([2, 3])]}, padding="max_length", max_length=3)["attention_mask"] == [
        [1, 1, 0]
    ]
    with pytest.raises(ValueError, match="must have input_ids, got label"):
        tokenizer.pad({"label": [1]})
    with pytest.raises(ValueError, match="no longer knows its texts"):
        found.word_ids()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(
    ["a", "##b", ".", ",", "?", "!", "'", "s", "n't", "'m", "'s", "'re", "[SEP]", "##ing", "do not", " do not", "##", "it"]
)))  # fmt: skip
def test_decoding_as_the_library(tokens):
    names = list(dict.fromkeys([*WORDS, *tokens]))
    pure = DistilBertTokenizer({name: i for i, name in enumerate(names)}, clean_up_tokenization_spaces=False)
    rust = tokenizers.Tokenizer(tokenizers.models.WordPiece(pure.vocabulary, unk_token="[UNK]"))  # noqa: S106
    rust.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])
    rust.decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=True)
    ids = [*pure.convert_tokens_to_ids(tokens), 999]
    for skip in (True, False):
        assert pure.decode(ids, skip_special_tokens=skip) == rust.decode(ids, skip_special_tokens=skip)


def test_decoding_tightens_marks_when_asked_to(tokenizer):
    assert tokenizer.decode([5, 6, 7, 13]) == "the cats,"
    assert tokenizer.decode(6) == "cat"
    marks = type(tokenizer)({word: i for i, word in enumerate([*WORDS, "don", "'", "t"])})
    assert marks.decode(marks("don't")["input_ids"], skip_special_tokens=True) == "don't"
    assert marks.decode([15, 16, 17], clean_up_tokenization_spaces=False) == "don ' t"
    assert tokenizer.convert_ids_to_tokens([2, 6, 99], skip_special_tokens=True) == ["cat", "[UNK]"]
    assert tokenizer.convert_tokens_to_ids("dog") == 1


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["the cats"], {"max_length": 4}, DataError, "text 0 has 3 tokens, more than 2 beside the special tokens: truncate"),
        ([["the", 7]], {}, TypeError, "text must be strings, got int at 1"),
        ([["the"], "the"], {}, TypeError, "both be one text or both be lists"),
        ([["the"], ["a", "b"]], {}, ValueError, "got 1 texts and 2 pairs"),
        ([[["the", "cat"]]], {}, TypeError, "words need is_split_into_words=True"),
        (["the"], {"is_split_into_words": True}, TypeError, "must be lists of words"),
        ([["the", None]], {"is_split_into_words": True}, TypeError, "got NoneType among the words at 0"),
        ([None], {}, TypeError, "text must be a string or a list of strings, got NoneType"),
        (["the"], {"truncation": "last"}, ValueError, "truncation must be one of"),
        (["the"], {"truncation": True}, ValueError, "max_length must be given to cut texts"),
        (["the"], {"truncation": True, "max_length": 1}, ValueError, "max_length must be a whole number of at least 2, got 1"),
        (["the"], {"truncation": "only_second", "max_length": 9}, ValueError, "needs pairs"),
        (["the"], {"padding": "max_length"}, ValueError, "needs max_length"),
        (["the"], {"padding": "longst"}, ValueError, "padding must be one of"),
        (["the"], {"pad_to_multiple_of": 0}, ValueError, "at least 1, got 0"),
        (["the"], {"padding_side": "middle"}, ValueError, "padding_side must be one of 'left', 'right'"),
        (["the"], {"truncation_side": "middle"}, ValueError, "truncation_side must be one of"),
        (["the"], {"return_tensors": "torch"}, ValueError, "return_tensors must be one of None, 'np'"),
        ([["the", "the cat"]], {"return_tensors": "np"}, ValueError, "pass padding=True"),
        (["the cat the"], {"max_length": 4, "stride": 2, "return_overflowing_tokens": True}, DataError, "must be more than stride=2"),
        (["the"], {"stride": -1}, ValueError, "stride must be a whole number of at least 0"),
        (["lone \ud800 surrogate"], {}, DataError, "a lone surrogate at character 5 of number 0"),
        ([["a", "b\udfff"]], {"is_split_into_words": True}, DataError, "a lone surrogate at character 2 of number 0"),
        (["the"], {"token_type_ids": True}, TypeError, "token_type_ids"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_clear_line(tokenizer, arguments, options, error, text):
    with pytest.raises(error, match=text) as caught:
        tokenizer(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_tokens_are_added(tokenizer):
    assert tokenizer.add_tokens(["dog", AddedToken("<x>", lstrip=True), "cat"]) == 2
    assert tokenizer.add_special_tokens({"cls_token": "<s>", "additional_special_tokens": ["<user>"]}) == 2
    assert (len(tokenizer), tokenizer.vocab_size) == (19, 15)
    assert tokenizer("The doggy <x><user> catty")["input_ids"] == [17, 5, 15, 1, 16, 18, 6, 1, 3]
    assert tokenizer.get_added_vocab()["<user>"] == 18
    assert (tokenizer.cls_token, tokenizer.cls_token_id, tokenizer.mask_token_id) == ("<s>", 17, 4)
    assert tokenizer.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "<s>", "[MASK]", "<user>"]
    assert tokenizer.all_special_ids == [1, 3, 0, 17, 4, 18]
    assert tokenizer.decode([17, 16, 18, 3], skip_special_tokens=True) == "<x>"
    assert tokenizer.add_tokens("dog") == 0
    for wrong in ("", 3):
        with pytest.raises(TokenizerError, match="must be a text of at least one character"):
            tokenizer.add_tokens([wrong])
    with pytest.raises(ValueError, match="special tokens have the names"):
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert len(tokenizer) == 19


def test_options_can_be_set_and_are_checked(tokenizer):
    tokenizer.do_lower_case = False
    assert tokenizer("The café")["input_ids"] == [2, 14, 8, 10, 3]
    tokenizer.strip_accents = True
    assert tokenizer("The café")["input_ids"] == [2, 14, 8, 9, 3]
    tokenizer.model_max_length = 3
    with pytest.raises(DataError, match="text 1 has 2 tokens, more than 1"):
        tokenizer(["The", "The The"])
    for name, value in (("padding_side", "up"), ("do_lower_case", 1), ("model_max_length", 0), ("sep_token", "<s>")):
        with pytest.raises(TokenizerError, match=name if name != "sep_token" else "lacks <s>"):
            setattr(tokenizer, name, value)
    assert (tokenizer.padding_side, tokenizer.sep_token, tokenizer.do_lower_case) == ("right", "[SEP]", False)
    with pytest.raises(TokenizerError, match=r"the vocabulary lacks \[UNK\], \[SEP\], \[PAD\], \[CLS\], \[MASK\]"):
        type(tokenizer)({"a": 0})
    with pytest.raises(TokenizerError, match="'<x>' cannot have the id 40"):
        type(tokenizer)(VOCABULARY, added_tokens={40: AddedToken("<x>")})
    with pytest.raises(TypeError, match="vocab_file"):
        type(tokenizer)(VOCABULARY, vocab_file="vocab.txt")


def test_special_tokens_in_a_text(cls):
    assert cls(VOCABULARY)("the[SEP]cat")["input_ids"] == [2, 5, 3, 6, 3]
    assert cls(VOCABULARY, split_special_tokens=True)("the[SEP]cat")["input_ids"] == [2, 5, 1, 1, 1, 6, 3]


def test_copies_work_alone(tokenizer):
    slow = pickle.loads(pickle.dumps(DistilBertTokenizer(VOCABULARY, dialect="slow", never_split=["The"])))
    assert slow("The cat")["input_ids"] == [2, 5, 6, 3]
    tokenizer.add_tokens("dog")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again("the dog")["input_ids"] == [2, 5, 15, 3]
    other = copy.deepcopy(tokenizer)
    other.add_tokens("mouse")
    assert (len(other), len(tokenizer)) == (17, 16)
    encoding = tokenizer(["the dog"])
    assert copy.copy(encoding).word_ids(0) == copy.deepcopy(encoding).word_ids(0) == [None, 0, 1, None]
    assert pickle.loads(pickle.dumps(encoding)) == encoding


def test_threads_share_a_tokenizer(cls, minilm):
    tokenizer, texts = cls(minilm / "safetensors" / "vocab.txt"), [case["text"] for case in cases("single")]
    expected, found = real(cls, minilm)(texts)["input_ids"], {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: tokenizer(texts)["input_ids"]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == expected for i in range(4))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pair", [False, True])
def test_only_what_is_kept_of_a_long_text_is_read(cls, minilm, side, pair):
    """The same row as from the whole text; 50 MB take well below what reading them takes (10 s and more)."""
    tokenizer = real(cls, minilm)
    words = "An example of naïve text, with [SEP] and x" + "y" * 300 + " in it. "
    options = {"max_length": 64, "truncation": "only_second" if pair else True, "truncation_side": side}
    options["return_offsets_mapping"] = True
    short, long = words * 40, words * 150_000
    start = time.perf_counter()
    found = tokenizer("a question", long, **options) if pair else tokenizer(long, **options)
    assert time.perf_counter() - start < 4  # 0.1 measured
    expected = tokenizer("a question", short, **options) if pair else tokenizer(short, **options)
    assert found["input_ids"] == expected["input_ids"]
    moved = 0 if side == "right" else len(long) - len(short)
    token = len(found["input_ids"]) // 2
    assert found["offset_mapping"][token] == tuple(n + moved for n in expected["offset_mapping"][token])
    assert found.token_to_chars(token) == found["offset_mapping"][token]


def test_a_long_text_in_parts_is_the_text_as_a_whole(minilm):
    """The library reads long texts in parts; the words where they meet stay whole."""
    texts = [case["text"] for case in cases("single")]
    long = " ".join(random.Random(0).choices(texts, k=9000))  # noqa: S311
    assert len(long) > 1 << 19
    found = real(DistilBertTokenizerFast, minilm)(long, add_special_tokens=False)["input_ids"]
    assert found == as_rust(minilm).encode(long, add_special_tokens=False).ids
