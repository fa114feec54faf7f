"""Tokens back to text, as the reference's fast tokenizer does it."""

from __future__ import annotations

from collections.abc import Iterable

from distilbert.tokenization.options import CONTINUATION

# What a detokenized English text should not have: a space before these. Applied in this order.
_TIGHT_MARKS = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","))
_CONTRACTIONS = ((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))
_IN_TOKEN = (*_TIGHT_MARKS, (" ' ", "'"), *_CONTRACTIONS[:2], (" do not", " don't"), *_CONTRACTIONS[2:])
_IN_TEXT = (*_TIGHT_MARKS, (" ' ", "'"), *_CONTRACTIONS)


def join_tokens(tokens: Iterable[str]) -> str:
    """The tokens as one text: pieces of a word joined, words apart, marks tight to what stands before them."""
    parts: list[str] = []
    for token in tokens:
        if not parts:
            parts.append(_replaced(token, _IN_TOKEN))
        elif token.startswith(CONTINUATION):
            parts.append(_replaced(token.removeprefix(CONTINUATION), _IN_TOKEN))
        else:
            parts.append(_replaced(" " + token, _IN_TOKEN))
    return "".join(parts)


def clean_up_spaces(text: str) -> str:
    """`text` without the spaces that stand before punctuation and in contractions."""
    return _replaced(text, _IN_TEXT)


def _replaced(text: str, replacements: tuple[tuple[str, str], ...]) -> str:
    for old, new in replacements:
        text = text.replace(old, new)
    return text
