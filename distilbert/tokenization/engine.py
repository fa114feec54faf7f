"""WordPiece tokenization in pure Python, with the results of the reference's fast or slow tokenizer.

Text between whitespace (a chunk) has the same pieces wherever it stands, and most chunks of natural text are seen again
and again: so a text is split at whitespace and each chunk is looked up among those seen lately. Only a new one takes
the road through normalization, words and WordPiece.

Source: the results of tokenizers 0.23 ("fast") and of transformers 4.57's DistilBertTokenizer ("slow").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain

from distilbert.errors import TokenizerError
from distilbert.tokenization.added_tokens import AddedTokens, Section, find_boundary
from distilbert.tokenization.encoding import Alignment
from distilbert.tokenization.normalization import (
    WHITESPACE,
    Aligned,
    Dialect,
    Memo,
    Normalizer,
    TextMemo,
    lowered,
    tables,
)
from distilbert.tokenization.options import AddedToken, TokenizerOptions
from distilbert.tokenization.wordpiece import Piece, WordPiece

_CHUNK = re.compile(f"[^{''.join(sorted(WHITESPACE))}]+")
_OTHER_SPACE = re.compile("[\x0b\x0c\x1c-\x1f\x85]")  # whitespace for `str.split`, deleted by both dialects


class FastEngine:
    """The fast dialect: texts to ids, without the special tokens around them.

    Args:
        vocabulary: token to id.
        added_tokens: id to each token that is looked for in the text itself.
        options: how texts are normalized.

    Raises:
        TokenizerError: the vocabulary lacks the unknown token, or an added one is normalized to nothing.
    """

    dialect: Dialect = "fast"

    def __init__(
        self, vocabulary: Mapping[str, int], added_tokens: Mapping[int, AddedToken], options: TokenizerOptions
    ) -> None:
        self._vocabulary, self._options = vocabulary, options
        self.boundary = find_boundary(added_tokens.values(), cjk=options.tokenize_chinese_chars)
        self._wordpiece = WordPiece(vocabulary, options.unk_token)
        self._normalizer = self._new_normalizer(strip=options.strips_accents())
        self._chunks: TextMemo[tuple[int, ...]] = TextMemo(self._chunk_ids)
        self._aligned_chunks: TextMemo[Alignment] = TextMemo(self._chunk_alignment)
        self._add(added_tokens)

    def _new_normalizer(self, *, strip: bool) -> Normalizer:
        options = self._options
        return Normalizer(self.dialect, lower=options.do_lower_case, strip=strip, cjk=options.tokenize_chinese_chars)

    def _add(self, added_tokens: Mapping[int, AddedToken]) -> None:
        order = sorted(added_tokens.items(), key=lambda item: (not item[1].special, item[0]))
        self._raw = AddedTokens((token.content, i, token) for i, token in order if not token.normalized)
        normalized = [(self._normalizer(token.content), i, token) for i, token in order if token.normalized]
        nothing = next((token.content for text, _, token in normalized if not text), None)
        if nothing is not None:
            raise TokenizerError(f"an added token must not vanish when it is normalized, as {nothing!r} does.")
        self._normalized = AddedTokens(normalized)
        self._normalized_chunks: TextMemo[tuple[int, ...]] = TextMemo(self._normalized_ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, which must be valid Unicode."""
        return [self._ids(text) for text in texts]

    def align(self, texts: Sequence[str]) -> list[Alignment]:
        """The tokens of each text and where they stand in it."""
        return [self._alignment(text) for text in texts]

    def _ids(self, text: str) -> list[int]:
        if not self._normalized and not self._raw.may_be_in(text):
            return _look_up(self._chunks, text)
        ids = list[int]()
        text, sections = self._sections(text)
        for section in sections:
            part = text[section.start : section.end]
            if section.id is not None:
                ids.append(section.id)
            elif self._normalized:
                ids += self._ids_with_normalized(self._normalizer(part))
            else:
                ids += _look_up(self._chunks, part)
        return ids

    def _ids_with_normalized(self, text: str) -> Iterator[int]:
        for section in self._find_normalized(text):
            if section.id is not None:
                yield section.id
            else:
                yield from _look_up(self._normalized_chunks, text[section.start : section.end])

    def _alignment(self, text: str) -> Alignment:
        row = Alignment([], [], [])
        text, sections = self._sections(text)
        for section in sections:
            if section.id is not None:
                row.add(section.id, section.start, section.end)
            elif self._normalized:
                self._align_with_normalized(text, section, row)
            else:
                self._align_chunks(text, section, row)
        return row

    def _align_chunks(self, text: str, section: Section, row: Alignment) -> None:
        parts = [self._aligned_chunks[chunk] for chunk in _CHUNK.findall(text, section.start, section.end)]
        starts = [match.start() for match in _CHUNK.finditer(text, section.start, section.end)]
        counts = [part.n_words for part in parts]
        row.ids.extend(chain.from_iterable([part.ids for part in parts]))
        moved = zip(parts, starts, strict=True)
        row.offsets.extend([(a + start, b + start) for part, start in moved for a, b in part.offsets])
        numbered = zip(parts, accumulate(counts, initial=row.n_words), strict=False)  # the last sum is the total
        row.words.extend([word + first for part, first in numbered for word in part.words])

    def _align_with_normalized(self, text: str, part: Section, row: Alignment) -> None:
        aligned = self._normalizer.align(text[part.start : part.end])
        for section in self._find_normalized(aligned.text):
            if section.id is None:
                row.extend(self._align_words(aligned, section.start, section.end), part.start)
            else:
                start, end = aligned.starts[section.start], aligned.ends[section.end - 1]
                row.add(section.id, part.start + start, part.start + end)

    def _sections(self, text: str) -> tuple[str, list[Section]]:
        return text, self._raw.fast(text, split_special=self._options.split_special_tokens)

    def _find_normalized(self, text: str) -> list[Section]:
        return self._normalized.fast(text, split_special=self._options.split_special_tokens)

    def _chunk_ids(self, chunk: str) -> tuple[int, ...]:
        if chunk.isascii() and chunk.isalnum():  # one word, as most chunks are
            return self._wordpiece.ids(chunk.lower() if self._options.do_lower_case else chunk)
        return self._normalized_ids(self._normalizer(chunk))

    def _normalized_ids(self, text: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._wordpiece.ids, self._normalizer.words(text))))

    def _chunk_alignment(self, chunk: str) -> Alignment:
        aligned = self._normalizer.align(chunk)
        return self._align_words(aligned, 0, len(aligned.text))

    def _align_words(self, aligned: Aligned, start: int, end: int) -> Alignment:
        row, text = Alignment([], [], []), aligned.text[start:end]
        for word, (first, last) in enumerate(self._spans(text)):
            for token, left, right in self._pieces(text[first:last]):
                row.ids.append(token)
                row.offsets.append((aligned.starts[start + first + left], aligned.ends[start + first + right - 1]))
                row.words.append(word)
        return row

    def _spans(self, text: str) -> Iterable[tuple[int, int]]:
        return self._normalizer.spans(text)

    def _pieces(self, word: str) -> list[Piece]:
        return self._wordpiece.pieces(word)


