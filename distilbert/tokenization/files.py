"""The tokenizer in a folder, from whichever files it has: vocabulary, added tokens and options, all checked.

Read are the files of transformers 4 and 5 (vocab.txt, tokenizer.json, tokenizer_config.json, special_tokens_map.json,
added_tokens.json) and the assets of a KerasHub preset. Where they disagree, what transformers 4.57 makes of them holds:

- tokenizer.json has the vocabulary, or else vocab.txt.
- An option is that of tokenizer_config.json, or else that of tokenizer.json, or else the default. The reference's
  DistilBERT class takes the default where tokenizer_config.json is silent; its generic class, and every other reader of
  tokenizer.json, does not.
- special_tokens_map.json and added_tokens.json are what older versions wrote: they are read only where
  tokenizer_config.json has no `added_tokens_decoder`, which else says all.
- Options that are not ours are ignored: they name classes, or have no effect on the reference either (`never_split`).
- Without a `model_max_length`, the limit is the number of positions in the model's config.json, if there is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from distilbert.checkpoint import manifest
from distilbert.checkpoint.hub import Source, first_of
from distilbert.config import CONFIG_FILE
from distilbert.errors import CheckpointError, TokenizerError
from distilbert.tokenization import (
    OPTIONS_FILE,
    PRESET_VOCABULARY_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    VOCABULARY_FILE,
)
from distilbert.tokenization.checks import UNLIMITED, shown
from distilbert.tokenization.options import SPECIAL_NAMES, AddedToken, TokenizerOptions
from distilbert.tokenization.tokenizer_json import Stored, as_list, parse, parse_entry, parse_token, read_object
from distilbert.tokenization.vocabulary import check_added, read_vocabulary

SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE = TOKENIZER_FILES[-2:]
_FILES = (*TOKENIZER_FILES, PRESET_VOCABULARY_FILE, CONFIG_FILE)
_EXTRA_NAMES = ("bos_token", "eos_token")  # DistilBERT has no use for them, but they are found in texts
_EXTRA_LISTS = ("additional_special_tokens", "extra_special_tokens")  # of transformers 4 and 5
_KNOWN = {field.name for field in dataclasses.fields(TokenizerOptions)} - {*SPECIAL_NAMES, *_EXTRA_LISTS}


class TokenizerContent(NamedTuple):
    """What the files of a tokenizer say.

    `added_tokens` are those to be found in a text itself, the special ones included, by their ids; those that the
    vocabulary lacks follow its last id without a gap.
    """

    vocabulary: dict[str, int]
    added_tokens: dict[int, AddedToken]
    options: TokenizerOptions


def tokenizer_files(source: Source) -> list[str]:
    """What a tokenizer needs of a model.

    Raises:
        MissingFileError: the model has no vocabulary.
    """
    return [first_of(source, TOKENIZER_FILE, VOCABULARY_FILE), *filter(source.has, _FILES)]


def read_tokenizer(folder: Path) -> TokenizerContent:
    """The tokenizer in `folder`.

    Raises:
        TokenizerError: there is none, its files are broken or contradict each other, they are another kind of
            tokenizer's, or not those that the manifest lists; or its ids are more than the model has rows for.
    """
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: there is no such folder; give that of {TOKENIZER_FILE} or {VOCABULARY_FILE}.")
    try:
        return manifest.read_whole(folder, lambda: _read_folder(folder), _FILES.__contains__)
    except (CheckpointError, TokenizerError) as error:
        named = str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}"
        raise TokenizerError(named) from None


def _read_folder(folder: Path) -> TokenizerContent:
    stored = _read_stored(folder)
    options = _read_if_there(folder / OPTIONS_FILE)
    added = list(stored.added_tokens)
    if "added_tokens_decoder" in options:
        added += _decoder_tokens(options["added_tokens_decoder"])
    else:
        _merge_special(options, _read_if_there(folder / SPECIAL_TOKENS_FILE))
        described = {token.content: token for token in _special_tokens(options)}
        added = [*_old_tokens(_read_if_there(folder / ADDED_TOKENS_FILE), described), *added]
    positions, rows = _model_sizes(_read_if_there(folder / CONFIG_FILE))
    content = _combine(stored, options, added, positions)
    _check_rows(content, rows)
    return content


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() or path.is_symlink() else {}


def _read_stored(folder: Path) -> Stored:
    """Vocabulary, and what comes with it."""
    if (folder / TOKENIZER_FILE).exists():
        content = read_object(folder / TOKENIZER_FILE)
        return (_parse_preset if "registered_name" in content else parse)(folder / TOKENIZER_FILE, content)
    if (folder / VOCABULARY_FILE).exists():
        return Stored(read_vocabulary(folder / VOCABULARY_FILE), [], {})
    raise TokenizerError(f"{folder}: holds neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}.")


def _parse_preset(path: Path, content: Mapping[str, Any]) -> Stored:
    """The tokenizer of a KerasHub preset, whose tokenizer.json is another file than transformers'."""
    match content:
        case {
            "class_name": "DistilBertTokenizer",
            "config": {
                "split": True,
                "suffix_indicator": "##",
                "oov_token": "[UNK]",
                "lowercase": lower,
                "strip_accents": strip,
                **rest,
            },
        }:
            pass
        case _:
            wanted = "it must be KerasHub's DistilBertTokenizer with its own split and markers"
            raise TokenizerError(f"{path}: is not a DistilBERT tokenizer's: {wanted}.")
    chinese = rest.get("split_on_cjk", True)
    options = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    return Stored(read_vocabulary(path.parent / PRESET_VOCABULARY_FILE), [], options)


