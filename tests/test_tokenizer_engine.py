"""The pure-Python tokenizer's engine: the reference's results, the Rust library's, and time linear in the text."""

import functools
import json
import lzma
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilbert.errors import TokenizerError
from distilbert.tokenization import unicode_tables
from distilbert.tokenization.engine import FastEngine, SlowEngine
from distilbert.tokenization.normalization import WHITESPACE, Memo, Normalizer, Ranges
from distilbert.tokenization.options import AddedToken, TokenizerOptions
from distilbert.tokenization.wordpiece import WordPiece
from tests.support import DATA
from tools import tokenizer_agreement as agreement

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Of all that either dialect makes of a sample of the code points. Every Python must give it.
CHECKSUM = "6f589d053486ce149b87ab8110cd3bf4167ab2d2b2d2d04b573ff7b1306f4c09"
TABLES = [
    Ranges(getattr(unicode_tables, name))
    for name in dir(unicode_tables)
    if name[:5] in ("FAST_", "SLOW_") and "LOWER" not in name
]
EDGES = sorted(
    {c for table in TABLES for first, last in table.pairs for c in (first - 1, first, last, last + 1)}
    - {-1, 0x110000, 0xD7FF + 1, 0xDFFF}
)
SAMPLE = [c for c in range(0, 0x110000, 97) if not 0xD800 <= c <= 0xDFFF]


@pytest.fixture(scope="module")
def vocabulary(minilm):
    lines = (minilm / "safetensors" / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {token: i for i, token in enumerate(lines)}


@pytest.fixture(scope="module")
def engine(vocabulary):
    added = {vocabulary[token]: AddedToken(token, normalized=False, special=True) for token in SPECIAL}

    @functools.cache
    def build(kind, options):
        return kind(vocabulary, added, TokenizerOptions(**json.loads(options)))

    return lambda kind, **options: build(kind, json.dumps(options))


def goldens(kind):
    with lzma.open(DATA / "tokenizer_cases.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [case for case in map(json.loads, lines) if case["kind"] == kind]


@functools.cache
def characters():
    """What the texts of these tests may become."""
    return agreement.closure("".join([*agreement.TROUBLE, *agreement.WORDS, *map(chr, EDGES), *map(chr, SAMPLE)]))


def test_every_golden_of_the_fast_dialect(engine):
    for case in goldens("single"):
        fast = engine(FastEngine, **case["options"])
        aligned = fast.align([case["text"]])[0]
        assert fast.encode([case["text"]])[0] == aligned.ids == case["fast"]["input_ids"][1:-1], case["text"]
        assert [list(span) for span in aligned.offsets] == case["fast"]["offset_mapping"][1:-1], case["text"]


def test_every_golden_of_the_slow_dialect(engine, vocabulary):
    tokens = list(vocabulary)
    for case in goldens("single"):
        slow = engine(SlowEngine, **case["options"])
        ids = slow.encode([case["text"]])[0]
        assert ids == slow.align([case["text"]])[0].ids == case["slow_ids"][1:-1], case["text"]
        assert [tokens[i] for i in ids] == case["slow_tokens"], case["text"]


def test_every_golden_of_words(engine):
    fast = engine(FastEngine)
    for case in goldens("words"):
        rows = fast.align(case["words"])
        assert [i for row in rows for i in row.ids] == case["fast"]["input_ids"][1:-1]
        assert [list(span) for row in rows for span in row.offsets] == case["fast"]["offset_mapping"][1:-1]
        assert [word for word, row in enumerate(rows) for _ in row.ids] == case["word_ids"][1:-1]


def test_the_slow_dialect_gives_what_the_reference_gave_for_random_texts():
    """With and without added tokens and never_split, in every option; the offsets lie in the text, in order."""
    content = json.loads(lzma.decompress((DATA / "slow_dialect.json.xz").read_bytes()))
    vocabulary = agreement.vocabulary(content["characters"])
    for case in content["cases"]:
        added = {int(i): AddedToken(**token) for i, token in case["added"].items()}
        slow = SlowEngine(vocabulary, added, TokenizerOptions(**case["options"]), case["never_split"])
        for text, ids in case["texts"]:
            aligned = slow.align([text])[0]
            assert slow.encode([text])[0] == aligned.ids == ids, (text, case["options"], case["never_split"])
            assert all(0 <= start < end <= len(text) for start, end in aligned.offsets)
            assert aligned.words == sorted(aligned.words)


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False}], ids=str)
def test_code_points_as_in_rust(options):
    """Every 97th code point, and those at the edges of every table."""
    both = agreement.engines(characters=characters(), **options)
    assert agreement.difference(*both, list(agreement.packed("a{}b", SAMPLE + EDGES))) is None
    for context in agreement.CONTEXTS:
        assert agreement.difference(*both, list(agreement.packed(context, EDGES[:: len(agreement.CONTEXTS)]))) is None


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.sampled_from(agreement.TROUBLE + agreement.WORDS) | st.sampled_from(EDGES).map(chr), max_size=25),
    options=st.sampled_from(agreement.EVERY_OPTION),
    added=st.booleans(),
    split=st.booleans(),
)
def test_any_text_as_in_rust(parts, options, added, split):
    assert agreement.difference(*both_engines(json.dumps(options), added, split), ["".join(parts)]) is None