class SlowEngine(FastEngine):
    """The slow dialect.

    The text is lower-cased before anything is looked for in it. Words of `never_split` and special tokens that stand
    between spaces are left whole and as they are; `split_special_tokens` has no effect. The reference gives no offsets;
    those of this class are the fast dialect's, and what NFC composes covers all that it was composed of.
    """

    dialect: Dialect = "slow"

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        added_tokens: Mapping[int, AddedToken],
        options: TokenizerOptions,
        never_split: Sequence[str] = (),
    ) -> None:
        super().__init__(vocabulary, added_tokens, options)
        self._cleaner = Normalizer("slow", lower=False, strip=False, cjk=options.tokenize_chinese_chars)
        self._never_split = frozenset(never_split)
        self._kept = self._never_split.union(options.special_tokens())
        self._protected = re.compile("|".join(map(re.escape, options.special_tokens())))
        self._words: TextMemo[tuple[int, ...]] = TextMemo(self._word_ids)
        self._aligned_words: TextMemo[Alignment] = TextMemo(self._word_alignment)
        self._lower: Memo[int, str] = Memo(_lowered)

    def _add(self, added_tokens: Mapping[int, AddedToken]) -> None:
        self._added_ids = {token.content: i for i, token in added_tokens.items()}
        self._raw = AddedTokens((self._stored(token), i, token) for i, token in sorted(added_tokens.items()))
        self._normalized = AddedTokens(())

    def _stored(self, token: AddedToken) -> str:
        folds = self._options.do_lower_case and token.normalized and not token.special
        return token.content.lower() if folds else token.content

    def _sections(self, text: str) -> tuple[str, list[Section]]:
        return self._raw.slow(text)

    def _ids(self, text: str) -> list[int]:
        return super()._ids(self._folded(text))

    def _alignment(self, text: str) -> Alignment:
        folded = self._folded(text)
        row = super()._alignment(folded)
        if len(folded) == len(text):
            return row
        origins = self._origins(text)
        return row._replace(offsets=[(origins[start], origins[end - 1] + 1) for start, end in row.offsets])

    def _folded(self, text: str) -> str:
        """The text in lower case, but for special tokens."""
        if not self._options.do_lower_case:
            return text
        parts = (text[a:b] if kept else text[a:b].translate(self._lower) for a, b, kept in self._stretches(text))
        return "".join(parts)

    def _origins(self, text: str) -> list[int]:
        """Which character of `text` each character of `_folded(text)` came from."""
        origins = list[int]()
        for start, end, kept in self._stretches(text):
            for i in range(start, end):
                origins += [i] if kept else [i] * len(self._lower[ord(text[i])])
        return origins

    def _stretches(self, text: str) -> Iterator[tuple[int, int, bool]]:
        done = 0
        for match in self._protected.finditer(text):
            yield done, match.start(), False
            yield *match.span(), True
            done = match.end()
        yield done, len(text), False

    def _chunk_ids(self, chunk: str) -> tuple[int, ...]:
        return tuple(chain.from_iterable(map(self._words.__getitem__, self._cleaner(chunk).split())))

    def _word_ids(self, word: str) -> tuple[int, ...]:
        text = word if word in self._kept else self._normalizer(word)
        parts = [text] if text in self._kept else self._normalizer.words(text)
        ids = ([self._id_of(part)] if part in self._never_split else self._wordpiece.ids(part) for part in parts)
        return tuple(chain.from_iterable(ids))

    def _id_of(self, token: str) -> int:
        unknown = self._vocabulary[self._options.unk_token]
        return self._added_ids.get(token, self._vocabulary.get(token, unknown))

    def _chunk_alignment(self, chunk: str) -> Alignment:
        row, cleaned = Alignment([], [], []), self._cleaner.align(chunk)
        for match in _CHUNK.finditer(cleaned.text):
            part, at = self._aligned_words[match[0]], match.start()
            offsets = [(cleaned.starts[at + first], cleaned.ends[at + last - 1]) for first, last in part.offsets]
            row.extend(part._replace(offsets=offsets), 0)
        return row

    def _word_alignment(self, word: str) -> Alignment:
        whole = Aligned(word, list(range(len(word))), list(range(1, len(word) + 1)))
        aligned = whole if word in self._kept else self._normalizer.align(word)
        return self._align_words(aligned, 0, len(aligned.text))

    def _spans(self, text: str) -> Iterable[tuple[int, int]]:
        return [(0, len(text))] if text in self._kept else super()._spans(text)

    def _pieces(self, word: str) -> list[Piece]:
        return [(self._id_of(word), 0, len(word))] if word in self._never_split else super()._pieces(word)


def _lowered(code_point: int) -> str:
    return lowered(tables("slow"), chr(code_point))


def _look_up(chunks: TextMemo[tuple[int, ...]], text: str) -> list[int]:
    if _OTHER_SPACE.search(text):
        text = _OTHER_SPACE.sub("", text)
    return list(chain.from_iterable(map(chunks.__getitem__, text.split())))
