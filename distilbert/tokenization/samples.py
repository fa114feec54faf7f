"""What a tokenizer is called with, checked and in one form: one text or many, alone or in pairs, whole or as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from distilbert.errors import DataError

Text = str | Sequence[str]  # a text, or its words


class Samples(NamedTuple):
    """The samples of a call.

    Attributes:
        first: the texts; as lists of words where `split`.
        second: the second text of each pair; None unless samples are pairs.
        batched: a list was given, not one sample.
        split: texts are given as words.
    """

    first: list[Any]
    second: list[Any] | None
    batched: bool
    split: bool


def read_samples(text: Any, pair: Any, *, split: bool) -> Samples:
    """The samples that the arguments of a call describe.

    Raises:
        TypeError: a text is no string. DataError: it is no valid Unicode. ValueError: the texts of pairs do not match.
    """
    text, pair = _as_list(text, "text"), None if pair is None else _as_list(pair, "pair")
    batched = _is_batch(text, split=split)
    if pair is None:
        return Samples(_texts(text, "text", batched=batched, split=split), None, batched, split)
    if _is_batch(pair, split=split) != batched:
        raise TypeError("text and pair must both be one text or both be lists of texts.")
    first, second = (_texts(x, name, batched=batched, split=split) for x, name in ((text, "text"), (pair, "pair")))
    if len(first) != len(second):
        raise ValueError(f"there must be one pair for each text, got {len(first)} texts and {len(second)} pairs.")
    return Samples(first, second, batched, split)


def _as_list(text: Any, name: str) -> Any:
    """A text as it is; many, from whatever holds or makes them in an order, as a list."""
    if isinstance(text, str):
        return text
    unfit = isinstance(text, (bytes, bytearray, Mapping, AbstractSet))
    if unfit or not hasattr(text, "__iter__") or getattr(text, "ndim", 1) == 0:
        raise TypeError(f"{name} must be a string or a list of strings, got {type(text).__name__}.")
    return list(text)


def _is_batch(text: Any, *, split: bool) -> bool:
    """Whether `text` is a list of texts: of strings, or, where a text is a list of words, of such lists."""
    if isinstance(text, str):
        return False
    return not split or (len(text) > 0 and not isinstance(text[0], str))


def _texts(given: Any, name: str, *, batched: bool, split: bool) -> list[Any]:
    texts: list[Any] = given if batched else [given]
    for i, text in enumerate(texts):
        if split:
            texts[i] = _words(text, name, i)
        elif not isinstance(text, str):
            hint = "; words need is_split_into_words=True, pairs two lists" if isinstance(text, (list, tuple)) else ""
            raise TypeError(f"{name} must be strings, got {type(text).__name__} at {i}{hint}.")
        else:
            check_unicode(text, name, i)
    return texts


def _words(text: Any, name: str, i: int) -> list[str]:
    if isinstance(text, str):
        raise TypeError(f"{name} must be lists of words with is_split_into_words=True, got str at {i}.")
    words = _as_list(text, f"{name} {i}")
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"{name} must be lists of words, got {type(word).__name__} among the words at {i}.")
    check_unicode("".join(words), name, i)
    return words


def check_unicode(text: str, name: str, i: int) -> None:
    """Refuse a lone surrogate, which no encoding of Unicode has.

    Raises:
        DataError: names the text by its number.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} must be valid Unicode, got a lone surrogate at character {error.start} of number {i}; read files "
            'with errors="replace".'
        ) from None
