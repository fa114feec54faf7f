"""tokenizer.json: what the Rust library writes of a DistilBERT tokenizer, read as data and written.

Vocabulary, options and added tokens are taken from it; nothing else that such a file may describe (regular expressions,
replacements, fixed padding) is ever built. Source: the serialized form of tokenizers 0.22.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from distilbert.checkpoint import safely
from distilbert.errors import TokenizerError
from distilbert.tokenization.checks import shown
from distilbert.tokenization.options import CHARACTERS_PER_WORD, CONTINUATION, AddedToken, TokenizerOptions
from distilbert.tokenization.vocabulary import check_vocabulary

# What a tokenizer.json must be made of to be a DistilBERT tokenizer.
_PARTS = {
    "model": ("WordPiece",),
    "normalizer": ("BertNormalizer",),
    "pre_tokenizer": ("BertPreTokenizer",),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
    "decoder": ("WordPiece", None),
}
_FIXED: dict[str, dict[str, Any]] = {  # what its parts must say, if they say it
    "model": {"continuing_subword_prefix": CONTINUATION, "max_input_chars_per_word": CHARACTERS_PER_WORD},
    "normalizer": {"clean_text": True},
    "decoder": {"prefix": CONTINUATION},
}
_NORMALIZER = {  # option: its name in the normalizer
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_SIDES = {"padding_side": "padding", "truncation_side": "truncation"}
MAX_ADDED = 1 << 16  # added tokens, which cost far more than those of the vocabulary
_MAX_BYTES = 16 << 20  # a tokenizer.json of 120 000 tokens takes 6 MiB
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Stored(NamedTuple):
    """What a file holds of a tokenizer: options that it does not have are not in `options`."""

    vocabulary: dict[str, int]
    added_tokens: list[tuple[int, AddedToken]]
    options: dict[str, Any]


def read_object(path: Path) -> dict[str, Any]:
    """The contents of one of the JSON files of a tokenizer, whose size is known before anything is made of it.

    Raises:
        TokenizerError: it holds more lists and objects than added tokens need. CheckpointError: it is no such file.
    """
    data = safely.read_bytes(path, _MAX_BYTES)
    if data.count(b"[") + data.count(b"{") > 2 * MAX_ADDED:
        raise TokenizerError(f"{path}: holds more lists and objects than a tokenizer has; is it another kind of file?")
    return safely.parse_json(data, path)


def parse(path: Path, content: Mapping[str, Any]) -> Stored:
    """The tokenizer that the contents of a tokenizer.json describe.

    Raises:
        TokenizerError: it is not a DistilBERT tokenizer.
    """
    parts = {part: _part(path, content, part) for part in _PARTS}
    try:
        vocabulary = check_vocabulary(parts["model"].get("vocab"))
        added = [parse_entry(entry) for entry in as_list("added_tokens", content.get("added_tokens") or [])]
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    ids = vocabulary | {token.content: i for i, token in added}
    options = {
        ours: parts["normalizer"][theirs] for ours, theirs in _NORMALIZER.items() if theirs in parts["normalizer"]
    }
    options |= _template(path, parts["post_processor"], ids)
    options |= {side: "left" for side, part in _SIDES.items() if _is_left(content.get(part))}
    if "unk_token" in parts["model"]:
        options["unk_token"] = parts["model"]["unk_token"]
    # The reference cleans up after a tokenizer.json only where tokenizer_config.json tells it to.
    return Stored(vocabulary, added, options | {"clean_up_tokenization_spaces": False})


def _part(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    part: Any = content.get(name) or {}
    kind = part.get("type", "WordPiece" if name == "model" else None) if isinstance(part, dict) else part
    if kind not in _PARTS[name]:
        allowed = " or ".join(str(kind) for kind in _PARTS[name])
        raise TokenizerError(f"{path}: {name} must be {allowed} in a DistilBERT tokenizer, got {shown(kind)}.")
    found = cast("dict[str, Any]", part)
    for key, value in _FIXED.get(name, {}).items():
        if key in found and (found[key] != value or type(found[key]) is not type(value)):
            raise TokenizerError(f"{path}: {key} must be {value!r}, got {shown(found[key])}.")
    return found


def _template(path: Path, post_processor: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, str]:
    """The tokens put around a text."""
    match post_processor:
        case {
            "single": [
                {"SpecialToken": {"id": str(cls)}},
                {"Sequence": {"id": "A"}},
                {"SpecialToken": {"id": str(sep)}},
            ],
            "special_tokens": {**stored},
        }:
            given = {token: _template_id(stored.get(token)) for token in (cls, sep)}
        case {"cls": [str(cls), cls_id], "sep": [str(sep), sep_id]}:
            given = {cls: cls_id, sep: sep_id}
        case {"type": "BertProcessing"} if not {"cls", "sep"} & post_processor.keys():
            return {}
        case _:
            raise TokenizerError(f"{path}: post_processor must put one token before a text and one after it.")
    for token, i in given.items():
        if type(i) is not int or ids.get(token) != i:
            raise TokenizerError(f"{path}: post_processor gives {shown(token)} the id {shown(i)}, not its own.")
    return {"cls_token": cls, "sep_token": sep}


def _template_id(stored: Any) -> Any:
    match stored:
        case {"ids": [i]}:
            return i
        case _:
            return None


def _is_left(section: Any) -> bool:
    return isinstance(section, dict) and cast("dict[str, Any]", section).get("direction") == "Left"


def parse_entry(entry: Any) -> tuple[int, AddedToken]:
    """Id and token of an entry of `added_tokens`."""
    token = parse_token(entry)
    i = cast("dict[str, Any]", entry).get("id") if isinstance(entry, dict) else None
    if type(i) is not int or i < 0:
        raise TokenizerError(f"the id of the added token {shown(token.content)} must be a number, got {shown(i)}.")
    return i, token


def parse_token(entry: Any, *, special: bool = False) -> AddedToken:
    """An added token from its JSON object, or from its text alone; `special` whatever the object says.

    Raises:
        TokenizerError: it is neither, or a field of it has the wrong type.
    """
    if isinstance(entry, str):
        return AddedToken(entry, normalized=not special, special=special)
    if not isinstance(entry, dict):
        raise TokenizerError(f"a token must be a text or an object with its content, got {shown(entry)}.")
    found = cast("dict[str, Any]", entry)
    flags = {name: found[name] for name in _FLAGS if name in found}
    if special:
        flags["special"] = True
    return AddedToken(found.get("content", ""), **{"normalized": flags.get("special") is not True, **flags})


def as_list(name: str, value: Any) -> list[Any]:
    """The value, if it is a list of as many tokens as may be added."""
    if not isinstance(value, list):
        raise TokenizerError(f"{name} must be a list, got {shown(value)}.")
    found = cast("list[Any]", value)
    if len(found) > MAX_ADDED:
        raise TokenizerError(f"{name} has {len(found)} tokens, more than the {MAX_ADDED} allowed.")
    return found


def build(vocabulary: Mapping[str, int], added: Mapping[int, AddedToken], options: TokenizerOptions) -> dict[str, Any]:
    """The contents of the tokenizer.json of a tokenizer."""
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in (options.cls_token, options.sep_token))
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    last = {"SpecialToken": {"id": options.sep_token, "type_id": 1}}
    ids = {token.content: i for i, token in added.items()} | dict(vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token_fields(token)} for i, token in sorted(added.items())],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            **{theirs: getattr(options, ours) for ours, theirs in _NORMALIZER.items()},
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, last],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]}
                for token in (options.cls_token, options.sep_token)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": CONTINUATION, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": options.unk_token,
            **_FIXED["model"],
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        },
    }


def token_fields(token: AddedToken) -> dict[str, Any]:
    """The JSON object of an added token, in the order in which the library writes it."""
    return {"content": token.content, **{name: getattr(token, name) for name in _FLAGS}}
