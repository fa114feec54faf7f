"""Fast inference, what three frameworks share: which calls the fast path takes, and the tokens it gets, unpadded.

A batch of texts of unlike length is mostly padding. Here it becomes `Tokens`: the kept tokens of all rows one after the
other, the longest row first, so that rows of one length stand together. A backend computes on these, and gives back
what its model gives, 0 at dropped positions. What the fast path does not take goes to the model itself.
Axes: batch, seq, and total, the kept tokens of a batch.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from distilbert import outputs
from distilbert.checks import check_choices, check_inputs, check_no_unknown, check_pooling_mask
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.weight_map import HEADS

Model = TypeVar("Model")
Array = NDArray[Any]

PRECISIONS = ("float32", "bfloat16", "int8")
MODEL = "DistilBertModel"
MASKED_LM = "DistilBertForMaskedLM"
SEQUENCE_CLASSIFICATION = "DistilBertForSequenceClassification"
TOKEN_CLASSIFICATION = "DistilBertForTokenClassification"  # noqa: S105 - a class
CHOICES = "DistilBertForMultipleChoice"
ANSWERS = "DistilBertForQuestionAnswering"
EMBEDDING = "DistilBertForSentenceEmbedding"
FIRST_TOKEN_HEADS = (SEQUENCE_CLASSIFICATION, CHOICES)
OUTPUTS: dict[str, Any] = {
    MODEL: outputs.BaseModelOutput,
    MASKED_LM: outputs.MaskedLMOutput,
    SEQUENCE_CLASSIFICATION: outputs.SequenceClassifierOutput,
    TOKEN_CLASSIFICATION: outputs.TokenClassifierOutput,
    CHOICES: outputs.MultipleChoiceOutput,
    ANSWERS: outputs.QuestionAnsweringOutput,
    EMBEDDING: outputs.SentenceEmbeddingOutput,
}
TOKEN_ARGUMENTS = ("input_ids", "attention_mask", "position_ids")
MODEL_ONLY = (
    "hidden states, attentions, inputs_embeds, head_mask, masks with an axis for queries, and rows whose first token "
    "is dropped where the head reads it (or that have none, for an embedding)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """The kept tokens of a batch, row after row, the longest row first.

    Attributes:
        ids: (total,), int32.
        positions: of each token, (total,), int32.
        lengths: kept tokens of each row, (rows,), int32, falling; a row without any is not there.
        rows: which row of the batch each is, (rows,), int32.
        places: of each token in the padded batch, counted through all rows, (total,), int64.
        shape: (batch, seq) of the padded batch.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    lengths: NDArray[np.int32]
    rows: NDArray[np.int32]
    places: NDArray[np.int64]
    shape: tuple[int, int]

    @property
    def starts(self) -> NDArray[np.int32]:
        """Where each row begins, and the end of the last, (rows + 1,): kernels call it cu_seqlens."""
        return np.concatenate(([0], np.cumsum(self.lengths))).astype(np.int32)

    @property
    def dense(self) -> bool:
        """Whether nothing is dropped and the rows stand in their order, so that flat results need a new shape only."""
        return len(self.ids) == self.shape[0] * self.shape[1]

    def runs(self) -> Iterator[tuple[int, int]]:
        """(rows, length) of each run of rows of one length, in order."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        yield from zip(counts[::-1].tolist(), lengths[::-1].tolist(), strict=True)

    def chunks(self, budget: int) -> Iterator[Tokens]:
        """Parts of whole rows, each of at most `budget` tokens or a single row; `places` stay those of the batch."""
        starts, first = self.starts, 0
        while first < len(self.lengths):
            last = max(int(np.searchsorted(starts, starts[first] + budget, side="right")) - 1, first + 1)
            part = slice(starts[first], starts[last])
            yield Tokens(
                self.ids[part], self.positions[part], self.lengths[first:last], self.rows[first:last],
                self.places[part], self.shape,
            )  # fmt: skip
            first = last


def tokens_of(input_ids: Array, attention_mask: Array | None, position_ids: Array | None) -> Tokens:
    """The kept tokens of a padded batch. All arguments (batch, seq), position_ids (1, seq) too; checked before."""
    batch, seq = input_ids.shape
    keep = np.ones((batch, seq), bool) if attention_mask is None else attention_mask != 0
    counts = keep.sum(1)
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    row, column = np.nonzero(keep[order])  # (total,) each
    places = order[row] * seq + column
    positions = column if position_ids is None else np.broadcast_to(position_ids, (batch, seq)).reshape(-1)[places]
    return Tokens(
        input_ids.reshape(-1)[places].astype(np.int32), positions.astype(np.int32), counts[order].astype(np.int32),
        order.astype(np.int32), places, (batch, seq),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Description:
    """What an optimized model uses.

    Attributes:
        backend, head, precision, device: of the model; the precision of products, not of what is between them.
        kernels: what computes each part, by its name.
        fallbacks: what was wanted and is not there, and why; and which calls go to the model.
        threads: that the framework computes with.
    """

    backend: str
    head: str
    precision: str
    device: str
    threads: int
    kernels: dict[str, str]
    fallbacks: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.head} ({self.backend}), {self.precision} on {self.device}, {self.threads} threads"]
        lines += [f"  {part}: {kernel}" for part, kernel in self.kernels.items()]
        return "\n".join([*lines, *(f"  fallback: {text}" for text in self.fallbacks)])


class FrozenModel(abc.ABC, Generic[Model]):
    """A model's weights as they were, in the form that computes fastest; called as the model is, with equal results.

    What `inference.optimize` of a backend returns. Results are float32, and 0 at dropped positions. A call that the
    fast path does not take returns what the model itself does at that time, in its dtype, for the whole batch. Several
    threads may call it.
    """

    def __init__(
        self, config: DistilBertConfig, head: str, pooling: PoolingConfig | None, precision: str, model: Model | None
    ) -> None:
        """What a backend's class is made from; see `identity`.

        Args:
            config: of the model.
            head: name of its class.
            pooling: of a sentence embedding.
            precision: of the products.
            model: for the calls that the fast path does not take; None if it was not kept.
        """
        self.config, self.head, self.pooling, self.precision = config, head, pooling, precision
        self._reads_first_token = reads_first_token(head, pooling)
        self._model = model

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """What the model returns. Arguments as for the model, without labels.

        Args:
            input_ids: also a list of lists of ids, of unlike lengths, unpadded; then without a mask. Results are as
                wide as the longest. Multiple choice takes lists of choices, of equally many.
            attention_mask: as for the model; one with an axis for queries goes to the model.
            position_ids: as for the model.
            inputs_embeds: goes to the model.
            head_mask: goes to the model.
            output_hidden_states: goes to the model.
            output_attentions: goes to the model.
            unknown: refused by name.

        Raises:
            ValueError: an argument does not fit; or the call must go to the model, and it was not kept.
            TypeError: an argument that DistilBERT does not have.
        """
        check_no_unknown(unknown)
        if isinstance(input_ids, list | tuple) and attention_mask is None:
            input_ids, attention_mask = padded(input_ids, self.config.pad_token_id or 0)
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids,
            "inputs_embeds": inputs_embeds, "head_mask": head_mask,
        }  # fmt: skip
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        maps = self.config.output_attentions if output_attentions is None else output_attentions
        if states or maps or inputs_embeds is not None or head_mask is not None:
            return self._by_model(given, output_hidden_states=states, output_attentions=maps)
        ids, mask, positions = (self._to_host(name, given[name]) for name in TOKEN_ARGUMENTS)
        choices = None
        if self.head == CHOICES:
            choices = check_choices(ids, mask, positions, None)
            ids, mask, positions = (None if x is None else x.reshape(-1, *x.shape[2:]) for x in (ids, mask, positions))
        elif self.head == EMBEDDING:
            check_pooling_mask(mask)
        check_inputs(self.config, ids, mask, positions, None, None, lambda array: array)
        if mask is not None and not self._takes(mask):
            return self._by_model(given)
        return self._compute(tokens_of(ids, mask, positions), choices)  # pyright: ignore[reportArgumentType]

    def _takes(self, mask: Array) -> bool:
        """Whether the fast path has what the head reads: the first token of every row, or one at least."""
        if mask.ndim > 2:
            return False
        if self._reads_first_token:
            return bool(mask[:, 0].all())
        return self.head != EMBEDDING or bool(mask.any(1).all())

    def _by_model(self, given: dict[str, Any], **options: Any) -> Any:
        if self._model is None:
            raise ValueError(f"{MODEL_ONLY} need the model itself: call inference.optimize with keep_model=True.")
        return self._call_model(self._model, **given, **options)

    @property
    def _model_calls(self) -> str:
        """Which calls the fast path does not take, and what becomes of them, for a description."""
        always = self.config.output_hidden_states or self.config.output_attentions
        what = f"every call, since the config asks for states or attentions; {MODEL_ONLY}" if always else MODEL_ONLY
        return f"{what}: " + ("refused, the model was not kept" if self._model is None else "by the model itself")

    @abc.abstractmethod
    def describe(self) -> Description:
        """What it uses: precision, kernels, fallbacks."""

    @abc.abstractmethod
    def _to_host(self, name: str, value: Any) -> Array | None:
        """The argument as a NumPy array; None stays None.

        Raises:
            ValueError: it cannot be one.
        """

    @abc.abstractmethod
    def _call_model(self, model: Model, **arguments: Any) -> Any:
        """What the model itself returns, in evaluation mode."""

    @abc.abstractmethod
    def _compute(self, tokens: Tokens, choices: int | None) -> Any:
        """The head's result, a NamedTuple of the framework's arrays in the shape of the padded batch.

        `choices` is how many rows stand for one result of multiple choice.
        """


def reads_first_token(head: str, pooling: PoolingConfig | None) -> bool:
    """Whether a head needs the hidden states of first tokens only."""
    return head in FIRST_TOKEN_HEADS or (pooling is not None and pooling.mode == "cls")


def identity(model: Any) -> tuple[DistilBertConfig, str, PoolingConfig | None]:
    """A model's config, the name of its class, and its pooling, if it has one."""
    return model.config, type(model).__name__, getattr(getattr(model, "pooling", None), "config", None)


