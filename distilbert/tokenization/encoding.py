"""From the tokens of texts to the rows of a batch: truncation, windows, special tokens.

A row is described before it is built: which tokens of which sample it holds. Ids, masks, offsets and word numbers are
then all read off that description. Results are those of the reference's fast tokenizer. Source: the post-processing of
Hugging Face tokenizers 0.23, observed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from distilbert.errors import DataError
from distilbert.tokenization.checks import check_choice, check_count
from distilbert.tokenization.options import SIDES, Side

Item = TypeVar("Item")
Other = TypeVar("Other")
Strategy = Literal["longest_first", "only_first", "only_second"]
_STRATEGIES: dict[Any, Any] = {True: "longest_first", False: None, None: None, "do_not_truncate": None} | {
    s: s for s in get_args(Strategy)
}
_TRUNCATIONS = tuple(_STRATEGIES)
_CUT_TEXT = ("only_first", "only_second")  # the strategy that cuts a text, by its position in a pair


class Alignment(NamedTuple):
    """The tokens of one text, without special tokens.

    Attributes:
        ids: of the tokens.
        offsets: (start, end) of each token, in code points of the text; with given words, of its word.
        words: index of the word that each token is from.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    words: list[int]

    def moved(self, start: int) -> Alignment:
        """The same tokens in a text that has `start` code points before this one."""
        if start == 0:
            return self
        return self._replace(offsets=[(begin + start, end + start) for begin, end in self.offsets])

    @property
    def n_words(self) -> int:
        """How many words there are."""
        return self.words[-1] + 1 if self.words else 0

    def add(self, token: int, start: int, end: int) -> None:
        """Append a token that is a word."""
        self.extend(Alignment([token], [(start, end)], [0]), 0)

    def extend(self, part: Alignment, start: int) -> None:
        """Append the tokens of the part of the text that begins at `start`."""
        n_words = self.n_words
        self.ids.extend(part.ids)
        self.offsets.extend([(first + start, last + start) for first, last in part.offsets])
        self.words.extend([word + n_words for word in part.words])


class Special(NamedTuple, Generic[Item]):
    """What stands at the special tokens of a row: before the first text, after it, and after the second of a pair."""

    before: Sequence[Item]
    between: Sequence[Item]
    after: Sequence[Item]

    def filled(self, value: Other) -> Special[Other]:
        """The same places with one value."""
        return Special(*([value] * len(part) for part in self))


class Row(NamedTuple):
    """One row of a batch: the tokens of a sample that it holds, of its first and, in a pair, of its second text."""

    sample: int
    first: range
    second: range | None = None

    def join(self, first: Sequence[Item], second: Sequence[Item], special: Special[Item]) -> list[Item]:
        """Something per token of the row, from that of the two texts and of the special tokens around them."""
        row = [*special.before, *first[self.first.start : self.first.stop], *special.between]
        if self.second is not None:
            row += [*second[self.second.start : self.second.stop], *special.after]
        return row

    def fill(self, first: Item, second: Item, special: Special[Item]) -> list[Item]:
        """The same value at every token of the first text, and another one at those of the second."""
        row = [*special.before, *[first] * len(self.first), *special.between]
        if self.second is not None:
            row += [*[second] * len(self.second), *special.after]
        return row

    def types(self, special: Special[int]) -> list[int]:
        """0 for the tokens of the first text and the special ones around it, 1 for what follows."""
        return self.fill(0, 1, special.filled(0)._replace(after=[1] * len(special.after)))

    def special_mask(self, special: Special[int]) -> list[int]:
        """1 for special tokens, 0 for those of the text."""
        return self.fill(0, 0, special.filled(1))


