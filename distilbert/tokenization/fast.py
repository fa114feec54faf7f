"""WordPiece tokenization through the Rust `tokenizers` library, with the results of the reference's fast tokenizer.

The Rust side is built from vocabulary and options, never from a foreign tokenizer.json, and only finds tokens in texts:
regular expressions, replacements, fixed padding and truncation do not reach it. Long texts are given to it in parts,
which keeps its memory small and gives its threads work. ASCII texts whose offsets nobody asks for take the road of
engine.py, which knows the chunks of natural text by heart and is quicker than the library, and so do texts that cannot
be cut; their results are the same.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from distilbert.errors import DataError
from distilbert.tokenization.base import TokenizerBase
from distilbert.tokenization.encoding import Alignment
from distilbert.tokenization.engine import FastEngine
from distilbert.tokenization.options import CHARACTERS_PER_WORD, CONTINUATION, AddedToken, TokenizerOptions

_PART = 1 << 16  # characters of a text that are read at once


class RustEngine:
    """Finds the tokens of texts with the Rust library."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        added_tokens: Mapping[int, AddedToken],
        options: TokenizerOptions,
    ) -> None:
        """An engine with this vocabulary.

        Args:
            vocabulary: the id of each token.
            added_tokens: tokens to be found in the text itself, by id: the library gives them the same ids.
            options: how texts are normalized.
        """
        model = WordPiece(
            dict(vocabulary),
            unk_token=options.unk_token,
            max_input_chars_per_word=CHARACTERS_PER_WORD,
            continuing_subword_prefix=CONTINUATION,
        )
        self._tokenizer: Any = tokenizers.Tokenizer(model)
        self._tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=options.tokenize_chinese_chars,
            strip_accents=options.strip_accents,
            lowercase=options.do_lower_case,
        )
        self._tokenizer.pre_tokenizer = BertPreTokenizer()
        self._tokenizer.encode_special_tokens = options.split_special_tokens
        self._tokenizer.add_tokens([_as_rust(token) for _, token in sorted(added_tokens.items())])
        self._plain = FastEngine(vocabulary, added_tokens, options)
        self.boundary = self._plain.boundary

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if all(map(str.isascii, texts)):
            return self._plain.encode(texts)
        cuts = [None if text.isascii() else self._cuts(text) for text in texts]
        return _divided(texts, cuts, self._encode, self._plain.encode)

    def align(self, texts: Sequence[str]) -> list[Alignment]:
        """Tokens of each text and where they stand in it."""
        return _divided(texts, [self._cuts(text) for text in texts], self._align, self._plain.align)

    def _encode(self, texts: Sequence[str], cuts: Sequence[list[int]]) -> list[list[int]]:
        with _no_panic():
            found = self._tokenizer.encode_batch_fast(_parts(texts, cuts), add_special_tokens=False)
        ids = (encoding.ids for encoding in found)
        return [list(itertools.chain.from_iterable(itertools.islice(ids, len(where) - 1))) for where in cuts]

    def _align(self, texts: Sequence[str], cuts: Sequence[list[int]]) -> list[Alignment]:
        with _no_panic():
            found = iter(self._tokenizer.encode_batch(_parts(texts, cuts), add_special_tokens=False))
        return [_joined(list(itertools.islice(found, len(where) - 1)), where) for where in cuts]

    def _cuts(self, text: str) -> list[int] | None:
        """Where a text is cut into parts: its start, boundaries between words, its end.

        None if a part would be very long: the library needs hundreds of bytes for each of its characters.
        """
        cuts = [0]
        while len(text) - cuts[-1] > _PART:
            found = self.boundary and self.boundary.search(text, cuts[-1] + _PART, cuts[-1] + 2 * _PART)
            if not found:
                return None
            cuts.append(found.start())
        return [*cuts, len(text)]


def _divided(
    texts: Sequence[str],
    cuts: Sequence[list[int] | None],
    rust: Callable[[Sequence[str], Sequence[list[int]]], list[Any]],
    plain: Callable[[Sequence[str]], list[Any]],
) -> list[Any]:
    """What `rust` makes of texts that have cuts, and `plain` of the others, in the order of the texts."""
    others = iter(plain([text for text, where in zip(texts, cuts, strict=True) if where is None]))
    given = [(text, where) for text, where in zip(texts, cuts, strict=True) if where is not None]
    found = iter(rust([text for text, _ in given], [where for _, where in given]) if given else ())
    return [next(others if where is None else found) for where in cuts]


def _parts(texts: Sequence[str], cuts: Sequence[list[int]]) -> list[str]:
    return [text[a:b] for text, where in zip(texts, cuts, strict=True) for a, b in itertools.pairwise(where)]


def _joined(parts: Sequence[Any], cuts: Sequence[int]) -> Alignment:
    """The tokens of a text from those of its parts, which begin at `cuts`."""
    first, *rest = (Alignment(part.ids, part.offsets, part.word_ids) for part in parts)
    for part, start in zip(rest, cuts[1:], strict=False):
        first.extend(part, start)
    return first


class DistilBertTokenizerFast(TokenizerBase):
    """The tokenizer on the Rust library `tokenizers`.

    Example:
        tokenizer = DistilBertTokenizerFast.from_pretrained("folder")
        batch = tokenizer(["a text", "another, longer text"], padding=True, return_tensors="np")  # (2, seq) each
    """

    def _make_engine(self, added_tokens: Mapping[int, AddedToken], options: TokenizerOptions) -> RustEngine:
        return RustEngine(self.vocabulary, added_tokens, options)


def _as_rust(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(**dataclasses.asdict(token))


@contextmanager
def _no_panic() -> Generator[None]:
    """A panic of the Rust library, which is no `Exception`, as an error."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(f"the tokenizers library failed on a text: {error}") from None