def check_model(model: Any) -> None:
    """Refuse what is no model of this package.

    Raises:
        TypeError: it is none.
    """
    if type(model).__name__ not in HEADS or not hasattr(model, "tensor_specs"):
        raise TypeError(f"model must be a DistilBERT model of this package, got {type(model).__name__}.")


def check_precision(precision: str) -> str:
    """The precision itself.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    return precision


def check_finite(arrays: Iterable[Array], precision: str) -> None:
    """Refuse weights that are not finite where bytes would hide it, which is in int8.

    Raises:
        ValueError: there is a NaN or an infinity.
    """
    if precision == "int8" and not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("precision 'int8' needs finite weights, and the model has a NaN or an infinity.")


def padded(input_ids: Sequence[Any], pad_token_id: int) -> tuple[Array, Array]:
    """Lists of ids as an array and its mask: (batch, seq), or (batch, num_choices, seq) for lists of choices.

    Raises:
        ValueError: they are no lists of ids, or empty.
    """
    if input_ids and all(isinstance(row, list | tuple) and row and _is_list(row[0]) for row in input_ids):
        choices = {len(row) for row in input_ids}
        if len(choices) > 1:
            raise ValueError(f"input_ids must have equally many choices in every row, got {sorted(choices)}.")
        ids, mask = padded([choice for row in input_ids for choice in row], pad_token_id)
        shape = (len(input_ids), choices.pop(), ids.shape[-1])
        return ids.reshape(shape), mask.reshape(shape)
    lengths = np.array([len(row) if _is_list(row) else 0 for row in input_ids])
    if not lengths.size or not lengths.all():
        raise ValueError("input_ids must be an array, or a list of lists of ids with at least one id each.")
    mask = np.arange(lengths.max()) < lengths[:, None]  # (batch, seq)
    ids = np.full(mask.shape, pad_token_id, np.int64)
    ids[mask] = np.concatenate([_as_ids(row) for row in input_ids])
    return ids, mask.astype(np.int64)


def _as_ids(row: Any) -> Array:
    """One list of ids as an array, (length,), of a dtype that int64 holds."""
    try:
        ids = np.asarray(row)
    except (ValueError, OverflowError):
        ids = np.empty(0, object)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not np.can_cast(ids.dtype, np.int64):
        raise ValueError(f"input_ids must be a list of flat lists of integers, got {np.shape(ids)} of {ids.dtype}.")
    return ids


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)
