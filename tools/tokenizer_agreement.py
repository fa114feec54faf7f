"""Compare the pure-Python tokenizer's fast dialect with the Rust library: every code point, random texts, and speed.

    PYTHONPATH=. .venv/bin/python tools/tokenizer_agreement.py code-points   # a quarter of an hour
    PYTHONPATH=. .venv/bin/python tools/tokenizer_agreement.py random --count 100000 --seed 0
    PYTHONPATH=. .venv/bin/python tools/tokenizer_agreement.py linear
    PYTHONPATH=. .venv/bin/python tools/tokenizer_agreement.py pinned        # on another Python: its results are 3.11's

Compared are ids, offsets and words. The vocabulary has every character, first and inside a word: none hides in [UNK].
`pinned` prints a checksum of what both dialects make of every code point; it must not depend on the Python version.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import random
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from distilbert.tokenization import unicode_tables
from distilbert.tokenization.encoding import Alignment
from distilbert.tokenization.engine import FastEngine, SlowEngine
from distilbert.tokenization.normalization import Dialect, Normalizer
from distilbert.tokenization.options import AddedToken, TokenizerOptions

CODE_POINTS = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
EVERY_OPTION = [
    {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": cjk}
    for lower, strip, cjk in itertools.product((True, False), (None, True, False), (True, False))
]
CONTEXTS = ("{}", "{}e", "e{0}{0}", "e\u0301{}\u0323", "x\u302e{}\u302f", "a\U0001d165{}", "\u1100{}\u11a8")
PER_TEXT = 50

# Characters whose treatment depends on neighbours, on versions of Unicode, or on a rule of their own.
TROUBLE = [
    *"aAzeE09 .,-_[]#'\t\n\r", *"\0\x01\x0b\x0c\x1c\x1f\x7f\x85\xa0\xad",
    *"ßŉİıſǅΣσςΆ\u0384\u03d2ẞ\u212a\u212b\u2126ﬁ½²Ⅷ", *"éàñçøåÉ",
    *map(chr, range(0x300, 0x370)), *"\u0591\u05b0\u064b\u0670\u0711\u093c\u094d\u0e38\u0eba\u0f71\u0f72\u0f39\u1dfa",
    *"\u302a\u302e\u302f\u1b44\u1baa\ua953\ua9c0\U000111c0\U0001d165\U0001d16d\U0001d172\U00016ff0\U0001133b",
    *"\u1100\u1161\u11a8\u1112\u1175\u11c2가각힣ᄀ",
    *"\u09c7\u09be\u09d7\u0dd9\u0dcf\u0dca\u1025\u102e\u0344\u0958\u2add",
    *"中国東ゝあカ\u3000\u3001\uf900\ufa6e\ufa70\U0002b81f\U0002b820\U0002b91f\U0002b920\U0002f800\U0002fa1e\U00030000",
    *"\u200b\u200d\u200e\u2028\u2029\u202f\u205f\u2060\ufeff\ufffd\ufffe\uffff\ue000\U000f0000\U000e0020\U000e007f",
    *"\u180e\u061c\u0890\u08e2\U000110cd\U00013430\u166d\U000111c9\u2e5d\u2e43\u037e\u0387\u1fef\u2329",
    *"ﷺﬀ🙂👨🏽\U0001fae8",
    *"\u1734\U00011938\u1c89\ua7cb\ua7dc\U00016ea0\U00010d50\u0378\U0001faff\u19da\u00aa\u2160\u24b6\u30fb",
]  # fmt: skip
ADDED = [
    AddedToken("[MASK]", special=True, normalized=False),
    AddedToken("[SEP]", special=True, normalized=False),
    AddedToken("<x>", special=True, normalized=False, lstrip=True),
    AddedToken("<x>y", normalized=False, rstrip=True),
    AddedToken("ab", normalized=False, single_word=True),
    AddedToken("abc", normalized=False, single_word=True, lstrip=True, rstrip=True),
    AddedToken("Éa", normalized=True),
    AddedToken("E1", normalized=True, single_word=True),
    AddedToken("é b", normalized=True, lstrip=True, rstrip=True),
    AddedToken("中", normalized=True),
    AddedToken("##e", normalized=True),
    AddedToken(" q", normalized=False, rstrip=True),
]
WORDS = [" ", " ", "a" * 99, "a" * 100, "é" * 101, *(t.content for t in ADDED), "[mask]", "eA", "e1", "<X>", "abcd"]
PATHOLOGICAL = {
    "one letter": "a", "combining marks": "\u0301\u0323", "kept marks": "\u302e\u302f\u1b44", "ZWJ": "\u200d",
    "CJK": "中", "U+FDFA": "\ufdfa", "controls": "\x01", "spaces": " ", "odd spaces": "\x0b", "punctuation": "!",
    "NUL": "\0", "Hangul": "각", "jamo": "\u1100\u1161\u11a8", "emoji": "🙂", "U+0130": "İ", "tags": "\U000e0041",
    "unassigned": "\u0378", "[MASK]": "[MASK]", "brackets": "[", "words": "ab, ", "newer marks": "\u1dfa\u0345\u0334",
}  # fmt: skip


@functools.cache
def vocabulary(characters: str | None = None) -> dict[str, int]:
    """Special tokens, and every character (or each of `characters`) both ways."""
    every = map(chr, CODE_POINTS) if characters is None else dict.fromkeys(characters)
    tokens = (token for character in every for token in (character, "##" + character))
    return {token: i for i, token in enumerate((*SPECIAL, *tokens))}


@functools.cache
def _rust_model(characters: str | None) -> object:
    from tokenizers.models import WordPiece

    return WordPiece(vocabulary(characters), unk_token="[UNK]", max_input_chars_per_word=100)  # noqa: S106


def engines(
    added: Sequence[AddedToken] = (), characters: str | None = None, **options: bool | None
) -> tuple[FastEngine, Callable[..., list[Alignment]]]:
    """The pure-Python engine, and the same of the Rust library as a function of a list of texts."""
    from tokenizers import AddedToken as RustToken
    from tokenizers import Tokenizer
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    rust = Tokenizer(_rust_model(characters))
    rust.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    rust.pre_tokenizer = BertPreTokenizer()
    for token in added:
        rust.add_tokens([RustToken(**dataclasses.asdict(token))])
    rust.encode_special_tokens = options.get("split_special_tokens", False)
    ids = {rust.token_to_id(token.content): token for token in added}
    engine = FastEngine(vocabulary(characters), ids, TokenizerOptions(**options))
    return engine, functools.partial(_rust_alignments, rust)


def _rust_alignments(rust: object, texts: Sequence[str]) -> list[Alignment]:
    found = rust.encode_batch(list(texts), add_special_tokens=False)  # pyright: ignore
    return [Alignment(row.ids, row.offsets, row.word_ids) for row in found]


def difference(engine: FastEngine, rust: Callable[..., list[Alignment]], texts: Sequence[str]) -> str | None:
    """The first text on which they differ, and how; None: they agree."""
    for text, ids, mine, theirs in zip(texts, engine.encode(texts), engine.align(texts), rust(texts), strict=True):
        if ids != theirs.ids or mine != theirs:
            return f"{text!a}: ids {ids}\n  python {mine}\n  rust   {theirs}"
    return None


def packed(context: str, code_points: Iterable[int]) -> Iterator[str]:
    """The context of each code point, many in a text."""
    iterator = iter(code_points)
    while group := list(itertools.islice(iterator, PER_TEXT)):
        yield " ".join(context.format(chr(c)) for c in group)


def compare_code_points() -> int:
    """Every code point between letters, and those that something happens to in other contexts, with every option.

    Ids and offsets with the first options, normalized text and words with the others, which differ in nothing else.
    """
    failures = 0
    for options in EVERY_OPTION:
        if options["strip_accents"] is not None or not options["tokenize_chinese_chars"]:
            failures += compare_words(options)
            continue
        both = engines(**options)
        failures += _report(f"{options} a.b", both, packed("a{}b", CODE_POINTS))
        for context in CONTEXTS:
            failures += _report(f"{options} {context!a}", both, packed(context, changing()))
    return failures


def compare_words(options: Mapping[str, bool | None]) -> int:
    """The normalized text and the words of every code point between letters, and of some in other contexts."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    lower, strip, cjk = options["do_lower_case"], options["strip_accents"], options["tokenize_chinese_chars"]
    rust = BertNormalizer(clean_text=True, handle_chinese_chars=bool(cjk), strip_accents=strip, lowercase=bool(lower))
    split = BertPreTokenizer().pre_tokenize_str
    mine = Normalizer("fast", lower=bool(lower), strip=bool(lower if strip is None else strip), cjk=bool(cjk))
    texts = itertools.chain(packed("a{}b", CODE_POINTS), *(packed(context, changing()) for context in CONTEXTS))
    failures = 0
    for text in texts:
        normalized = mine(text)
        words = [word for word, _ in split(normalized)]
        if (normalized, mine.align(text).text, mine.words(normalized)) != (rust.normalize_str(text), normalized, words):
            failures += 1
            _say(f"{text!a}")
    _say(f"{options} words: {failures} differences")
    return failures


