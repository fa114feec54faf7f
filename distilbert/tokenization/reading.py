"""From the samples of a call to their tokens, by either tokenizer: whole texts, words, very long texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from distilbert.tokenization.encoding import Alignment, Row, Special, Truncation
from distilbert.tokenization.options import Side
from distilbert.tokenization.samples import Samples

_CHARACTERS_PER_TOKEN = 16  # of a long text that is cut, so much is read at first for each token that is kept


class Engine(Protocol):
    """What finds the tokens of texts, without special tokens around them. One that is built does not change.

    Attributes:
        boundary: finds where a long text can be cut, before the match; None if nowhere.
    """

    @property
    def boundary(self) -> re.Pattern[str] | None: ...  # noqa: D102

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        ...

    def align(self, texts: Sequence[str]) -> list[Alignment]:
        """Tokens of each text and where they stand in it."""
        ...


class _Tokens(NamedTuple):
    """The tokens of a list of texts; where they stand is worked out on demand."""

    ids: list[list[int]]
    align: Callable[[int], Alignment]


class SampleTokens(NamedTuple):
    """The tokens of samples: of their texts and, if they are pairs, of their second texts."""

    first: _Tokens
    second: _Tokens | None

    def rows(self, cut: Truncation) -> list[Row]:
        """The rows that the samples become."""
        if self.second is None:
            return [row for i, ids in enumerate(self.first.ids) for row in cut.rows(i, len(ids), None)]
        both = zip(self.first.ids, self.second.ids, strict=True)
        return [row for i, (first, second) in enumerate(both) for row in cut.rows(i, len(first), len(second))]

    def ids(self, row: Row, special: Special[int]) -> list[int]:
        """The ids of a row."""
        second = self.second.ids[row.sample] if self.second else ()
        return row.join(self.first.ids[row.sample], second, special)

    def align(self, sample: int) -> tuple[Alignment, Alignment | None]:
        """Where the tokens of a sample's texts stand."""
        return self.first.align(sample), self.second.align(sample) if self.second else None

    def offsets(self, row: Row, special: Special[Any]) -> list[tuple[int, int]]:
        """The offsets of a row; (0, 0) at special tokens."""
        first, second = self.align(row.sample)
        return row.join(first.offsets, second.offsets if second else (), special.filled((0, 0)))


def read_tokens(engine: Engine, samples: Samples, cut: Truncation, *, aligned: bool) -> SampleTokens:
    """The tokens of all samples.

    Args:
        engine: finds them.
        samples: the texts.
        cut: what will be cut; of a very long text, only what can be kept is read.
        aligned: find out at once where tokens stand, for all texts.
    """

    def read(texts: list[Any], position: int) -> _Tokens:
        starts = None
        kept = cut.bound(position, pairs=samples.second is not None)
        if kept is not None and max(map(len, texts), default=0) > _CHARACTERS_PER_TOKEN * kept:
            needed = _needed_words if samples.split else _needed_text
            pieces = [needed(engine, text, kept, cut.side) for text in texts]
            texts = [text[piece.start : piece.stop] for text, piece in zip(texts, pieces, strict=True)]
            starts = [piece.start for piece in pieces]
        return (_read_words if samples.split else _read_texts)(engine, texts, starts, aligned=aligned)

    return SampleTokens(read(samples.first, 0), None if samples.second is None else read(samples.second, 1))


def _read_texts(engine: Engine, texts: list[str], starts: list[int] | None, *, aligned: bool) -> _Tokens:
    def align(some: slice) -> list[Alignment]:
        found = engine.align(texts[some])
        return found if starts is None else [text.moved(n) for text, n in zip(found, starts[some], strict=True)]

    if aligned:
        found = align(slice(None))
        return _Tokens([alignment.ids for alignment in found], found.__getitem__)
    return _Tokens(engine.encode(texts), lambda i: align(slice(i, i + 1))[0])


def _read_words(engine: Engine, texts: list[list[str]], starts: list[int] | None, *, aligned: bool) -> _Tokens:
    words = list(itertools.chain.from_iterable(texts))
    counts = list(map(len, texts))
    first = [0] * len(texts) if starts is None else starts
    if aligned:
        groups = zip(_regroup(engine.align(words), counts), first, strict=True)
        found = [_joined(parts, start) for parts, start in groups]
        return _Tokens([alignment.ids for alignment in found], found.__getitem__)
    ids = [list(itertools.chain.from_iterable(parts)) for parts in _regroup(engine.encode(words), counts)]
    return _Tokens(ids, lambda i: _joined(engine.align(texts[i]), first[i]))


def _joined(words: Sequence[Alignment], start: int) -> Alignment:
    """The tokens of a text from those of its words, of which the first has the number `start`."""
    ids = [token_id for word in words for token_id in word.ids]
    offsets = [span for word in words for span in word.offsets]
    return Alignment(ids, offsets, [i for i, word in enumerate(words, start) for _ in word.ids])


def _regroup(items: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """`items` in groups of `counts`."""
    stops = itertools.accumulate(counts)
    return [items[stop - count : stop] for stop, count in zip(stops, counts, strict=True)]


def _needed_text(engine: Engine, text: str, kept: int, side: Side) -> range:
    """The part of a text that holds the `kept` tokens that stay of it: of a very long text not all of it."""
    size = _CHARACTERS_PER_TOKEN * max(kept, 1)
    while engine.boundary is not None and size < len(text):
        found = engine.boundary.search(text, size if side == "right" else len(text) - size)
        if found is None:
            break
        part = range(found.start()) if side == "right" else range(found.start(), len(text))
        if len(engine.encode([text[part.start : part.stop]])[0]) >= kept:
            return part
        size = max(4 * size, len(part))
    return range(len(text))


def _needed_words(engine: Engine, words: list[str], kept: int, side: Side) -> range:
    """The same for a text that is given as words."""
    size = 2 * max(kept, 1)
    while size < len(words):
        part = range(size) if side == "right" else range(len(words) - size, len(words))
        if sum(map(len, engine.encode(words[part.start : part.stop]))) >= kept:
            return part
        size *= 4
    return range(len(words))
