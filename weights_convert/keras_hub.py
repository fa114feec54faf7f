"""The tokenizer of a KerasHub preset, from a tokenizer of Hugging Face's files and back.

Vocabulary and options carry over; the rest is how KerasHub tokenizes: it folds case by NFKC, splits words at control
characters, and measures them in bytes.
"""

from __future__ import annotations

from pathlib import Path

from distilbert.checkpoint import keras_hub_config, safely
from distilbert.config import CONFIG_FILE, MAX_CONFIG_BYTES, DistilBertConfig
from distilbert.errors import TokenizerError
from distilbert.tokenization import OPTIONS_FILE, PRESET_VOCABULARY_FILE, VOCABULARY_FILE, has_tokenizer
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.tokenization.options import TokenizerOptions


def is_preset_folder(folder: Path) -> bool:
    """Whether `folder` is a KerasHub preset."""
    path = folder / CONFIG_FILE
    return path.is_file() and keras_hub_config.is_preset(safely.read_json(path, MAX_CONFIG_BYTES))


def pack_tokenizer(source: Path, preset: Path, config: DistilBertConfig) -> None:
    """Write the tokenizer of `source`, if it has one, into a preset with the model of that config.

    Raises:
        TokenizerError: it is broken, or KerasHub cannot express it.
    """
    if not has_tokenizer(source):
        return
    tokenizer = DistilBertTokenizerFast.from_pretrained(source)
    safely.write_text(preset / PRESET_VOCABULARY_FILE, "".join(f"{token}\n" for token in _tokens(source, tokenizer)))
    options = {"lowercase": tokenizer.do_lower_case, "strip_accents": tokenizer.options.strips_accents()}
    if not tokenizer.tokenize_chinese_chars:  # KerasHub reads this option, but itself never writes it
        options["split_on_cjk"] = False
    longest = config.max_position_embeddings
    keras_hub_config.write_tokenizer(preset, options, min(tokenizer.model_max_length or longest, longest))


def _tokens(source: Path, tokenizer: DistilBertTokenizerFast) -> list[str]:
    """The tokens by their ids, which must be what KerasHub reads from a file with a line for each."""
    special, theirs = tokenizer.all_special_tokens, list(TokenizerOptions().special_tokens())
    if special != theirs:
        raise TokenizerError(
            f"{source}: has the special tokens {', '.join(special)}; KerasHub's are {', '.join(theirs)}."
        )
    beyond = tokenizer.get_vocab().keys() - tokenizer.vocabulary.keys()
    if beyond:
        names = ", ".join(map(repr, sorted(beyond)))
        raise TokenizerError(f"{source}: adds the tokens {names} to its vocabulary, which KerasHub cannot.")
    tokens = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)
    for i, token in enumerate(tokens):
        if tokenizer.vocabulary[token] != i or token != token.rstrip() or len(token.splitlines()) > 1:
            raise TokenizerError(f"{source}: has a gap, a blank or a line end at id {i}, which KerasHub cannot keep.")
    return tokens


def unpack_tokenizer(preset: Path, destination: Path, config: DistilBertConfig) -> None:
    """Write the tokenizer of `preset`, if it has one, as vocab.txt and tokenizer_config.json.

    Raises:
        TokenizerError: it is broken, or not DistilBERT's.
    """
    if not (preset / PRESET_VOCABULARY_FILE).is_file():
        return
    tokenizer = DistilBertTokenizerFast.from_pretrained(preset)
    vocabulary = safely.read_bytes(preset / PRESET_VOCABULARY_FILE, safely.MAX_JSON_BYTES)
    (destination / VOCABULARY_FILE).write_bytes(vocabulary)
    options = {
        "tokenizer_class": "DistilBertTokenizer",
        "do_lower_case": tokenizer.do_lower_case,
        "strip_accents": tokenizer.strip_accents,
        "tokenize_chinese_chars": tokenizer.tokenize_chinese_chars,
        "model_max_length": config.max_position_embeddings,
    }
    safely.write_json(destination / OPTIONS_FILE, options)