def _decoder_tokens(decoder: Any) -> Iterator[tuple[int, AddedToken]]:
    """The tokens of `added_tokens_decoder`, whose keys are ids as texts."""
    if not isinstance(decoder, dict):
        raise TokenizerError(f"added_tokens_decoder must be an object, got {shown(decoder)}.")
    for key, entry in cast("dict[str, Any]", decoder).items():
        if not (key.isascii() and key.isdigit() and len(key) < len(str(UNLIMITED))) or not isinstance(entry, dict):
            raise TokenizerError(f"added_tokens_decoder must map ids to objects, got {shown(key)}: {shown(entry)}.")
        yield parse_entry({**cast("dict[str, Any]", entry), "id": int(key)})


def _old_tokens(ids: Mapping[str, Any], special: Mapping[str, AddedToken]) -> list[tuple[int, AddedToken]]:
    """The tokens of added_tokens.json, which knows only their ids."""
    entries = [{"content": text, "id": i} for text, i in ids.items()]
    found = [parse_entry(entry) for entry in as_list(ADDED_TOKENS_FILE, entries)]
    return [(i, special.get(token.content, token)) for i, token in found]


def _merge_special(options: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Take over what special_tokens_map.json says."""
    for name in (*SPECIAL_NAMES, *_EXTRA_NAMES):
        if name in found:
            options[name] = found[name]
    for name in _EXTRA_LISTS:
        if name in found:
            options[name] = [*_extra(name, options), *_extra(name, found)]


def _extra(name: str, options: Mapping[str, Any]) -> list[Any]:
    """A list of further special tokens; transformers also has them as a map of attributes to tokens."""
    value = options.get(name) or []
    return as_list(name, list(cast("dict[str, Any]", value).values()) if isinstance(value, dict) else value)


def _special_tokens(options: Mapping[str, Any]) -> list[AddedToken]:
    """Every special token that the options name, as they describe it."""
    named = [options[name] for name in SPECIAL_NAMES if name in options]
    further = [options[name] for name in _EXTRA_NAMES if options.get(name) is not None]
    further += [entry for name in _EXTRA_LISTS for entry in _extra(name, options)]
    return [parse_token(entry, special=True) for entry in (*named, *further)]


def _model_sizes(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """How many positions and rows of embeddings the model has, as far as its config.json says."""
    preset: Any = config.get("config") if "registered_name" in config else None
    names = ("max_sequence_length", "vocabulary_size") if preset else ("max_position_embeddings", "vocab_size")
    found = cast("Mapping[str, Any]", preset) if isinstance(preset, dict) else config
    positions, rows = (value if type(value := found.get(name)) is int and value > 0 else None for name in names)
    return positions, rows


def _combine(
    stored: Stored, options: Mapping[str, Any], added: list[tuple[int, AddedToken]], positions: int | None
) -> TokenizerContent:
    """The files' statements as one tokenizer; of several about a token the later one holds."""
    merged = {**stored.options, **options}
    known = {name: merged[name] for name in _KNOWN if name in merged}
    known["model_max_length"] = _limit(options, positions)
    special = {token.content: token for token in _special_tokens(merged)}
    named: dict[str, Any] = {name: parse_token(merged[name]).content for name in SPECIAL_NAMES if name in merged}
    plain = TokenizerOptions(**known, **named)
    further = tuple(text for text in special if text not in set(plain.special_tokens()))
    checked = dataclasses.replace(plain, additional_special_tokens=further)
    tokens = _with_ids(stored.vocabulary, added)
    _add_special(stored.vocabulary, tokens, checked, special)
    by_id = dict(sorted(tokens.values(), key=lambda entry: entry[0]))
    check_added(stored.vocabulary, by_id)
    return TokenizerContent(stored.vocabulary, by_id, checked)


def _limit(options: Mapping[str, Any], positions: int | None) -> Any:
    limit = options.get("model_max_length", options.get("max_len"))  # its name in old files
    unlimited = limit is None or (isinstance(limit, int | float) and limit >= UNLIMITED)
    return positions if unlimited else limit


def _with_ids(vocabulary: Mapping[str, int], added: list[tuple[int, AddedToken]]) -> dict[str, tuple[int, AddedToken]]:
    """The added tokens by their texts.

    Raises:
        TokenizerError: two statements give one token two ids, or two tokens one id.
    """
    found: dict[str, tuple[int, AddedToken]] = {}
    texts = {i: text for text, i in vocabulary.items()}
    for i, token in added:
        first = found.get(token.content, (i, token))[0]
        if first != i or texts.setdefault(i, token.content) != token.content:
            raise TokenizerError(
                f"the added token {shown(token.content)} cannot have the id {i}: "
                + (f"it has {first}, too." if first != i else f"{shown(texts[i])} has it.")
            )
        found[token.content] = i, token
    return found


def _add_special(
    vocabulary: Mapping[str, int],
    tokens: dict[str, tuple[int, AddedToken]],
    options: TokenizerOptions,
    described: Mapping[str, AddedToken],
) -> None:
    """Let every special token be found in texts; further ones that have no id get the next, as the reference does."""
    known = {*vocabulary, *tokens}
    missing = [text for name in SPECIAL_NAMES if (text := getattr(options, name)) not in known]
    if missing:
        remedy = f"add them to it, or name the special tokens that it has in {OPTIONS_FILE}"
        raise TokenizerError(f"the vocabulary lacks {', '.join(missing)}; {remedy}.")
    for text in options.special_tokens():
        default = described.get(text, AddedToken(text, normalized=False, special=True))
        i, token = tokens.get(text, (vocabulary.get(text, len(known)), default))
        known.add(text)
        tokens[text] = i, dataclasses.replace(token, special=True)


def _check_rows(content: TokenizerContent, rows: int | None) -> None:
    ids = {**content.vocabulary, **{token.content: i for i, token in content.added_tokens.items()}}
    last = max(ids, key=ids.__getitem__)
    if rows is not None and ids[last] >= rows:
        remedy = "use the model's own tokenizer, or resize the model's embeddings"
        raise TokenizerError(
            f"the token {shown(last)} has the id {ids[last]}, but the model knows only {rows} (vocab_size in "
            f"{CONFIG_FILE}); {remedy}."
        )
