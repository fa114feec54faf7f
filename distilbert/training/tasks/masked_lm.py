"""Masked LM: texts of any length, cut into chunks; which tokens are to be guessed is drawn anew for each step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distilbert.tokenization.checks import check_choice, check_count
from distilbert.training.batches import Batch
from distilbert.training.masking import Masked, mask
from distilbert.training.randomness import generator
from distilbert.training.records import Faults, Record
from distilbert.training.tasks.base import Example, Task, int32

LogitPositions = Literal["masked", "all"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedLM(Task):
    """Records: `text`. Columns: `input_ids`, a chunk of a text of at most `max_length` tokens with [CLS] and [SEP].

    Chunks that are too short, or hardly known to the vocabulary, are left out and counted.

    Attributes:
        min_length: the fewest tokens of a chunk, [CLS] and [SEP] included.
        max_unknown: the share of [UNK] from which on a chunk is left out.
        seed: of the choice of tokens.
        probability, smoothing: see `masking.mask`.
        logit_positions: where a teacher is followed: at the masked tokens, or at all.
    """

    name: ClassVar[str] = "masked-lm"
    FIELDS: ClassVar[tuple[str, ...]] = ("text",)
    COLLATING: ClassVar[tuple[str, ...]] = (*Task.COLLATING, "seed", "probability", "smoothing", "logit_positions")

    min_length: int = 12
    max_unknown: float = 0.5
    seed: int = 0
    probability: float = 0.15
    smoothing: float = 0.7
    logit_positions: LogitPositions = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("min_length", self.min_length, 3)
        check_choice("logit_positions", self.logit_positions, ("masked", "all"))
        if self.max_unknown <= 0:
            raise ValueError(f"max_unknown must lie above 0, got {self.max_unknown}.")

    @property
    def problem(self) -> str:
        """Masked LM."""
        return "masked_lm"

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        """`input_ids`."""
        return {"input_ids": np.int32}

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def read(self, record: Record) -> str:
        """The text."""
        return self.text(record, "text")

    def encode(self, items: Sequence[str], faults: Faults) -> list[list[Example]]:
        """The chunks of each text."""
        encoded = self.tokenizer(
            list(items),
            truncation=True,
            max_length=self.limit,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        chunks: list[list[Example]] = [[] for _ in items]
        for i, ids in zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True):
            if len(ids) < self.min_length:
                faults.drop(f"shorter than {self.min_length} tokens")
            elif ids.count(self.tokenizer.unk_token_id) >= self.max_unknown * len(ids):
                faults.drop("unknown words")
            else:
                chunks[i].append({"input_ids": int32(ids)})
        return chunks

    def tally(self, examples: Sequence[Example]) -> NDArray[np.int64] | None:
        """How often each token occurs, (vocab_size,)."""
        return np.bincount(np.concatenate([e["input_ids"] for e in examples]), minlength=self.vocab_size)

    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """A row each, masked by (seed, step, micro)."""
        ids, real = self.padded([example["input_ids"] for example in examples], length_multiple)
        masked = mask(
            ids,
            real,
            self.tokenizer.all_special_ids,
            self.vocab_size,
            self.tokenizer.mask_token_id,
            generator(self.seed, "masking", step, micro),
            probability=self.probability,
            smoothing=self.smoothing,
            counts=self.counts,
        )
        positions, labels, weights = self._targets(ids, real, masked)
        by_loss = {"labels": weights}
        if self.distil:
            by_loss |= {"logits": np.ones(len(positions), np.float32), "hidden": real.astype(np.float32)}
        inputs = {"input_ids": masked.ids, "attention_mask": real}
        return Batch(inputs, {"positions": positions, "labels": labels}, by_loss)

    def _targets(
        self, ids: NDArray[np.int32], real: NDArray[np.int32], masked: Masked
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Positions, the tokens that were there, and whether they are to be guessed, (n,) each."""
        if self.logit_positions == "masked":
            return masked.positions, masked.labels, np.ones(len(masked.positions), np.float32)
        positions = np.flatnonzero(real).astype(np.int32)
        return positions, ids.reshape(-1)[positions], np.isin(positions, masked.positions).astype(np.float32)