@functools.cache
def changing() -> list[int]:
    """The code points that normalization changes, or that are marks or punctuation; few of the deleted ones."""
    fold, keep = (Normalizer("fast", lower=strip, strip=strip, cjk=False) for strip in (True, False))
    words = keep.words
    return [
        c
        for c in CODE_POINTS
        if (fold(chr(c)) != chr(c) or unicodedata.combining(chr(c)) or len(words(f"a{chr(c)}b")) > 1)
        and (keep(chr(c)) or c < 0x3000 or c % 97 == 0)
    ]


def _report(name: str, both: tuple[FastEngine, Callable[..., list[Alignment]]], texts: Iterable[str]) -> int:
    start, failures = time.perf_counter(), 0
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, 200)):
        found = difference(*both, batch)
        if found is not None:
            failures += 1
            _say(found[:3000])
    _say(f"{name}: {failures} differences, {time.perf_counter() - start:.0f} s")
    return failures


def random_text(source: random.Random) -> str:
    """Up to 30 characters or words, most of them troublemakers."""
    choices = (TROUBLE, TROUBLE, TROUBLE, WORDS)
    return "".join(
        source.choice(source.choice(choices)) if source.random() < 0.9 else chr(source.choice(CODE_POINTS))
        for _ in range(source.randrange(1, 30))
    )


