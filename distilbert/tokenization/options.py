"""What a tokenizer is told beside its vocabulary: its options, and the tokens that are added to it.

Names and defaults are those of tokenizer_config.json. Source: the reference's DistilBertTokenizer, transformers 4.57.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from distilbert.errors import TokenizerError
from distilbert.tokenization.checks import UNLIMITED, shown

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")

SPECIAL_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CHARACTERS_PER_WORD = 100  # a longer word is unknown
_LONGEST_TOKEN = 256  # characters of an added token: texts are searched for them at every place
CONTINUATION = "##"  # begins a piece that is not the first of its word


@dataclasses.dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text itself, before anything is normalized or split into words.

    Attributes:
        content: the token.
        single_word: only where no word character touches it.
        lstrip, rstrip: whitespace before or after it is part of it.
        normalized: look for it in the normalized text, and normalize it as well.
        special: marks structure, such as [SEP]; `decode` can leave it out.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.content, str) or not self.content:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TokenizerError(f"an added token must be a text of at least one character, got {shown(self.content)}.")
        if len(self.content) > _LONGEST_TOKEN:
            raise TokenizerError(
                f"an added token must have at most {_LONGEST_TOKEN} characters, got {len(self.content)}."
            )
        check_token(self.content)
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special"):
            if not isinstance(getattr(self, name), bool):
                raise TokenizerError(
                    f"{name} of an added token must be true or false, got {shown(getattr(self, name))}."
                )
        if (self.lstrip and self.content[0].isspace()) or (self.rstrip and self.content[-1].isspace()):
            raise TokenizerError(f"an added token that takes whitespace along must not have it, got {self.content!r}.")


def check_token(token: str) -> None:
    """Refuse a token that is no valid Unicode.

    Raises:
        TokenizerError: it has a lone surrogate.
    """
    try:
        token.encode()
    except UnicodeEncodeError:
        raise TokenizerError(f"a token must be valid Unicode, got {shown(token)}.") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The options of a tokenizer, checked.

    Attributes:
        do_lower_case: fold case.
        strip_accents: drop accents; None: if case is folded.
        tokenize_chinese_chars: make a word of each CJK ideograph.
        model_max_length: the longest input in tokens, special tokens included; None, or a huge number: no limit.
        padding_side, truncation_side: where padding is put, and which end is cut.
        clean_up_tokenization_spaces: `decode` removes spaces before punctuation.
        split_special_tokens: treat special tokens in a text as text.
        unk_token, sep_token, pad_token, cls_token, mask_token: the special tokens, which the vocabulary must have.
        additional_special_tokens: more of them.

    Raises:
        TokenizerError: a value has the wrong type or lies outside its range.
    """

    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    model_max_length: int | None = None
    padding_side: Side = "right"
    truncation_side: Side = "right"
    clean_up_tokenization_spaces: bool = True
    split_special_tokens: bool = False
    unk_token: str = "[UNK]"  # noqa: S105
    sep_token: str = "[SEP]"  # noqa: S105
    pad_token: str = "[PAD]"  # noqa: S105
    cls_token: str = "[CLS]"  # noqa: S105
    mask_token: str = "[MASK]"  # noqa: S105
    additional_special_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("do_lower_case", "tokenize_chinese_chars", "clean_up_tokenization_spaces", "split_special_tokens"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")
        strip: Any = self.strip_accents
        self._check("strip_accents", strip is None or isinstance(strip, bool), "true, false or null")
        limit: Any = self.model_max_length
        if isinstance(limit, int) and limit >= UNLIMITED:
            limit = None
            object.__setattr__(self, "model_max_length", None)
        self._check("model_max_length", limit is None or (type(limit) is int and limit >= 1), "a positive number")
        for name in ("padding_side", "truncation_side"):
            self._check(name, getattr(self, name) in SIDES, '"left" or "right"')
        for name in SPECIAL_NAMES:
            self._check(name, isinstance(getattr(self, name), str) and getattr(self, name) != "", "a text")
        more: Any = self.additional_special_tokens
        if isinstance(more, list):
            more = tuple(more)
            object.__setattr__(self, "additional_special_tokens", more)
        texts = isinstance(more, tuple) and all(isinstance(token, str) and token for token in more)
        self._check("additional_special_tokens", texts, "a list of texts")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise TokenizerError(f"{name} must be {rule}, got {shown(getattr(self, name))}.")

    def special_tokens(self) -> Iterator[str]:
        """Every special token, each once."""
        yield from dict.fromkeys((*(getattr(self, name) for name in SPECIAL_NAMES), *self.additional_special_tokens))

    def strips_accents(self) -> bool:
        """Whether accents are dropped."""
        return self.do_lower_case if self.strip_accents is None else self.strip_accents
