"""Added tokens in a text: where they are, before the rest is cut into words.

At each place the longest token counts, and the search goes on behind it. Which whitespace a token takes along and what
may touch it differs by dialect: "fast" as in Rust's AddedVocabulary, "slow" as in the reference in Python.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from distilbert.tokenization import unicode_tables
from distilbert.tokenization.normalization import WHITESPACE, Ranges
from distilbert.tokenization.options import AddedToken

_SPACE = WHITESPACE | set("\x0b\x0c\x85")  # in a text whose control characters are still there
_WORD = Ranges(unicode_tables.FAST_WORD)
_FEW = 8  # so many searches for one character are quicker than one for a set of them


class Section(NamedTuple):
    """The part [start, end) of a text: an added token, or text (`id` is None)."""

    id: int | None
    start: int
    end: int


class AddedTokens:
    """Finds added tokens.

    Args:
        tokens: (what to look for, its id, how); of two that look the same, the first counts. One that is nothing, as
            normalization may leave it, is never found.
    """

    def __init__(self, tokens: Iterable[tuple[str, int, AddedToken]]) -> None:
        self._tokens: dict[str, tuple[int, AddedToken]] = {}
        for content, i, token in tokens:
            if content:
                self._tokens.setdefault(content, (i, token))
        self._lengths = {
            first: sorted({len(content) for content in self._tokens if content[0] == first}, reverse=True)
            for first in {content[0] for content in self._tokens}
        }
        self._begins = re.compile(f"[{''.join(map(re.escape, self._lengths))}]") if self._tokens else None

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def may_be_in(self, text: str) -> bool:
        """Whether `text` has a character with which an added token begins."""
        if len(self._lengths) > _FEW:
            return True
        for first in self._lengths:  # noqa: SIM110 - `any` takes twice the time, and every text comes through here
            if first in text:
                return True
        return False

    def fast(self, text: str, *, split_special: bool) -> list[Section]:
        """The sections of a text, in order; `split_special`: special tokens are text.

        Two sections overlap where a token begins within the whitespace that the one before took along, as in Rust.
        """
        sections, done = list[Section](), 0
        for start, end in self._matches(text):
            i, token = self._tokens[text[start:end]]
            if (split_special and token.special) or (token.single_word and _touches_word(text, start, end)):
                continue
            if token.lstrip:
                start = _leftmost_space(text, start, done)  # noqa: PLW2901
            if token.rstrip:
                end = _rightmost_space(text, end)  # noqa: PLW2901
            if done < start:
                sections.append(Section(None, done, start))
            sections.append(Section(i, start, end))
            done = end
        if done < len(text):
            sections.append(Section(None, done, len(text)))
        return sections

    def slow(self, text: str) -> tuple[str, list[Section]]:
        """The text and its sections, in order, none of them empty.

        A token that must be a single word and is none becomes part of the text before it, without the whitespace that
        it took from there: in the text returned, that is NUL, which normalization deletes.
        """
        spans, done = list[tuple[int, int]](), 0
        for match in self._matches(text):
            spans += [(done, match[0]), match] if done < match[0] else [match]
            done = match[1]
        spans += [(done, len(text))] if done < len(text) else []
        gaps = [self._adjust(text, spans, k) for k, (a, b) in enumerate(spans) if text[a:b] in self._tokens]
        found = ((self._tokens.get(text[start:end]), start, end) for start, end in spans if start < end)
        sections = [Section(entry and entry[0], start, end) for entry, start, end in found]
        return _blanked(text, [gap for gap in gaps if gap[0] < gap[1]]), sections

    def _adjust(self, text: str, spans: list[tuple[int, int]], k: int) -> tuple[int, int]:
        """Let the token that is the k-th span take whitespace from its neighbours, or be part of one of them.

        Returns the gap that this leaves within a span.
        """
        start, end = spans[k]
        token = self._tokens[text[start:end]][1]
        left, right = spans[k - 1] if k else (0, 0), spans[k + 1] if k + 1 < len(spans) else (0, 0)
        before, after = text[slice(*left)], text[slice(*right)]
        if token.rstrip and after:
            spans[k + 1] = (right[1] - len(after.lstrip()), right[1])
        if token.lstrip and before:
            left = spans[k - 1] = (left[0], left[0] + len(before.rstrip()))
        if token.single_word and before and before[-1] != " ":
            spans[k - 1], spans[k] = (left[0] if left[0] < left[1] else start, end), (0, 0)
            return left[1], start if left[0] < left[1] else left[1]
        if token.single_word and after and after[0] != " ":
            spans[k + 1], spans[k] = (start, right[1]), (0, 0)
        return 0, 0

    def _matches(self, text: str) -> Iterator[tuple[int, int]]:
        position = 0
        while self._begins and (match := self._begins.search(text, position)):
            position = match.start()
            ends = (position + length for length in self._lengths[match[0]])
            end = next((end for end in ends if end <= len(text) and text[position:end] in self._tokens), None)
            if end is not None:
                yield position, end
            position = end or position + 1


def _blanked(text: str, gaps: list[tuple[int, int]]) -> str:
    if not gaps:
        return text
    ends = [(0, 0), *gaps, (len(text), len(text))]
    kept = (text[before[1] : gap[0]] + "\0" * (gap[1] - gap[0]) for before, gap in itertools.pairwise(ends))
    return "".join(kept)


def find_boundary(added_tokens: Iterable[AddedToken], *, cjk: bool) -> re.Pattern[str] | None:
    """Where a text can be cut without a token changing: before whitespace, and before ideographs if they are words.

    None where an added token may contain such a place.
    """
    boundary = re.compile("[ \t\n\r\u3000\u4e00-\u9fff]" if cjk else "[ \t\n\r\u3000]")
    for token in added_tokens:
        if any(map(str.isspace, token.content)) or boundary.search(token.content):
            return None
        if token.normalized and not token.content.isascii():
            return None
    return boundary


def _touches_word(text: str, start: int, end: int) -> bool:
    return (start > 0 and ord(text[start - 1]) in _WORD) or (end < len(text) and ord(text[end]) in _WORD)


def _leftmost_space(text: str, start: int, limit: int) -> int:
    while start > limit and text[start - 1] in _SPACE:
        start -= 1
    return max(start, limit)


def _rightmost_space(text: str, end: int) -> int:
    while end < len(text) and text[end] in _SPACE:
        end += 1
    return end
