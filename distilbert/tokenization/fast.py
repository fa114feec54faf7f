"""WordPiece tokenization through the Rust `tokenizers` library, with the results of the reference's fast tokenizer.

The files are read as data and the tokenizer is built from its vocabulary and options: nothing else that a foreign
tokenizer.json may describe (regular expressions, replacements, fixed padding) reaches the library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from distilbert.checkpoint import manifest, safely
from distilbert.checkpoint.hub import Source, find_folder, first_of
from distilbert.errors import CheckpointError, DataError, TokenizerError
from distilbert.tokenization import (
    OPTIONS_FILE,
    PRESET_VOCABULARY_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    VOCABULARY_FILE,
)

SPECIAL_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
_FILES = (*TOKENIZER_FILES, PRESET_VOCABULARY_FILE)
UNLIMITED = 1 << 30  # tokenizer_config.json writes a huge number for "no limit"
_CHARACTERS_PER_WORD = 100
_MIN_LENGTH = 2

# What a tokenizer.json must be made of to be a DistilBERT tokenizer.
_PARTS = {
    "model": ("WordPiece",),
    "normalizer": ("BertNormalizer",),
    "pre_tokenizer": ("BertPreTokenizer",),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
}


class DistilBertTokenizerFast:
    """Text to `input_ids` and `attention_mask`.

    Example:
        tokenizer = DistilBertTokenizerFast.from_pretrained("folder")
        batch = tokenizer(["a text", "another, longer text"])  # arrays of (2, seq), padded on the right
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        *,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        model_max_length: int | None = None,
        added_tokens: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise TokenizerError(f"the vocabulary lacks {', '.join(missing)}.")
        self.vocabulary, self.added_tokens, self.model_max_length = vocabulary, added_tokens, model_max_length
        self.do_lower_case, self.tokenize_chinese_chars = do_lower_case, tokenize_chinese_chars
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        model = WordPiece(dict(vocabulary), unk_token="[UNK]", max_input_chars_per_word=_CHARACTERS_PER_WORD)  # noqa: S106
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = BertNormalizer(  # pyright: ignore[reportAttributeAccessIssue]
            clean_text=True,
            handle_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            lowercase=do_lower_case,
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        self._tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
        self._add(added_tokens)
        ids = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        self._tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
        )
        self.pad_token_id = vocabulary["[PAD]"]

    def _add(self, added_tokens: Sequence[Mapping[str, Any]]) -> None:
        """Tokens that the files add to the vocabulary must get the ids that the files give them."""
        for entry in sorted(added_tokens, key=lambda token: token["id"]):
            options = {key: entry[key] for key in ("single_word", "lstrip", "rstrip", "normalized") if key in entry}
            token = AddedToken(entry["content"], special=entry.get("special", False), **options)
            self._tokenizer.add_tokens([token])
            if self._tokenizer.token_to_id(entry["content"]) != entry["id"]:
                raise TokenizerError(f"the added token {entry['content']!r} cannot have the id {entry['id']}.")

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read tokenizer.json, or else vocab.txt, with the options of tokenizer_config.json; or a KerasHub preset's.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            revision: of the hub model: a branch, a tag or a commit hash; default its main branch.
            local_files_only: take a hub model from the cache, without the network.

        Raises:
            TokenizerError: neither file is there, or it is not a DistilBERT tokenizer's. CheckpointError: the hub does
                not give them.
        """
        folder = find_folder(folder_or_hub_id, _files, revision=revision, local_files_only=local_files_only)
        try:
            vocabulary, options = manifest.read_whole(folder, lambda: _read_folder(folder), _FILES.__contains__)
            return cls(vocabulary, **options)
        except (CheckpointError, TokenizerError) as error:
            named = str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}"
            raise TokenizerError(named) from None
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            detail = f"the tokenizer files are not a DistilBERT tokenizer's ({error!r})"
            raise TokenizerError(f"{folder}: {detail}.") from None

    def __call__(
        self, texts: str | Sequence[str], *, truncation: bool = False, max_length: int | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """Token ids of a batch, padded on the right to its longest text.

        Args:
            texts: one text or a list of them.
            truncation: cut a text that is longer than `max_length`; otherwise that is an error.
            max_length: in tokens, [CLS] and [SEP] included; default `model_max_length`.

        Returns:
            `input_ids` and `attention_mask` of (batch, seq), int64.

        Raises:
            DataError: a text is too long, or no valid Unicode.
        """
        ids = self.encode_batch(
            [texts] if isinstance(texts, str) else texts, truncation=truncation, max_length=max_length
        )
        return self.pad(ids)

    def pad(self, ids: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        """Token ids of a batch as arrays of (batch, seq), padded on the right, with the mask of what is real."""
        input_ids = np.full((len(ids), max(map(len, ids), default=0)), self.pad_token_id, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def encode_batch(
        self, texts: Sequence[str], *, truncation: bool = False, max_length: int | None = None
    ) -> list[list[int]]:
        """Token ids of each text, [CLS] and [SEP] included, without padding. Arguments as for a call."""
        limit = self.model_max_length if max_length is None else max_length
        if limit is not None and limit < _MIN_LENGTH:
            raise ValueError(f"max_length must be at least {_MIN_LENGTH}, for [CLS] and [SEP], got {limit}.")
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string; put it into a list.")
        try:
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        except (UnicodeEncodeError, TypeError):
            raise DataError("every text must be a string of valid Unicode, without lone surrogates.") from None
        for i, tokens in enumerate(ids):
            if limit is not None and len(tokens) > limit:
                if not truncation:
                    remedy = "truncate it (truncation=True) or split it"
                    raise DataError(f"text {i} has {len(tokens)} tokens, more than {limit}: {remedy}.")
                ids[i] = [*tokens[: limit - 1], tokens[-1]]  # [SEP] stays
        return ids


def _files(source: Source) -> list[str]:
    """What a tokenizer needs of a model."""
    return [first_of(source, TOKENIZER_FILE, VOCABULARY_FILE), *filter(source.has, _FILES)]


def _read_folder(folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Vocabulary and options, from whichever files are there."""
    options: dict[str, Any] = {}
    if (folder / TOKENIZER_FILE).exists():
        vocabulary, options = _read_tokenizer(folder / TOKENIZER_FILE)
    elif (folder / VOCABULARY_FILE).exists():
        vocabulary = _read_vocabulary(folder / VOCABULARY_FILE)
    else:
        raise TokenizerError(f"{folder}: holds neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}.")
    if (folder / OPTIONS_FILE).exists():
        options |= _known_options(safely.read_json(folder / OPTIONS_FILE))
    return vocabulary, options


