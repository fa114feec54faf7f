"""WordPiece: a word into the longest pieces of the vocabulary, greedily from its start.

A piece that is not the first of its word stands in the vocabulary with "##" before it. A word that cannot be cut
completely, or that is too long, becomes one unknown token. Source: Schuster and Nakajima 2012, as BERT uses it.
"""

from __future__ import annotations

from collections.abc import Mapping

from distilbert.errors import TokenizerError
from distilbert.tokenization.normalization import TextMemo
from distilbert.tokenization.options import CHARACTERS_PER_WORD, CONTINUATION

Piece = tuple[int, int, int]  # id, and the characters [start, end) of the word


class WordPiece:
    """Words to pieces.

    Args:
        vocabulary: token to id.
        unknown: the token of words that have no pieces; must be in the vocabulary.

    Raises:
        TokenizerError: it is not.
    """

    def __init__(self, vocabulary: Mapping[str, int], unknown: str) -> None:
        if unknown not in vocabulary:
            raise TokenizerError(f"the vocabulary must have the unknown token {unknown!r}: add it or name another.")
        self._unknown = vocabulary[unknown]
        self._first = dict(vocabulary)
        self._inner = {
            token.removeprefix(CONTINUATION): i for token, i in vocabulary.items() if token.startswith(CONTINUATION)
        }
        self._longest = max(map(len, vocabulary))
        self._seen: TextMemo[tuple[int, ...]] = TextMemo(self._cut_ids)

    def ids(self, word: str) -> tuple[int, ...]:
        """The ids of a word's pieces; a word has at least one character."""
        whole = self._first.get(word)
        return self._seen[word] if whole is None or len(word) > CHARACTERS_PER_WORD else (whole,)

    def pieces(self, word: str) -> list[Piece]:
        """The pieces of a word, in order; an unknown one covers all of it."""
        pieces = self._cut(word) if len(word) <= CHARACTERS_PER_WORD else None
        return [(self._unknown, 0, len(word))] if pieces is None else pieces

    def _cut_ids(self, word: str) -> tuple[int, ...]:
        return tuple([piece[0] for piece in self.pieces(word)])

    def _cut(self, word: str) -> list[Piece] | None:
        pieces, start, known = list[Piece](), 0, self._first
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                i = known.get(word[start:end])
                if i is not None:
                    break
            else:
                return None
            pieces.append((i, start, end))
            start, known = end, self._inner
        return pieces
