"""A tokenizer as the files that transformers 4 and 5 read: vocab.txt, tokenizer.json and what goes with them.

Source: what transformers 4.57 writes for its fast tokenizer; 5.23 reads it too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distilbert.checkpoint import safely
from distilbert.checkpoint.publishing import updated_folder
from distilbert.errors import TokenizerError
from distilbert.tokenization import OPTIONS_FILE, PRESET_VOCABULARY_FILE, TOKENIZER_FILE, VOCABULARY_FILE
from distilbert.tokenization.files import ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, TokenizerContent
from distilbert.tokenization.options import SPECIAL_NAMES, AddedToken, TokenizerOptions
from distilbert.tokenization.tokenizer_json import build, token_fields
from distilbert.tokenization.vocabulary import check_added, check_vocabulary, vocabulary_text

_FURTHER = "additional_special_tokens"


def write_tokenizer(content: TokenizerContent, folder: Path) -> None:
    """Write the files of a tokenizer into `folder`: all at once, or none, and listed in its MANIFEST.json.

    What else the folder holds, such as a model, stays.

    Raises:
        TokenizerError: the files cannot hold the tokenizer, or the folder is a KerasHub preset. CheckpointError:
            DestinationExists, `folder` is not a folder. OSError: the system refuses.
    """
    if (folder / PRESET_VOCABULARY_FILE).exists():
        raise TokenizerError(
            f"{folder}: is a KerasHub preset, whose {TOKENIZER_FILE} is a file of another kind; choose another folder."
        )
    with updated_folder(folder, [ADDED_TOKENS_FILE]) as temporary:
        write_files(content, temporary)


def write_files(content: TokenizerContent, folder: Path) -> None:
    """Write the files of a tokenizer into a folder that is not in place yet.

    Raises:
        TokenizerError: a token holds a line end, or an id is not one that readers would give to its token.
    """
    vocabulary, added, options = content
    check_added(check_vocabulary(vocabulary), added)
    new = {token.content: i for i, token in sorted(added.items()) if token.content not in vocabulary}
    safely.write_text(folder / VOCABULARY_FILE, vocabulary_text(vocabulary))
    safely.write_json(folder / TOKENIZER_FILE, build(vocabulary, added, options))
    safely.write_json(folder / OPTIONS_FILE, _options(added, options), sort_keys=True)
    safely.write_json(folder / SPECIAL_TOKENS_FILE, _special_map(added, options), sort_keys=True)
    if new:
        safely.write_json(folder / ADDED_TOKENS_FILE, new)


def _options(added: dict[int, AddedToken], options: TokenizerOptions) -> dict[str, Any]:
    """tokenizer_config.json; both versions know the further special tokens by their name in transformers 4."""
    values = dataclasses.asdict(options)
    if options.model_max_length is None:
        del values["model_max_length"]
    values[_FURTHER] = list(options.additional_special_tokens)
    tokens = {str(i): token_fields(token) for i, token in sorted(added.items())}
    return {**values, "added_tokens_decoder": tokens, "tokenizer_class": "DistilBertTokenizer"}


def _special_map(added: dict[int, AddedToken], options: TokenizerOptions) -> dict[str, Any]:
    """special_tokens_map.json: the texts of plain tokens, and of others objects, which lack `special` there."""
    tokens = {token.content: token for token in added.values()}
    named: dict[str, Any] = {}
    for name in SPECIAL_NAMES:
        text: str = getattr(options, name)
        token = tokens.get(text, _plain(text))
        named[name] = text if token == _plain(text) else _described(token)
    further = [_described(tokens.get(text, _plain(text))) for text in options.additional_special_tokens]
    return {**named, _FURTHER: further} if further else named


def _plain(text: str) -> AddedToken:
    return AddedToken(text, normalized=False, special=True)


def _described(token: AddedToken) -> dict[str, Any]:
    return {name: value for name, value in token_fields(token).items() if name != "special"}