def _read_tokenizer(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Vocabulary and options of a tokenizer.json."""
    content = safely.read_json(path)
    if "registered_name" in content:
        return _read_preset(path, content)
    for part, allowed in _PARTS.items():
        kind = (content.get(part) or {}).get("type", "WordPiece" if part == "model" else None)
        if kind not in allowed:
            raise TokenizerError(
                f"{path}: {part} must be {' or '.join(allowed)} in a DistilBERT tokenizer, got {kind}."
            )
    model, normalizer = content["model"], content["normalizer"]
    wanted = {
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": _CHARACTERS_PER_WORD,
    }
    for key, value in wanted.items():
        if model.get(key, value) != value:
            raise TokenizerError(f"{path}: {key} must be {value!r}, got {model[key]!r}.")
    vocabulary = _checked(path, model["vocab"])
    options = {
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        "added_tokens": [token for token in content.get("added_tokens", []) if token["content"] not in SPECIAL_TOKENS],
    }
    return vocabulary, options


def _read_preset(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Vocabulary and options of a KerasHub preset, whose tokenizer.json has the contents `content`."""
    found = content["config"]
    wanted = {"split": True, "suffix_indicator": "##", "oov_token": "[UNK]"}
    if content["class_name"] != "DistilBertTokenizer" or any(found[key] != value for key, value in wanted.items()):
        raise TokenizerError(f"{path}: must describe KerasHub's DistilBertTokenizer with its own split and markers.")
    options = {
        "do_lower_case": found["lowercase"],
        "strip_accents": found["strip_accents"],
        "tokenize_chinese_chars": found.get("split_on_cjk", True),
    }
    return _read_vocabulary(path.parent / PRESET_VOCABULARY_FILE), options


def _read_vocabulary(path: Path) -> dict[str, int]:
    """The tokens of a vocab.txt: a line each, its number is the id; of a token named twice the last counts."""
    try:
        text = safely.read_bytes(path, safely.MAX_JSON_BYTES).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return _checked(path, {token: i for i, token in enumerate(lines)}, gaps=True)


def _checked(path: Path, vocabulary: Any, *, gaps: bool = False) -> dict[str, int]:
    ids = list(vocabulary.values())
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) != len(ids):
        raise TokenizerError(f"{path}: the vocabulary gives an id twice, or one that is not a number.")
    if not gaps and max(ids, default=0) >= 2 * len(ids):
        raise TokenizerError(f"{path}: the vocabulary of {len(ids)} tokens has the id {max(ids)}.")
    return vocabulary


def _known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    known = {name: options[name] for name in names if name in options}
    limit = options.get("model_max_length")
    if isinstance(limit, int) and _MIN_LENGTH <= limit < UNLIMITED:
        known["model_max_length"] = limit
    return known
