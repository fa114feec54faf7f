"""What both tokenizers are: text in, rows of ids out, and back. The two differ in how they find the tokens of a text.

Arguments and results are those of the reference's fast tokenizer, with one difference: a text that is longer than
`max_length` is an error unless truncation or windows are asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from distilbert.checkpoint.hub import find_folder
from distilbert.tokenization.batch_encoding import BatchEncoding, Origin
from distilbert.tokenization.checks import as_ids, as_sequence, shown
from distilbert.tokenization.decoding import clean_up_spaces, join_tokens
from distilbert.tokenization.encoding import Special, Strategy, read_truncation
from distilbert.tokenization.files import TokenizerContent, read_tokenizer, tokenizer_files
from distilbert.tokenization.options import AddedToken, Side, TokenizerOptions
from distilbert.tokenization.padding import (
    TensorType,
    check_lengths,
    check_tensor_type,
    pad_columns,
    read_columns,
    read_padding,
)
from distilbert.tokenization.reading import read_tokens
from distilbert.tokenization.samples import Text, read_samples
from distilbert.tokenization.tokens import TokenizerVocabulary
from distilbert.tokenization.vocabulary import read_vocabulary
from distilbert.tokenization.writing import write_tokenizer

_FILLS = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0)}


class TokenizerBase(TokenizerVocabulary):
    """Text to `input_ids` and `attention_mask`, and back.

    Example:
        tokenizer = DistilBertTokenizer.from_pretrained("folder")
        batch = tokenizer(["a text", "another, longer text"], padding=True, return_tensors="np")  # (2, seq) each
        texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    """

    model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab: Mapping[str, int] | str | os.PathLike[str],
        *,
        added_tokens: Mapping[int, AddedToken] | None = None,
        **options: Any,
    ) -> None:
        """A tokenizer from its parts.

        Args:
            vocab: the id of each token, or the path of a vocab.txt.
            added_tokens: tokens to be found in the text itself, by id.
            options: see `TokenizerOptions`.

        Raises:
            TokenizerError: an option is wrong, or the vocabulary lacks a special token. TypeError: unknown option.
        """
        super().__init__(_read_vocab(vocab), _read_added(added_tokens), _read_options(options))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process gets: all but the engine, which is made anew there."""
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._engine = self._make_engine(self.added_tokens, self.options)

    @property
    def _odd_to_first(self) -> bool:
        """Which text of a pair keeps the odd token, see `Truncation`."""
        return False

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Read the tokenizer of a folder: Hugging Face's files of any version, or a KerasHub preset's.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            revision: of the hub model: a branch, a tag or a commit hash; default its main branch.
            local_files_only: take a hub model from the cache, without the network.
            options: in place of those of the files.

        Raises:
            TokenizerError: no tokenizer is there, or not DistilBERT's. CheckpointError: the hub does not give it.
        """
        folder = find_folder(folder_or_hub_id, tokenizer_files, revision=revision, local_files_only=local_files_only)
        for name in options.keys() & {"vocab", "added_tokens"}:
            raise TypeError(f"{name} is read from the files and cannot be given to from_pretrained.")
        content = read_tokenizer(folder)
        return cls(content.vocabulary, added_tokens=content.added_tokens, **{**vars(content.options), **options})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.txt, tokenizer.json and their companions, which the reference reads too; all or nothing.

        These files have no place for the dialect of `DistilBertTokenizer`: give it to `from_pretrained` again.

        Raises:
            TokenizerError: the files cannot hold this vocabulary.
        """
        write_tokenizer(TokenizerContent(self.vocabulary, self.added_tokens, self.options), Path(folder))

    def __call__(
        self,
        text: Text | Sequence[Text],
        pair: Text | Sequence[Text] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = False,
        truncation: bool | Strategy | Literal["do_not_truncate"] = False,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        truncation_side: Side | None = None,
        return_tensors: TensorType | None = None,
        return_token_type_ids: bool = False,
        return_attention_mask: bool = True,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Encode a text or a batch of them.

        Args:
            text: a text or a list of them; with `is_split_into_words`, a list of words or a list of such lists.
            pair: the second text of each pair.
            add_special_tokens: put [CLS] before the text and [SEP] after each.
            padding: True or "longest": to the longest row of the batch; "max_length".
            truncation: True or "longest_first"; of pairs also "only_first", "only_second". Without it, a text that is
                too long is an error.
            max_length: tokens in a row, special tokens included; default `model_max_length`.
            stride: tokens that neighbouring windows share.
            is_split_into_words: texts are given as words; offsets then count inside each word.
            pad_to_multiple_of: round the width of padded rows up to a multiple of this.
            padding_side: in place of the tokenizer's.
            truncation_side: in place of the tokenizer's.
            return_tensors: None: lists; "np", "pt": int64 arrays; "tf", "jax": int32; of (batch, seq).
            return_token_type_ids: add 0 for tokens of the first text, 1 for the second; DistilBERT has no use for them.
            return_attention_mask: add 1 for tokens, 0 for padding.
            return_overflowing_tokens: what is cut becomes further rows, windows; `overflow_to_sample_mapping` names
                the text of each row.
            return_special_tokens_mask: add 1 for special tokens and padding, 0 for text.
            return_offsets_mapping: add the (start, end) of each token in its text, in code points.
            return_length: add the number of tokens in each row, padding included.

        Returns:
            `input_ids`, `attention_mask` and what was asked for: lists of rows, or one list for a single text.

        Raises:
            DataError: a text is too long, or no valid Unicode. ValueError, TypeError: an argument is wrong.
        """
        check_tensor_type(return_tensors)
        samples = read_samples(text, pair, split=is_split_into_words)
        pairs = samples.second is not None
        special = self._special(add=add_special_tokens, pairs=pairs)
        limit = self.model_max_length if max_length is None else max_length
        side = self.truncation_side if truncation_side is None else truncation_side
        windows = return_overflowing_tokens
        cut = read_truncation(
            truncation, limit, special, pairs=pairs, stride=stride, windows=windows, side=side, odd=self._odd_to_first
        )
        pad = read_padding(padding, limit, pad_to_multiple_of, self._padding_side(padding_side))
        tokens = read_tokens(self._engine, samples, cut, aligned=return_offsets_mapping)
        rows = tokens.rows(cut)
        columns: dict[str, list[Any]] = {"input_ids": [tokens.ids(row, special) for row in rows]}
        if return_token_type_ids:
            columns["token_type_ids"] = [row.types(special) for row in rows]
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = [row.special_mask(special) for row in rows]
        if return_offsets_mapping:
            columns["offset_mapping"] = [tokens.offsets(row, special) for row in rows]
        data = pad_columns(columns, self._fills(), pad, return_tensors, attention_mask=return_attention_mask)
        width = pad.columns(columns["input_ids"])
        if return_length:
            data["length"] = [max(len(ids), width or 0) for ids in columns["input_ids"]]
        if windows:
            data["overflow_to_sample_mapping"] = [row.sample for row in rows]
        elif not samples.batched and return_tensors is None:
            data = {name: values[0] for name, values in data.items()}
        origin = Origin(rows, special, width, pad.side, tokens.align, self.convert_ids_to_tokens)
        return BatchEncoding(data, origin)

    def encode(self, text: Text, pair: Text | None = None, **options: Any) -> list[int]:
        """The ids of a text or a pair; `options` as for a call."""
        return self(text, pair, **options)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, *, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, or of a pair one after the other, of any length."""
        samples = read_samples(text, pair, split=False)
        if samples.batched:
            raise TypeError("tokenize takes one text, or one pair; for many, call the tokenizer.")
        texts = samples.first + (samples.second or [])
        both = [self.convert_ids_to_tokens(ids) for ids in self._engine.encode(texts)]
        special = self._special(add=add_special_tokens, pairs=pair is not None)
        before, between, after = map(self.convert_ids_to_tokens, special)
        return [*before, *both[0], *between, *(both[1] if pair is not None else ()), *after]

    def decode(
        self,
        token_ids: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of the ids of one row, as far as the vocabulary kept it.

        Args:
            token_ids: a list or an array of any framework, (seq,), or one id.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: no space before punctuation; default the tokenizer's option.

        Returns:
            The tokens joined; an id that no token has gives nothing.
        """
        ids = as_ids(token_ids)
        left_out = self._special_ids() if skip_special_tokens else ()
        text = join_tokens(
            self._tokens[i] for i in ([ids] if isinstance(ids, int) else ids) if i in self._tokens and i not in left_out
        )
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return clean_up_spaces(text) if clean else text

    def batch_decode(self, sequences: Iterable[Any], **options: Any) -> list[str]:
        """The text of each row of ids; `options` as for `decode`."""
        return [self.decode(row, **options) for row in as_sequence("sequences", sequences)]

    def pad(
        self,
        encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_tensors: TensorType | None = None,
    ) -> BatchEncoding:
        """Pad what was encoded before, such as the rows that a data loader puts into one batch.

        Args:
            encoded: lists of rows by name, or a list of rows that each hold theirs by name; `input_ids` must be there.
            padding: as for a call, and so are the others.
            max_length: the width for "max_length".
            pad_to_multiple_of: round the width up to a multiple of this.
            padding_side: in place of the tokenizer's.
            return_tensors: None, "np", "pt", "tf" or "jax".

        Returns:
            What was given, padded, with an `attention_mask`. Names that a call does not give stay lists, unpadded.

        Raises:
            ValueError: there are no `input_ids`, or an argument is wrong.
        """
        check_tensor_type(return_tensors)
        columns, batched = read_columns(encoded)
        limit = self.model_max_length if max_length is None else max_length
        pad = read_padding(padding, limit, pad_to_multiple_of, self._padding_side(padding_side))
        fills = self._fills()
        known = {name: rows for name, rows in columns.items() if name in fills}
        check_lengths(known)
        new_mask = "attention_mask" not in columns
        data = {**columns, **pad_columns(known, fills, pad, return_tensors, attention_mask=new_mask)}
        if not batched and return_tensors is None:
            data = {name: rows[0] for name, rows in data.items()}
        return BatchEncoding(data)

    def num_special_tokens_to_add(self, *, pair: bool = False) -> int:
        """How many special tokens stand around a text, or around a pair."""
        return sum(map(len, self._special(add=True, pairs=pair)))

    def _special(self, *, add: bool, pairs: bool) -> Special[int]:
        if not add:
            return Special((), (), ())
        end = (self._ids[self.options.sep_token],)
        return Special((self._ids[self.options.cls_token],), end, end if pairs else ())

    def _fills(self) -> dict[str, Any]:
        """What padding has in each column."""
        return {"input_ids": self._ids[self.options.pad_token], **_FILLS}

    def _padding_side(self, side: Side | None) -> Side:
        return self.padding_side if side is None else side


def _read_vocab(vocab: Any) -> Mapping[str, int]:
    if isinstance(vocab, Mapping):
        return cast("Mapping[str, int]", vocab)
    if not isinstance(vocab, (str, os.PathLike)):
        raise TypeError(f"vocab must be a map of tokens to ids or the path of a vocab.txt, got {shown(vocab)}.")
    return read_vocabulary(Path(vocab))


def _read_added(added_tokens: Any) -> Mapping[int, AddedToken]:
    added = {} if added_tokens is None else added_tokens
    if not isinstance(added, Mapping) or not all(isinstance(token, AddedToken) for token in added.values()):
        raise TypeError(f"added_tokens must be a map of ids to AddedToken, got {shown(added)}.")
    return cast("Mapping[int, AddedToken]", added)


def _read_options(options: dict[str, Any]) -> TokenizerOptions:
    known = [field.name for field in dataclasses.fields(TokenizerOptions)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise TypeError(f"{name} is not an option{f'; did you mean {close[0]}?' if close else ' of a tokenizer.'}")
    return TokenizerOptions(**options)