def compare_random(count: int, seed: int) -> int:
    """`count` random texts, spread over all options, two thirds of them with added tokens."""
    source, failures = random.Random(seed), 0  # noqa: S311
    known = closure("".join(TROUBLE + WORDS))
    for options in EVERY_OPTION:
        for added, split in (((), False), (ADDED, False), (ADDED, True)):
            both = engines(added, known, split_special_tokens=split, **options)
            name = f"{options} {len(added)} added, split {split}"
            texts = (random_text(source) for _ in range(-(-count // (len(EVERY_OPTION) * 3))))
            failures += _report(name, both, texts)
    return failures


def closure(text: str) -> str:
    """The characters of a text, and what they may become."""
    pairs = (pair.partition(">") for pair in unicode_tables.FAST_LOWER.split())
    small = {int(capital, 16): chr(int(letter, 16)) for capital, _, letter in pairs}
    lower = "".join(map(str.lower, text)) + text.translate(small)
    parts = "".join(unicodedata.normalize("NFD", character) for character in text + lower)
    return "".join(sorted(set(text + lower + parts)))


def time_linear(shortest: int, doublings: int = 3) -> int:
    """T(2n) / T(n) of pathological texts on both roads of both dialects; more than 2.6 is a failure."""
    known = {token: i for i, token in enumerate((*SPECIAL, "a", "##a", "\u4e2d", "!"))}
    added = {4: AddedToken("[MASK]", special=True, normalized=False)}
    failures = 0
    for kind, lower in itertools.product((FastEngine, SlowEngine), (True, False)):
        engine = kind(known, added, TokenizerOptions(do_lower_case=lower))
        for name, unit in PATHOLOGICAL.items():
            for road in (engine.encode, engine.align):
                times = [_seconds(road, unit * (shortest * 2**k // len(unit))) for k in range(doublings + 1)]
                worst = max(b / a for a, b in itertools.pairwise(times))
                failures += worst > 2.6
                _say(f"{kind.__name__} {lower} {road.__name__:6} {name:16} {worst:.2f} {times[-1]:.2f} s")
    return failures


def _seconds(road: Callable[..., object], text: str) -> float:
    best = float("inf")
    for _ in range(2):
        start = time.process_time()
        road([text])
        best = min(best, time.process_time() - start)
    return best


def checksum(code_points: Sequence[int] = CODE_POINTS) -> str:
    """Of what every normalizer of both dialects makes of each code point between marks."""
    digest = hashlib.sha256()
    dialects: tuple[Dialect, ...] = ("fast", "slow")
    for dialect, lower, strip in itertools.product(dialects, (True, False), (True, False)):
        normalizer = Normalizer(dialect, lower=lower, strip=strip, cjk=True)
        for c in code_points:
            text = normalizer(f"a{chr(c)}\u0301\u302e{chr(c)}b")
            digest.update(" ".join(normalizer.words(text)).encode())
    return digest.hexdigest()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """The number of differences, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("code-points", "random", "linear", "pinned"))
    parser.add_argument("--count", type=int, default=100_000, help="of random texts; the least characters of linear")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "pinned":
        _say(f"{unicodedata.unidata_version} {checksum()}")
        return 0
    if arguments.what == "linear":
        return min(time_linear(arguments.count), 1)
    if arguments.what == "random":
        return min(compare_random(arguments.count, arguments.seed), 1)
    return min(compare_code_points(), 1)


if __name__ == "__main__":
    sys.exit(main())
