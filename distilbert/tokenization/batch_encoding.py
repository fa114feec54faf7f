"""The result of a tokenizer: a dict of ids and masks that also knows which part of the text each token came from.

Names and arguments are those of the reference's BatchEncoding. Where tokens came from is worked out when it is asked
for, so a batch that only feeds a model does not pay for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from distilbert.tokenization.encoding import Alignment, Row, Special
from distilbert.tokenization.options import Side


class CharSpan(NamedTuple):
    """Code points `start` to `end`, which is not included, of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end`, which is not included, of a row."""

    start: int
    end: int


class Origin(NamedTuple):
    """What a batch was made from.

    Attributes:
        rows: what each row holds.
        special: where rows have special tokens.
        width: of padded rows; None where nothing is padded.
        side: where padding is.
        align: the alignments of a sample's texts, the second None unless it is a pair.
        tokens: the tokens of ids.
    """

    rows: Sequence[Row]
    special: Special[Any]
    width: int | None
    side: Side
    align: Callable[[int], tuple[Alignment, Alignment | None]]
    tokens: Callable[[Sequence[int]], list[str]]

    def spread(self, index: int, first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
        """Something per token of a row, None at special tokens and padding."""
        return self.place(self.rows[index].join(first, second, self.special.filled(None)))

    def place(self, values: list[Any]) -> list[Any]:
        """What a row has, between padding."""
        fill = [None] * ((self.width or 0) - len(values))
        return [*values, *fill] if self.side == "right" else [*fill, *values]


class BatchEncoding(dict[str, Any]):
    """Lists or arrays by name, as a model takes them (`model(**batch)`), and the way back into the text.

    Indices of rows come first and may be left out for the only row: `batch.char_to_token(7)`,
    `batch.char_to_token(row, 7)`. Plain `dict(batch)` is what tree utilities want (`jax.jit`, `keras.Model.fit`).
    """

    def __init__(self, data: Mapping[str, Any] = MappingProxyType({}), origin: Origin | None = None) -> None:
        super().__init__(data)
        self._origin = origin
        self._aligned: dict[int, tuple[Alignment, Alignment | None]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the encoding has {', '.join(self)}, not {name!r}.")

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if name == "input_ids":  # other rows than those that are known
            self._origin = None

    def update(self, *values: Any, **more: Any) -> None:
        """Set several values."""
        for name, value in dict(*values, **more).items():
            self[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process gets: the values; the way back into the text stays here, with the tokenizer."""
        return BatchEncoding, (dict(self),)

    def __copy__(self) -> Self:
        return type(self)(self, self._origin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(dict(self), memo), self._origin)

    def to(self, device: Any) -> Self:
        """The same encoding with its PyTorch tensors on `device`."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.items()}
        return type(self)(moved, self._origin)

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, special tokens and padding included."""
        origin = self._require_origin()
        ids = self["input_ids"]
        nested = hasattr(ids, "shape") or (len(ids) > 0 and isinstance(ids[0], (list, tuple)))
        self._row(batch_index)
        return origin.tokens(ids[batch_index] if nested else ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Index of the word that each token of a row came from; None for special tokens and padding."""
        return self._spread(batch_index, lambda alignment: alignment.words)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the first text, 1 for those of the second; None for special tokens and padding."""
        origin = self._require_origin()
        return origin.place(self._row(batch_index).fill(0, 1, origin.special.filled(None)))

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Where in its text a token stands; None for special tokens and padding."""
        row, token = _row_and(batch_or_token_index, token_index)
        span = _at(self._offsets(row), token)
        return None if span is None else CharSpan(*span)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word that a token came from; None for special tokens and padding."""
        row, token = _row_and(batch_or_token_index, token_index)
        return _at(self.word_ids(row), token)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The text that a token came from, 0 or 1; None for special tokens and padding."""
        row, token = _row_and(batch_or_token_index, token_index)
        return _at(self.sequence_ids(row), token)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token of a row that covers a code point of a text; None if none does, as for spaces."""
        row, char = _row_and(batch_or_char_index, char_index)
        spans = zip(self.sequence_ids(row), self._offsets(row), strict=True)
        found = (i for i, (sequence, span) in enumerate(spans) if sequence == sequence_index and _covers(span, char))
        return next(found, None)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that covers a code point of a text; None if none does."""
        row, char = _row_and(batch_or_char_index, char_index)
        token = self.char_to_token(row, char, sequence_index)
        return None if token is None else self.word_ids(row)[token]

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a row that came from a word; None if the row has none of them."""
        row, word = _row_and(batch_or_word_index, word_index)
        pairs = zip(self.sequence_ids(row), self.word_ids(row), strict=True)
        found = [i for i, pair in enumerate(pairs) if pair == (sequence_index, word)]
        return TokenSpan(found[0], found[-1] + 1) if found else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Where in its text the part of a word that a row has stands; None if the row has none of it."""
        row, word = _row_and(batch_or_word_index, word_index)
        tokens = self.word_to_tokens(row, word, sequence_index)
        if tokens is None:
            return None
        offsets = self._offsets(row)
        return CharSpan(offsets[tokens.start][0], offsets[tokens.end - 1][1])

    def _require_origin(self) -> Origin:
        if self._origin is None:
            raise ValueError("this encoding was padded or copied elsewhere and no longer knows its texts.")
        return self._origin

    def _row(self, index: int) -> Row:
        rows = self._require_origin().rows
        if not -len(rows) <= index < len(rows):
            raise IndexError(f"the encoding has {len(rows)} rows, got the index {index}.")
        return rows[index]

    def _offsets(self, row: int) -> list[Any]:
        return self._spread(row, lambda alignment: alignment.offsets)

    def _spread(self, row: int, values: Callable[[Alignment], Sequence[Any]]) -> list[Any]:
        origin = self._require_origin()
        sample = self._row(row).sample
        if sample not in self._aligned:
            self._aligned[sample] = origin.align(sample)
        first, second = self._aligned[sample]
        return origin.spread(row, values(first), values(second) if second else ())


def _row_and(first: int, second: int | None) -> tuple[int, int]:
    """The index of the row and the other one, from arguments of which the first may be left out."""
    return (0, first) if second is None else (first, second)


def _at(values: list[Any], token: int) -> Any:
    if not -len(values) <= token < len(values):
        raise IndexError(f"the row has {len(values)} tokens, got the index {token}.")
    return values[token]


def _covers(span: tuple[int, int] | None, char: int) -> bool:
    return span is not None and span[0] <= char < span[1]
