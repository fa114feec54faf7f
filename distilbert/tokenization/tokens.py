"""The tokens that a tokenizer knows: its vocabulary, the tokens added to it, and the special ones among them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distilbert.errors import TokenizerError
from distilbert.tokenization.checks import as_ids, as_sequence, shown
from distilbert.tokenization.options import SPECIAL_NAMES, AddedToken, TokenizerOptions
from distilbert.tokenization.reading import Engine
from distilbert.tokenization.vocabulary import check_added, check_vocabulary

_ENGINE_OPTIONS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "split_special_tokens",
    "additional_special_tokens",
    *SPECIAL_NAMES,
)


class _Option:
    """An option as an attribute; setting it builds the tokenizer anew."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokenizer: TokenizerVocabulary | None, owner: type | None = None) -> Any:
        return self if tokenizer is None else getattr(tokenizer.options, self.name)

    def __set__(self, tokenizer: TokenizerVocabulary, value: Any) -> None:
        tokenizer.set_options(**{self.name: value})


class _TokenId:
    """The id of a special token, by the attribute that names the token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.token = name.removesuffix("_id")

    def __get__(self, tokenizer: TokenizerVocabulary, owner: type | None = None) -> int:
        return tokenizer.convert_tokens_to_ids(getattr(tokenizer.options, self.token))

    def __set__(self, tokenizer: TokenizerVocabulary, token_id: int) -> None:
        token = next((token for token, known in tokenizer.get_vocab().items() if known == token_id), None)
        if token is None:
            raise ValueError(f"{self.token}_id must be the id of a token, got {shown(token_id)}.")
        tokenizer.set_options(**{self.token: token})


class TokenizerVocabulary(ABC):
    """Tokens, ids and options of a tokenizer.

    Attributes:
        vocabulary: id of each token of the vocabulary proper.
        added_tokens: the tokens that are found in the text itself, by id: the special tokens, and what was added.
        options: see `TokenizerOptions`, whose fields are attributes here too.
    """

    do_lower_case, strip_accents, tokenize_chinese_chars = _Option(), _Option(), _Option()
    model_max_length, padding_side, truncation_side = _Option(), _Option(), _Option()
    clean_up_tokenization_spaces, split_special_tokens = _Option(), _Option()
    unk_token, sep_token, pad_token, cls_token, mask_token = _Option(), _Option(), _Option(), _Option(), _Option()
    additional_special_tokens = _Option()
    unk_token_id, sep_token_id, pad_token_id = _TokenId(), _TokenId(), _TokenId()
    cls_token_id, mask_token_id = _TokenId(), _TokenId()

    def __init__(
        self, vocabulary: Mapping[str, int], added_tokens: Mapping[int, AddedToken], options: TokenizerOptions
    ) -> None:
        self.vocabulary = check_vocabulary(dict(vocabulary))
        self.added_tokens: dict[int, AddedToken] = {}
        self._update(added_tokens, options)

    @abstractmethod
    def _make_engine(self, added_tokens: Mapping[int, AddedToken], options: TokenizerOptions) -> Engine:
        """What finds the tokens of texts, from the vocabulary, the added tokens and the options."""

    def _update(self, added_tokens: Mapping[int, AddedToken], options: TokenizerOptions) -> None:
        """Take over added tokens and options, once all of it is seen to be right."""
        check_added(self.vocabulary, added_tokens)
        ids = self.vocabulary | {token.content: token_id for token_id, token in added_tokens.items()}
        missing = [token for token in options.special_tokens() if token not in ids]
        if missing:
            remedy = "add what is missing by add_special_tokens, or to the file"
            raise TokenizerError(f"the vocabulary lacks {', '.join(missing)}; {remedy}.")
        added = dict(added_tokens)
        for token in options.special_tokens():
            known = added.get(ids[token], AddedToken(token, normalized=False))
            added[ids[token]] = dataclasses.replace(known, special=True)
        added = dict(sorted(added.items()))
        if added != self.added_tokens or self._read_by_engine(options) != self._read_by_engine(self.options):
            self._engine = self._make_engine(added, options)
        self.added_tokens, self.options, self._ids = added, options, ids
        self._tokens = {token_id: token for token, token_id in ids.items()}

    @staticmethod
    def _read_by_engine(options: TokenizerOptions) -> tuple[Any, ...]:
        """The options that the engine depends on."""
        return tuple(getattr(options, name) for name in _ENGINE_OPTIONS)

    def set_options(self, **changes: Any) -> None:
        """Change some options; nothing changes if one is wrong.

        Raises:
            TokenizerError: a value is wrong, or a special token is not in the vocabulary.
        """
        self._update(self.added_tokens, dataclasses.replace(self.options, **changes))

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], *, special_tokens: bool = False
    ) -> int:
        """Add tokens, which are then found in texts as a whole; the model's table must grow with them.

        Args:
            new_tokens: one or several; a text stands for `AddedToken(text)`.
            special_tokens: they are special, and found before the text is normalized.

        Returns:
            How many were new: resize the model by `resize_token_embeddings(len(tokenizer))`.
        """
        listed = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else as_sequence("new_tokens", new_tokens)
        added = self._with_added([_as_added(token, special=special_tokens) for token in listed])
        before = len(self)
        self._update(added, self.options)
        return len(self) - before

    def _with_added(self, tokens: Iterable[AddedToken]) -> dict[int, AddedToken]:
        """The added tokens and these, which have their ids or get the next ones."""
        added, ids = dict(self.added_tokens), dict(self._ids)
        for token in tokens:
            token_id = ids.setdefault(token.content, len(ids))
            added[token_id] = token
        return added

    def add_special_tokens(self, special_tokens: Mapping[str, Any]) -> int:
        """Set special tokens by the names of their attributes, adding those that the vocabulary lacks.

        Args:
            special_tokens: such as `{"cls_token": "<s>", "additional_special_tokens": ["<user>", "<system>"]}`.

        Returns:
            How many tokens were new.

        Raises:
            ValueError: a name is not that of a special token.
        """
        if not isinstance(special_tokens, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"special_tokens must be a map of names to tokens, got {shown(special_tokens)}.")
        unknown = special_tokens.keys() - {*SPECIAL_NAMES, "additional_special_tokens"}
        if unknown:
            raise ValueError(f"special tokens have the names {', '.join(SPECIAL_NAMES)}, got {', '.join(unknown)}.")
        changes = dict(special_tokens)
        if "additional_special_tokens" in changes:
            more = changes["additional_special_tokens"]
            changes["additional_special_tokens"] = tuple(as_sequence("additional_special_tokens", more))
        tokens = [t for value in changes.values() for t in (value if isinstance(value, tuple) else (value,))]
        added = self._with_added([_as_added(token, special=True) for token in tokens])
        options = dataclasses.replace(self.options, **{name: _contents(value) for name, value in changes.items()})
        before = len(self)
        self._update(added, options)
        return len(self) - before

    def __len__(self) -> int:
        """How many ids there are: the rows that a model needs."""
        return max(self._ids.values(), default=-1) + 1

    @property
    def vocab_size(self) -> int:
        """How many tokens the vocabulary has, without those added to it."""
        return len(self.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        return dict(self._ids)

    def get_added_vocab(self) -> dict[str, int]:
        """The id of every token that is found in the text itself."""
        return {token.content: token_id for token_id, token in self.added_tokens.items()}

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens."""
        return list(self.options.special_tokens())

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens."""
        return [self._ids[token] for token in self.options.special_tokens()]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or of each of several; that of the unknown token where there is none."""
        unknown = self._ids[self.options.unk_token]
        if isinstance(tokens, str):
            return self._ids.get(tokens, unknown)
        listed = as_sequence("tokens", tokens)
        if not all(isinstance(token, str) for token in listed):
            raise TypeError("tokens must be a token or a list of tokens.")
        return [self._ids.get(token, unknown) for token in listed]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], *, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of several; the unknown token where there is none.

        Args:
            ids: of tokens.
            skip_special_tokens: leave special tokens out of several.
        """
        unknown = self.options.unk_token
        listed = as_ids(ids)
        if isinstance(listed, int):
            return self._tokens.get(listed, unknown)
        left_out = self._special_ids() if skip_special_tokens else ()
        return [self._tokens.get(i, unknown) for i in listed if i not in left_out]

    def _special_ids(self) -> set[int]:
        """The ids of all tokens that are special, those outside the options included."""
        return {token_id for token_id, token in self.added_tokens.items() if token.special}


def _as_added(token: str | AddedToken, *, special: bool) -> AddedToken:
    if isinstance(token, AddedToken):
        return dataclasses.replace(token, special=token.special or special)
    return AddedToken(token, normalized=not special, special=special)


def _contents(value: Any) -> Any:
    """The text of a token, or of each of several."""
    if isinstance(value, tuple):
        return tuple(_contents(token) for token in value)
    return value.content if isinstance(value, AddedToken) else value
