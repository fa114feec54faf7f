"""Question answering: windows over the context, and the tokens in which the answer begins and ends.

Answers are those of SQuAD: {"text": [...], "answer_start": [...]} in code points of the context; none at all means
that the context does not answer the question. A window without the answer points to its first token, [CLS].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distilbert.checks import IGNORE
from distilbert.tokenization.checks import check_count, shown
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record
from distilbert.training.tasks.base import Example, Task, counting, int32

CLS = 0  # where [CLS] stands
OUTSIDE = -1  # the offset of a token that is not in the context


class _Item(NamedTuple):
    question: str
    context: str
    answers: list[str]
    starts: list[int]
    name: str
    known: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionAnswering(Task):
    """Records: `question`, `context`, `answers`, `id` (optional). The first answer is the one that is learned.

    Columns: `input_ids` of a window, and `start_positions` and `end_positions`, its tokens in which the answer begins
    and ends. For an evaluation also: `window`, its number in its question, so that 0 begins the next question;
    `text`, the part of the context that it covers, in UTF-8; `offsets`, the begin and end of each token in code points
    of that, flat, -1 for tokens that are not in the context; `answers`, all texts, as JSON in UTF-8; `id` in UTF-8.

    Attributes:
        stride: tokens that neighbouring windows share.
    """

    name: ClassVar[str] = "question-answering"
    LONGEST: ClassVar[int] = 384
    FIELDS: ClassVar[tuple[str, ...]] = ("question", "context", "answers", "id")

    stride: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("stride", self.stride, 0)

    @property
    def problem(self) -> str:
        """Question answering."""
        return "question_answering"

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        """Ids and positions; what an evaluation needs."""
        more = {"window": np.int32, "text": np.uint8, "offsets": np.int32, "answers": np.uint8, "id": np.uint8}
        positions = {"start_positions": np.int32, "end_positions": np.int32}
        return {"input_ids": np.int32, **positions, **(more if self.evaluation else {})}

    def read(self, record: Record) -> _Item:
        """The texts, and where the answers stand."""
        question, context = self.text(record, "question"), self.text(record, "context")
        name = self.value(record, "id")
        answers = self.value(record, "answers")
        if answers is None:
            if not self.distil:
                raise self.missing(record, "answers")
            return _Item(question, context, [], [], _name(name), known=False)
        texts, starts = self._answers_of(record, answers)
        for text, start in zip(texts, starts, strict=True):
            if context[start : start + len(text)] != text or start < 0 or not text:
                detail = f"has {shown(text)} at character {start}, where the context has another text"
                raise self.wrong(record, "answers", detail)
        return _Item(question, context, texts, starts, _name(name), known=True)

    def _answers_of(self, record: Record, value: Any) -> tuple[list[str], list[int]]:
        """Texts and starts."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        found = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        texts, starts = _list_of(found.get("text"), str), _list_of(found.get("answer_start"), int)
        if texts is None or starts is None or len(texts) != len(starts):
            form = '{"text": [...], "answer_start": [...]} with as many texts as whole numbers'
            raise self.wrong(record, "answers", f"must be {form}")
        return [self.checked_text(record, "answers", text) for text in texts], starts

    def encode(self, items: Sequence[_Item], faults: Faults) -> list[list[Example]]:
        """The windows of each question."""
        del faults
        encoded = self.tokenizer(
            [item.question for item in items],
            [item.context for item in items],
            truncation="only_second",
            truncation_side="right",
            max_length=self.limit,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        windows: list[list[Example]] = [[] for _ in items]
        owners = encoded["overflow_to_sample_mapping"]
        for i, (owner, ids) in enumerate(zip(owners, encoded["input_ids"], strict=True)):
            offsets = np.array(encoded["offset_mapping"][i], np.int32)  # (seq, 2)
            offsets[[part != 1 for part in encoded.sequence_ids(i)]] = OUTSIDE
            is_last = i + 1 == len(owners) or owners[i + 1] != owner
            position = len(windows[owner])
            windows[owner].append(self._example(items[owner], ids, offsets, position, is_last=is_last))
        return windows

    def _example(
        self, item: _Item, ids: Sequence[int], offsets: NDArray[np.int32], position: int, *, is_last: bool
    ) -> Example:
        start, end = IGNORE, IGNORE
        if item.known:
            start, end = CLS, CLS
            if item.starts:
                span = item.starts[0], item.starts[0] + len(item.answers[0])
                start, end = find_span(offsets, *span, is_first=position == 0, is_last=is_last)
        example: dict[str, NDArray[Any]] = {
            "input_ids": int32(ids),
            "start_positions": int32([start]),
            "end_positions": int32([end]),
        }
        return {**example, **self._for_evaluation(item, offsets, position)} if self.evaluation else example

    def _for_evaluation(self, item: _Item, offsets: NDArray[np.int32], position: int) -> Example:
        inside = offsets[:, 0] != OUTSIDE
        first = int(offsets[inside, 0].min(initial=len(item.context)))
        last = int(offsets[inside, 1].max(initial=first))
        moved = np.where(inside[:, None], offsets - first, OUTSIDE).astype(np.int32)
        return {
            "window": int32([position]),
            "text": _bytes(item.context[first:last]),
            "offsets": moved.reshape(-1),
            "answers": _bytes(json.dumps(item.answers, ensure_ascii=False)),
            "id": _bytes(item.name),
        }

    def collate(self, examples: Sequence[Example], *, step: int = 0, micro: int = 0, length_multiple: int = 1) -> Batch:
        """A row for each window."""
        del step, micro
        ids, mask = self.padded([example["input_ids"] for example in examples], length_multiple)
        names = ("start_positions", "end_positions")
        targets = {name: np.concatenate([example[name] for example in examples]) for name in names}  # (rows,)
        by_loss = {name: counting(positions).astype(np.float32) for name, positions in targets.items()}
        if self.distil:
            by_loss |= {"logits": np.ones(len(ids), np.float32), "hidden": mask.astype(np.float32)}
        return Batch({"input_ids": ids, "attention_mask": mask}, targets, by_loss)


def find_span(offsets: NDArray[np.int32], start: int, end: int, *, is_first: bool, is_last: bool) -> tuple[int, int]:
    """The tokens in which characters `start` to `end` (not included) begin and end; (0, 0) if they are not all there.

    Args:
        offsets: (seq, 2), of the tokens of a window, -1 where they are not in the context.
        start: of the answer in the context, in code points, and
        end: of it.
        is_first: nothing of the context comes before the window.
        is_last: nothing comes after it.
    """
    inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
    touched = np.flatnonzero((offsets[:, 0] != OUTSIDE) & (offsets[:, 0] < end) & (offsets[:, 1] > start))
    if not len(touched):
        return CLS, CLS
    begins = is_first or offsets[inside[0], 0] <= start
    ends = is_last or offsets[inside[-1], 1] >= end
    return (int(touched[0]), int(touched[-1])) if begins and ends else (CLS, CLS)


def _list_of(values: Any, kind: type) -> list[Any] | None:
    listed = cast("list[Any]", values) if isinstance(values, list) else None
    return listed if listed is not None and all(type(value) is kind for value in listed) else None


def _name(value: Any) -> str:
    """An id of any kind as a text."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(errors="backslashreplace"), np.uint8)
