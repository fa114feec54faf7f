"""Sentence embedding: pairs whose vectors should be alike, or as a score says; or texts alone, for a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from distilbert.tokenization.checks import shown
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record
from distilbert.training.tasks.base import Example, Task, encode_pairs, int32


class _Item(NamedTuple):
    text: str
    positive: str | None
    score: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SentenceEmbedding(Task):
    """Records: `text`, `positive`, `score` (with `scored`). A teacher alone needs no `positive`.

    Columns: `input_ids`; `positive_ids`, empty where there is none; `scores`: the cosine that the pair should have.

    Attributes:
        paired: records are pairs.
        scored: pairs have scores, from -1 to 1, that their cosines should meet; else each anchor should be nearer to
            its positive than to the others of the batch.
    """

    name: ClassVar[str] = "sentence-embedding"
    FIELDS: ClassVar[tuple[str, ...]] = ("text", "positive", "score")

    paired: bool = True
    scored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paired and (self.scored or not self.distil):
            raise ValueError("texts without pairs teach only where a teacher is followed, and have no scores.")

    @property
    def problem(self) -> str:
        """Sentence embedding."""
        return "sentence_embedding"

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        """`input_ids`, and of pairs `positive_ids` and `scores`."""
        pairs = {"positive_ids": np.int32} if self.paired else {}
        return {"input_ids": np.int32, **pairs, **({"scores": np.float32} if self.scored else {})}

    def read(self, record: Record) -> _Item:
        """The texts and their score."""
        text = self.text(record, "text")
        positive = self.text(record, "positive") if self.paired else None
        return _Item(text, positive, self._score_of(record) if self.scored else None)

    def _score_of(self, record: Record) -> float:
        value = self.value(record, "score")
        if value is None:
            raise self.missing(record, "score")
        try:
            score = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            score = float("nan")
        if not -1 <= score <= 1:
            raise self.wrong(record, "score", f"must be a number from -1 to 1, got {shown(value)}")
        return score

    def encode(self, items: Sequence[_Item], faults: Faults) -> list[list[Example]]:
        """One example each."""
        del faults
        anchors = self._encoded([item.text for item in items])
        positives = self._encoded([item.positive for item in items if item.positive is not None])
        examples: list[Example] = []
        for i, (item, ids) in enumerate(zip(items, anchors, strict=True)):
            pair = {"positive_ids": int32(positives[i])} if self.paired else {}
            score = {"scores": np.array([item.score], np.float32)} if self.scored else {}
            examples.append({"input_ids": int32(ids), **pair, **score})
        return [[example] for example in examples]

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return encode_pairs(self.tokenizer, texts, [None] * len(texts), self.limit)

    def length(self, example: Example) -> int:
        """The tokens of the longer text."""
        return max(len(example["input_ids"]), len(example.get("positive_ids", ())))

    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """A row each, or the anchors and then, in the same order, their positives."""
        del step, micro
        rows = [example["input_ids"] for example in examples]
        if self.paired:
            rows += [example["positive_ids"] for example in examples]
        ids, mask = self.padded(rows, length_multiple)
        targets = {"labels": np.concatenate([e["scores"] for e in examples])} if self.scored else {}  # (pairs,)
        by_loss = {"labels": np.ones(len(examples), np.float32)} if self.paired else {}
        if self.distil:
            by_loss |= {"hidden": np.ones(len(rows), np.float32)}
        return Batch({"input_ids": ids, "attention_mask": mask}, targets, by_loss, paired=self.paired)