@functools.cache
def both_engines(options, added, split):
    tokens = agreement.ADDED if added else ()
    return agreement.engines(tokens, characters(), split_special_tokens=split, **json.loads(options))


def test_results_do_not_depend_on_the_python_version():
    assert agreement.checksum(SAMPLE[::10] + EDGES) == CHECKSUM
    assert {c for c in map(chr, range(0x110000)) if c.isspace()} == WHITESPACE | set("\x0b\x0c\x1c\x1d\x1e\x1f\x85")


def test_characters_newer_than_the_tables():
    """An emoji of Unicode 15, a mark of 16, a capital of 17, whatever this Python thinks of them."""
    fast, slow = (Normalizer(dialect, lower=True, strip=True, cjk=True) for dialect in ("fast", "slow"))
    text = "a\U0001fae8 b\u0897 c\U00016ea0 \ua7cb"
    assert fast(text) == "a\U0001fae8 b\u0897 c\U00016ebb \u0264"
    assert slow(text) == "a b c "


def test_offsets_point_into_the_original():
    known = {token: i for i, token in enumerate((*SPECIAL, "i", "ss", "e", "##e", "\u4e2d", "a", "##b"))}
    fast = FastEngine(known, {4: AddedToken("[MASK]", special=True, normalized=False, lstrip=True)}, TokenizerOptions())
    assert fast.align(["e\u0301e\u0301"])[0].offsets == [(0, 1), (2, 3)]
    assert fast.align(["\u0130 a\0\0b\0 \u4e2d\u4e2d"])[0] == (
        [5, 10, 11, 9, 9],
        [(0, 1), (2, 3), (5, 6), (8, 9), (9, 10)],
        [0, 1, 1, 2, 3],
    )
    assert fast.align(["a [MASK]zz"])[0] == ([10, 4, 1], [(0, 1), (1, 8), (8, 10)], [0, 1, 2])
    slow = SlowEngine(known, {}, TokenizerOptions(strip_accents=False))
    assert slow.align(["\u0130\u0130 e"])[0].offsets == [(0, 2), (3, 4)]
    assert slow.align(["a e\u0301 e"])[0].offsets == [(0, 1), (2, 4), (5, 6)]


def test_words_that_have_no_pieces():
    wordpiece = WordPiece({"[UNK]": 0, "a": 1, "##a": 2, "##ab": 3, "a" * 101: 4, "##": 5}, "[UNK]")
    assert wordpiece.ids("aaab") == (1, 2, 3)
    assert wordpiece.pieces("aaab") == [(1, 0, 1), (2, 1, 2), (3, 2, 4)]
    assert wordpiece.ids("aac") == wordpiece.ids("a" * 101) == (0,)
    assert wordpiece.pieces("a" * 101) == [(0, 0, 101)]
    assert wordpiece.ids("a" * 100) == (1, *[2] * 99)
    with pytest.raises(TokenizerError, match="must have the unknown token"):
        WordPiece({"a": 0}, "[UNK]")


def test_words_that_are_never_split():
    known = {token: i for i, token in enumerate((*SPECIAL, "x", ".", "y", "x.y"))}
    assert SlowEngine(known, {}, TokenizerOptions(), ["x.y", "Q"]).encode(["x.y X.Y x.y. Q"]) == [[8, 8, 5, 6, 7, 6, 1]]
    assert SlowEngine(known, {}, TokenizerOptions()).encode(["x.y"]) == [[5, 6, 7]]


def test_the_slow_dialect_folds_added_tokens_that_are_normalized():
    """As reference.md 5.4 says: "[E1]" is found in either case, and a special "<x>" in "b<X>"."""
    known = {token: i for i, token in enumerate((*SPECIAL, "b", "e"))}
    added = {9: AddedToken("[E1]"), 10: AddedToken("<x>", special=True, normalized=False)}
    assert SlowEngine(known, added, TokenizerOptions()).encode(["[E1]b[e1] b<X>"]) == [[9, 5, 9, 5, 10]]
    cased = SlowEngine(known, added, TokenizerOptions(do_lower_case=False))
    assert cased.encode(["[E1]b b<x>e"]) == [[9, 5, 5, 10, 6]]
    assert 9 not in cased.encode(["[e1]"])[0]


@pytest.mark.parametrize("kind", [FastEngine, SlowEngine])
@pytest.mark.parametrize("unit", ["\u0301\u0323", "\u302e\u302f\u1b44", "\u0130", "a", "\u4e2d", "[MASK]", "\0", "!"])
def test_time_is_linear(kind, unit):
    """8 times the text takes about 8 times as long, 64 times if time were quadratic; accents are kept or stripped."""
    added = {2: AddedToken("[MASK]", special=True, normalized=False, lstrip=True, rstrip=True)}
    for options in (TokenizerOptions(), TokenizerOptions(do_lower_case=False)):
        engine = kind({"[UNK]": 0, "a": 1, "[MASK]": 2}, added, options)
        for road in (engine.encode, engine.align):
            short, long = (seconds(road, unit * (n // len(unit))) for n in (3_000, 24_000))
            assert long < 32 * short + 0.01


def seconds(road, text):
    times = []
    for _ in range(3):
        start = time.process_time()
        road([text])
        times.append(time.process_time() - start)
    return min(times)


def test_memory_is_bounded():
    memo = Memo(str.upper, limit=3)
    assert [memo[c] for c in "abcabd"] == list("ABCABD")
    assert len(memo) <= 3