class Truncation(NamedTuple):
    """How samples that are too long become rows.

    Attributes:
        budget: tokens in a row, without the special ones.
        strategy: which text of a pair is cut; None: too long is an error.
        windows: keep what is cut in further rows.
        stride: tokens that two neighbouring windows share.
        side: the end that is cut; windows begin at the other.
        odd_to_first: of a pair with both texts cut alike, the first keeps the odd token, as the slow reference does.
    """

    budget: int
    strategy: Strategy | None = None
    windows: bool = False
    stride: int = 0
    side: Side = "right"
    odd_to_first: bool = False

    def bound(self, position: int, *, pairs: bool) -> int | None:
        """How many tokens of a first (0) or second (1) text matter at most; None: all of them may."""
        if self.windows or self.strategy is None or (pairs and self.strategy != _CUT_TEXT[position]):
            return None
        return self.budget

    def rows(self, sample: int, first: int, second: int | None) -> list[Row]:
        """The rows of a sample whose texts have `first` and `second` tokens (None: it is no pair).

        Raises:
            DataError: it is too long, and must not or cannot be cut.
        """
        if first + (second or 0) <= self.budget:
            return [Row(sample, range(first), None if second is None else range(second))]
        if self.strategy is None:
            raise DataError(
                f"text {sample} has {first + (second or 0)} tokens, more than {self.budget} beside the special tokens: "
                "truncate it (truncation=True) or ask for windows (return_overflowing_tokens=True)."
            )
        kept_first, kept_second = self._kept(sample, first, second)
        firsts = self._cut(sample, first, kept_first)
        if second is None:
            return [Row(sample, part) for part in firsts]
        seconds = self._cut(sample, second, kept_second)
        # The reference's order: the first window of the first text meets those of the second after all others.
        rows = [Row(sample, a, b) for a in firsts[1:] for b in seconds]
        return [Row(sample, firsts[0], seconds[0]), *rows, *(Row(sample, firsts[0], b) for b in seconds[1:])]

    def _kept(self, sample: int, first: int, second: int | None) -> tuple[int, int]:
        """How many tokens each text keeps in a row."""
        if second is None:
            return self.budget, 0
        if self.strategy == "longest_first":
            return self._shared(first, second)
        cut, other = (first, second) if self.strategy == "only_first" else (second, first)
        kept = self.budget - other
        if kept < 1:
            raise DataError(
                f"text {sample} cannot be cut by truncation={self.strategy!r}: the other text has {other} tokens of at "
                f"most {self.budget}; use truncation='longest_first' or a larger max_length."
            )
        return (min(cut, kept), other) if self.strategy == "only_first" else (other, min(cut, kept))

    def _shared(self, first: int, second: int) -> tuple[int, int]:
        """The longer text is cut to the length of the shorter, then both alike; the odd token stays with the longer."""
        short = min(first, second, self.budget // 2)
        long = self.budget - short
        both_are_cut = short < min(first, second)
        first_is_long = first > second or (both_are_cut and self.odd_to_first)
        return (long, short) if first_is_long else (short, long)

    def _cut(self, sample: int, length: int, size: int) -> list[range]:
        """The windows of `size` over `length` tokens; only the first of them unless windows are wanted."""
        if size >= length:
            return [range(length)]
        if not self.windows:
            return [range(size) if self.side == "right" else range(length - size, length)]
        if self.stride >= size:
            raise DataError(
                f"text {sample} leaves {size} tokens for a window, which must be more than stride={self.stride}: lower "
                "the stride or raise max_length."
            )
        starts = range(0, length - self.stride, size - self.stride)
        if self.side == "right":
            return [range(start, min(start + size, length)) for start in starts]
        return [range(max(length - start - size, 0), length - start) for start in starts]


def read_truncation(
    strategy: Any,
    limit: int | None,
    special: Special[int],
    *,
    pairs: bool,
    stride: int,
    windows: bool,
    side: Side,
    odd: bool,
) -> Truncation:
    """What the arguments of a call say about texts that are too long.

    Args:
        strategy: the argument `truncation`.
        limit: tokens in a row, those of `special` included; None: no limit.
        special: the special tokens of a row.
        pairs: samples have two texts.
        stride: see `Truncation`, as for the rest.
        windows: keep what is cut.
        side: the end that is cut.
        odd: the odd token stays with the first text.

    Raises:
        ValueError: an argument is wrong.
    """
    check_choice("truncation", strategy, _TRUNCATIONS)
    check_choice("truncation_side", side, SIDES)
    stride = check_count("stride", stride, 0)
    strategy = _STRATEGIES[strategy]
    if windows and strategy is None:
        strategy = "longest_first"
    if strategy == "only_second" and not pairs:
        raise ValueError("truncation='only_second' needs pairs.")
    if limit is None:
        if strategy is not None:
            raise ValueError("max_length must be given to cut texts: the tokenizer has no model_max_length.")
        return Truncation(sys.maxsize)
    room = sum(map(len, special))
    return Truncation(check_count("max_length", limit, room) - room, strategy, windows, stride, side, odd)
