"""Text to words, as Rust's BertNormalizer and BertPreTokenizer ("fast") or the reference in Python ("slow") cut it.

Nearly every character can be replaced on its own: deleted, made a space, given spaces around it (an ideograph), or
decomposed, rid of its accents and lower-cased. So `str.translate` does it, with a table that fills as characters come.
Two things depend on neighbours and take a longer road: marks that are kept while accents are stripped, which the
canonical order of Unicode may exchange, and the composition of marks with letters (NFC, slow dialect, accents kept).

Decompositions and combining classes of assigned characters never change between versions of Unicode, so those of the
running Python are right for whatever the pinned tables call assigned; the rest is left alone.
Source: the results of tokenizers 0.23 and of transformers 4.57 on Python 3.11.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

from distilbert.tokenization import unicode_tables

Dialect = Literal["fast", "slow"]
K = TypeVar("K")
V = TypeVar("V")
Part = tuple[int, str, bool]  # of a decomposition: combining class, what becomes of it, whether it is the first

# What separates words. The other characters that `str.split` takes for whitespace are deleted by both dialects.
WHITESPACE = frozenset(
    "\t\n\r \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_MOVES = "\0"  # in a translated text: the longer road is needed. NUL itself is always deleted
_LONGEST_KEPT = 32  # characters
_SHORT = 256  # characters: `unicodedata.normalize` takes time quadratic in a run of marks


class Memo(dict[K, V]):
    """Results of `function`, by its argument; all are forgotten when there are `limit`, so memory stays bounded.

    Threads may share it: each step is one operation of a dict, and a result that is computed twice is the same.
    """

    def __init__(self, function: Callable[[K], V], limit: int = 1 << 16) -> None:
        super().__init__()
        self._function, self._limit = function, limit

    def __missing__(self, key: K) -> V:
        value = self._function(key)
        if self._is_kept(key):
            if len(self) >= self._limit:
                self.clear()
            self[key] = value
        return value

    def _is_kept(self, key: K) -> bool:  # noqa: ARG002
        return True


class TextMemo(Memo[str, V]):
    """The same for a function of a text; what long texts give is not kept."""

    def _is_kept(self, key: str) -> bool:
        return len(key) <= _LONGEST_KEPT


class Ranges:
    """A set of code points, from ranges such as "30-39 5f"."""

    def __init__(self, text: str) -> None:
        self.pairs = [(int(first, 16), int(last or first, 16)) for first, _, last in map(_halves, text.split())]
        self._bounds = [bound for first, last in self.pairs for bound in (first, last + 1)]

    def __contains__(self, code_point: int) -> bool:
        return bisect_right(self._bounds, code_point) % 2 == 1

    def in_brackets(self) -> str:
        """The inside of a character class of `re`."""
        return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in self.pairs)


@dataclasses.dataclass(frozen=True, slots=True)
class Tables:
    """What a dialect takes each code point for; `inert` ones have no decomposition and no combining class."""

    deleted: Ranges
    marks: Ranges
    punctuation: Ranges
    cjk: Ranges
    inert: tuple[Ranges, ...]
    lower: dict[int, str]


class Aligned(NamedTuple):
    """A normalized text; its character i came from the characters [starts[i], ends[i]) of the original."""

    text: str
    starts: list[int]
    ends: list[int]


class Normalizer:
    """The steps from a text to one in which spaces separate words, and from there to words.

    Args:
        dialect: whose results.
        lower: fold case.
        strip: drop accents.
        cjk: put spaces around CJK ideographs.
    """

    def __init__(self, dialect: Dialect, *, lower: bool, strip: bool, cjk: bool) -> None:
        self._tables, self._lower, self._strip, self._cjk = tables(dialect), lower, strip, cjk
        self._composes = dialect == "slow" and not strip
        self._table: Memo[int, str] = Memo(self._replacement)
        self._items: Memo[int, list[Part]] = Memo(self._decomposition)
        self._words = word_pattern(dialect)

    def __call__(self, text: str) -> str:
        """The normalized text."""
        normalized = text.translate(self._table)
        if self._composes:
            return compose(normalized)
        return self._reordered(text).text if _MOVES in normalized else normalized

    def align(self, text: str) -> Aligned:
        """The normalized text, and which characters of `text` each of its characters came from."""
        if text.isascii() and len(normalized := text.translate(self._table)) == len(text):  # nothing was deleted
            return Aligned(normalized, list(range(len(text))), list(range(1, len(text) + 1)))
        parts = [self._table[ord(character)] for character in text]
        normalized = "".join(parts)
        if _MOVES in normalized and not self._composes:
            return self._reordered(text)
        starts = [i for i, part in enumerate(parts) for _ in part]
        aligned = Aligned(normalized, starts, [i + 1 for i in starts])
        return _compose_aligned(aligned) if self._composes else aligned

    def words(self, normalized: str) -> list[str]:
        """The words of a normalized text: runs between spaces, and each punctuation character by itself."""
        return self._words.findall(normalized)

    def spans(self, normalized: str) -> Iterator[tuple[int, int]]:
        """Where these words are."""
        return (match.span() for match in self._words.finditer(normalized))

    def _replacement(self, code_point: int) -> str:
        folded = "".join(self._fold(part) for part in self._cleaned(chr(code_point)))
        return _MOVES if self._strip and any(map(self._rank, folded)) else folded

    def _cleaned(self, character: str) -> str:
        if character in WHITESPACE:
            return " "
        if ord(character) in self._tables.deleted:
            return ""
        return f" {character} " if self._cjk and ord(character) in self._tables.cjk else character

    def _fold(self, character: str) -> str:
        parts = self._decomposed(character) if self._strip else character
        return "".join(map(self._lowered, parts))

    def _decomposed(self, character: str) -> str:
        """Without accents."""
        parts = character if self._is_inert(character) else unicodedata.normalize("NFD", character)
        return "".join(part for part in parts if ord(part) not in self._tables.marks)

    def _lowered(self, character: str) -> str:
        return lowered(self._tables, character) if self._lower else character

    def _is_inert(self, character: str) -> bool:
        return any(ord(character) in ranges for ranges in self._tables.inert)

    def _rank(self, character: str) -> int:
        """The canonical combining class."""
        return 0 if self._is_inert(character) else unicodedata.combining(character)

    def _reordered(self, text: str) -> Aligned:
        """As `align`, with the marks of each run in canonical order before accents are stripped.

        Rust moves a mark without moving its origin: the n-th first part of a decomposition, in the new order, came
        from the n-th character, and further parts from the same one as the part before.
        """
        items = list(map(self._items.__getitem__, map(ord, text)))
        origins = [i for i, parts in enumerate(items) for _, _, first in parts if first]
        result, starts, n = list[str](), list[int](), -1
        for _, folded, first in in_canonical_order(itertools.chain.from_iterable(items)):
            n += first
            result.append(folded)
            starts += [origins[n]] * len(folded)
        return Aligned("".join(result), starts, [i + 1 for i in starts])

    def _decomposition(self, code_point: int) -> list[Part]:
        parts = list[Part]()
        for part in self._cleaned(chr(code_point)):
            pieces = part if self._is_inert(part) else unicodedata.normalize("NFD", part)
            parts += [(self._rank(piece), self._stripped(piece), k == 0) for k, piece in enumerate(pieces)]
        return parts

    def _stripped(self, piece: str) -> str:
        return "" if ord(piece) in self._tables.marks else self._lowered(piece)


@functools.cache
def tables(dialect: Dialect) -> Tables:
    """The pinned tables of a dialect."""
    t, fast = unicode_tables, dialect == "fast"
    return Tables(
        deleted=Ranges(t.FAST_DELETED if fast else t.SLOW_DELETED),
        marks=Ranges(t.FAST_MARKS if fast else t.SLOW_MARKS),
        punctuation=Ranges(t.FAST_PUNCTUATION if fast else t.SLOW_PUNCTUATION),
        cjk=Ranges(t.FAST_CJK if fast else t.SLOW_CJK),
        inert=(Ranges(t.SLOW_DELETED), *([Ranges(t.FAST_INERT)] if fast else [])),
        lower={int(c, 16): chr(int(to, 16)) for c, _, to in map(_halves, t.FAST_LOWER.split())} if fast else {},
    )


@functools.cache
def word_pattern(dialect: Dialect) -> re.Pattern[str]:
    """Finds the words of a normalized text."""
    punctuation = tables(dialect).punctuation.in_brackets()
    return re.compile(f"[^ {punctuation}]+|[{punctuation}]")


def lowered(tables: Tables, character: str) -> str:
    """The lower case of a character, by itself: no letter takes a final form."""
    if ord(character) in tables.inert[0]:  # newer than the tables, perhaps known to this Python
        return tables.lower.get(ord(character), character)
    return character.lower()


def in_canonical_order(parts: Iterable[Part]) -> Iterator[Part]:
    """Sorts each run of parts whose combining class is not 0."""
    for _, run in itertools.groupby(parts, lambda part: part[0] > 0):
        yield from sorted(run, key=operator.itemgetter(0))


def compose(text: str) -> str:
    """NFC of a text of assigned characters, in time linear in its length but for sorting."""
    if len(text) > _SHORT and not text.isascii():
        parts = itertools.chain.from_iterable(unicodedata.normalize("NFD", character) for character in text)
        text = "".join(item[1] for item in in_canonical_order((unicodedata.combining(c), c, False) for c in parts))
    return unicodedata.normalize("NFC", text)


def _compose_aligned(aligned: Aligned) -> Aligned:
    """NFC; what a group of characters became came from the whole group, if it changed."""
    parts, starts, ends = list[str](), list[int](), list[int]()
    for first, last in _groups(aligned.text):
        group = aligned.text[first:last]
        composed = compose(group)
        parts.append(composed)
        if composed == group:
            starts += aligned.starts[first:last]
            ends += aligned.ends[first:last]
        else:
            starts += [aligned.starts[first]] * len(composed)
            ends += [aligned.ends[last - 1]] * len(composed)
    return Aligned("".join(parts), starts, ends)


def _groups(text: str) -> Iterator[tuple[int, int]]:
    """Where a text can be cut so that the pieces compose as the whole does."""
    start, last = 0, text[:1]
    for i, character in enumerate(text[1:], 1):
        joined = last + character
        if joined.isascii() or (unicodedata.combining(character) == 0 and _stand_apart(last, character)):
            yield start, i
            start, last = i, character
        else:
            last = unicodedata.normalize("NFC", joined)[-1]
    if text:
        yield start, len(text)


def _stand_apart(left: str, right: str) -> bool:
    separate = unicodedata.normalize("NFC", left) + unicodedata.normalize("NFC", right)
    return unicodedata.normalize("NFC", left + right) == separate


def _halves(item: str) -> tuple[str, str, str]:
    return item.partition(">" if ">" in item else "-")
