"""A vocabulary: the tokens of a vocab.txt, and which ids tokens may have.

Source: the reference's vocab.txt, a token a line, whose number is its id; transformers 4.57 and tokenizers 0.22 for the
ids of added tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from distilbert.checkpoint import safely
from distilbert.errors import CheckpointError, TokenizerError
from distilbert.tokenization.checks import shown
from distilbert.tokenization.options import AddedToken, check_token

MAX_VOCABULARY_BYTES = 16 << 20  # a vocab.txt of 120 000 tokens takes 1 MiB
MAX_TOKENS = 1 << 20


def read_vocabulary(path: Path) -> dict[str, int]:
    r"""The tokens of a vocab.txt with their ids.

    Lines end in "\n", "\r\n" or "\r", the last one need not; nothing else is taken off them, and an empty line is the
    token "". Of a token named twice the last line counts.

    Raises:
        TokenizerError: there is no such file, it is too large, not UTF-8 text, or plainly a file of another kind.
    """
    try:
        data = safely.read_bytes(path, MAX_VOCABULARY_BYTES)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from None
    text = _decode(path, data).replace("\r\n", "\n").replace("\r", "\n")
    count = text.count("\n")
    if count > MAX_TOKENS:
        raise TokenizerError(f"{path}: has {count} lines, more than the {MAX_TOKENS} allowed in a vocabulary.")
    lines = text.removesuffix("\n").split("\n") if text else []
    return {token: i for i, token in enumerate(lines)}


def _decode(path: Path, data: bytes) -> str:
    if safely.is_another_kind(data):
        raise TokenizerError(f"{path}: is not a vocabulary: it is {safely.what_is(data[:64])}.")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    if text.startswith("\ufeff"):
        detail = "begins with a byte order mark, which would belong to the first token; save it as UTF-8 without one"
        raise TokenizerError(f"{path}: {detail}.")
    return text


def vocabulary_text(vocabulary: Mapping[str, int]) -> str:
    r"""The text of a vocab.txt.

    An id that no token has is a line that repeats a later token: readers let the last line of a token count. A
    vocabulary gets gaps in no other way than by such a file.

    Raises:
        TokenizerError: a token holds a line end, which would make two lines of it.
    """
    lines: list[str] = []
    for token, i in sorted(vocabulary.items(), key=lambda item: item[1]):
        if "\n" in token or "\r" in token:
            raise TokenizerError(
                f"the token {shown(token)} holds a line end, which a vocab.txt cannot; leave it out of the vocabulary."
            )
        lines += [token] * (i + 1 - len(lines))
    return "".join(f"{line}\n" for line in lines)


def check_vocabulary(vocabulary: Any) -> dict[str, int]:
    """The vocabulary, if it gives each token an id of its own and leaves out at most half of the ids.

    Raises:
        TokenizerError: it does not.
    """
    if not isinstance(vocabulary, dict):
        raise TokenizerError("the vocabulary must be a map of tokens to ids.")
    found = cast("dict[str, int]", vocabulary)
    if len(found) > MAX_TOKENS:
        raise TokenizerError(f"the vocabulary has {len(found)} tokens, more than the {MAX_TOKENS} allowed.")
    for token, i in found.items():
        if not isinstance(token, str):  # pyright: ignore[reportUnnecessaryIsInstance] # from a file or a caller
            raise TokenizerError(f"the vocabulary must map texts to ids, got {shown(token)}.")
        if type(i) is not int or i < 0:
            raise TokenizerError(f"the id of {shown(token)} must be a number from 0, got {shown(i)}.")
    check_token("".join(found))
    if len(set(found.values())) != len(found):
        raise TokenizerError("the vocabulary gives an id twice; every token must have its own.")
    if max(found.values(), default=0) >= 2 * len(found) > 0:
        raise TokenizerError(f"the vocabulary of {len(found)} tokens has the id {max(found.values())}.")
    return found


def check_added(vocabulary: Mapping[str, int], added_tokens: Mapping[int, AddedToken]) -> None:
    """Refuse ids of added tokens that other readers of the files would not give them.

    The Rust library takes the vocabulary's id of a token that it has, and counts on from the number of tokens for
    others, whatever ids the files give: other ids would silently be read as these.

    Raises:
        TokenizerError: there are such ids.
    """
    new = len(vocabulary)
    for i, token in sorted(added_tokens.items()):
        expected = vocabulary.get(token.content, new)
        if i != expected:
            rule = f"it must be {expected}, its id in the vocabulary or the next one that is free"
            raise TokenizerError(f"the added token {shown(token.content)} cannot have the id {shown(i)}: {rule}.")
        new += token.content not in vocabulary
    if new > len(vocabulary) and max(vocabulary.values(), default=-1) >= len(vocabulary):
        raise TokenizerError(
            "the vocabulary leaves out ids, so no token can be added to it: readers count on from the number of tokens."
        )
