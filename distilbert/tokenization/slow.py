"""The tokenizer in pure Python, in the dialect of the reference's fast tokenizer or of its slow one.

What finds the tokens of a text is in engine.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from distilbert.tokenization.base import TokenizerBase
from distilbert.tokenization.checks import as_sequence, check_choice
from distilbert.tokenization.engine import FastEngine, SlowEngine
from distilbert.tokenization.normalization import Dialect
from distilbert.tokenization.options import AddedToken, TokenizerOptions


class DistilBertTokenizer(TokenizerBase):
    """The tokenizer in pure Python.

    Example:
        tokenizer = DistilBertTokenizer.from_pretrained("folder")
        batch = tokenizer(["a text", "another, longer text"], padding=True, return_tensors="np")  # (2, seq) each
    """

    def __init__(
        self,
        vocab: Mapping[str, int] | str | os.PathLike[str],
        *,
        dialect: Dialect = "fast",
        never_split: Sequence[str] = (),
        added_tokens: Mapping[int, AddedToken] | None = None,
        **options: Any,
    ) -> None:
        """A tokenizer from its parts.

        Args:
            vocab: the id of each token, or the path of a vocab.txt.
            dialect: whose ids: "fast", the reference's fast tokenizer's and so `DistilBertTokenizerFast`'s, or "slow".
            never_split: words that the slow dialect leaves whole.
            added_tokens: tokens to be found in the text itself, by id.
            options: see `TokenizerOptions`.

        Raises:
            TokenizerError: an option is wrong, or the vocabulary lacks a special token. TypeError: unknown option.
        """
        check_choice("dialect", dialect, get_args(Dialect))
        words = as_sequence("never_split", never_split)
        if words and dialect != "slow":
            raise ValueError('never_split needs dialect="slow": the fast tokenizer has no such option.')
        self.dialect, self.never_split = dialect, tuple(words)
        super().__init__(vocab, added_tokens=added_tokens, **options)

    def _make_engine(self, added_tokens: Mapping[int, AddedToken], options: TokenizerOptions) -> FastEngine:
        if self.dialect == "fast":
            return FastEngine(self.vocabulary, added_tokens, options)
        return SlowEngine(self.vocabulary, added_tokens, options, self.never_split)

    @property
    def _odd_to_first(self) -> bool:
        return self.dialect == "slow"
