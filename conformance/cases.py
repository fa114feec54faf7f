"""What is compared, as data: every head, mask, option and dtype on a tiny model with weights that hide nothing.

Norm scales are not 1, biases not 0, tokens distinct, so that no tensor can be dropped or swapped unnoticed. Rows are
full, padded on either side, of one token, with holes, and without any token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distilbert.checks import IGNORE
from distilbert.config import ACTIVATIONS, POOLING_MODES, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.weight_map import HEADS, WORD_EMBEDDINGS, tensor_specs, tied

Inputs = dict[str, Any]

CONFIG = DistilBertConfig(
    vocab_size=99, max_position_embeddings=24, n_layers=2, n_heads=4, dim=32, hidden_dim=64,
    dropout=0.1, attention_dropout=0.1, num_labels=3,
)  # fmt: skip
BATCH, SEQ = 4, 12
DTYPES = ("float64", "float32", "float16", "bfloat16")
DIFFERENTIATED = ("float64", "float32")  # the dtypes in which gradients and steps are compared too
MASKS = (
    "none",
    "right padding",
    "left padding",
    "holes",
    "one row all masked",
    "all rows masked",
    "3-D",
    "4-D",
    "4-D per head",
)

MODEL, MASKED_LM, SEQUENCE, ANSWERS, TOKENS, CHOICES, SENTENCE = HEADS


@dataclass(frozen=True)
class Option:
    """A way to build or to call a model: changes of the config, settings of the class, changes of the inputs."""

    name: str
    heads: tuple[str, ...] = tuple(HEADS)
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alter: Callable[[Inputs], Inputs] = lambda inputs: inputs


def _restarting_positions(inputs: Inputs) -> Inputs:
    """Positions of three segments of four tokens; with the block-diagonal masks, packed sequences."""
    return inputs | {"position_ids": np.tile(np.arange(4), SEQ // 4)[None].repeat(BATCH, 0)}


def _embeddings(inputs: Inputs) -> Inputs:
    embeds = np.random.default_rng(4).normal(size=(BATCH, SEQ, CONFIG.dim)).astype(np.float32)
    return {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeds}


def _factors(inputs: Inputs) -> Inputs:
    return inputs | {"head_mask": np.array([[1, 0, 1, 0.5], [0, 1, 1, 1]], np.float32)}


def _int32(inputs: Inputs) -> Inputs:
    return {n: v.astype(np.int32) if v is not None and v.dtype == np.int64 else v for n, v in inputs.items()}


def _with_padding_token(inputs: Inputs) -> Inputs:
    ids = inputs["input_ids"].copy()
    ids[:, 4::3] = CONFIG.pad_token_id
    return inputs | {"input_ids": ids}


def _nothing_counts(inputs: Inputs) -> Inputs:
    return inputs | {name: np.full_like(inputs[name], IGNORE) for name in TARGETS if name in inputs}


def _numbers(*shape: int) -> Callable[[Inputs], Inputs]:
    return lambda inputs: inputs | {"labels": np.random.default_rng(6).normal(size=shape).astype(np.float32)}


def _several_labels(inputs: Inputs) -> Inputs:
    return inputs | {"labels": np.random.default_rng(7).integers(0, 2, (BATCH, 3)).astype(np.float32)}


def _outside(inputs: Inputs) -> Inputs:
    return inputs | {"start_positions": np.array([-1, 3, SEQ, 0]), "end_positions": np.array([5, SEQ + 7, -100, 0])}


def _column(inputs: Inputs) -> Inputs:
    return inputs | {name: inputs[name][:, None] for name in ("start_positions", "end_positions")}


TARGETS = ("labels", "start_positions", "end_positions")
_TANH, _PLAIN = DenseConfig(20), DenseConfig(40, bias=False, activation="identity")
OPTIONS = (
    Option("plain"),
    Option("restarting positions", alter=_restarting_positions),
    Option("embeddings given", alter=_embeddings),
    Option("head mask", alter=_factors),
    Option("int32", alter=_int32),
    Option("padding token inside", alter=_with_padding_token),
    Option("sinusoidal positions", config={"sinusoidal_pos_embds": True}),
    Option("pruned heads", config={"pruned_heads": {0: [1], 1: [0, 2]}}),
    *(Option(name, (MODEL, MASKED_LM), {"activation": name}) for name in ACTIVATIONS[1:]),
    Option("untied projector", (MASKED_LM,), {"tie_word_embeddings": False}),
    Option("nothing counts", (MASKED_LM, TOKENS, ANSWERS), alter=_nothing_counts),
    Option("regression", (SEQUENCE,), {"num_labels": 1}, alter=_numbers(BATCH)),
    Option("regression of three", (SEQUENCE,), {"problem_type": "regression"}, alter=_numbers(BATCH, 3)),
    Option("several labels", (SEQUENCE,), alter=_several_labels),
    Option("positions outside", (ANSWERS,), alter=_outside),
    Option("positions in a column", (ANSWERS,), alter=_column),
    *(
        Option(f"pooling {mode}{', unit length' * unit}", (SENTENCE,), settings={"pooling": PoolingConfig(mode, unit)})
        for mode in POOLING_MODES
        for unit in (False, True)
    ),
    Option("dense layer, unit length", (SENTENCE,), settings={"pooling": PoolingConfig(normalize=True, dense=_TANH)}),
    Option("dense layer without bias", (SENTENCE,), settings={"pooling": PoolingConfig("cls", dense=_PLAIN)}),
)


@dataclass(frozen=True)
class Case:
    """One comparison."""

    head: str
    mask: str
    option: Option
    dtype: str

    @property
    def name(self) -> str:
        """As reports name it."""
        return f"{self.head} / {self.mask} / {self.option.name} / {self.dtype}"

    @property
    def config(self) -> DistilBertConfig:
        """The model's configuration."""
        return CONFIG.replace(**self.option.config)

    @property
    def settings(self) -> dict[str, Any]:
        """Further arguments of the class, such as `pooling`."""
        return dict(self.option.settings)

    @property
    def differentiated(self) -> bool:
        """Whether gradients are compared."""
        return self.dtype in DIFFERENTIATED

    def weights(self) -> dict[str, NDArray[Any]]:
        """The model's weights, in the case's dtype."""
        return weights(self.config, self.head, dtype=self.dtype, **self.settings)

    def inputs(self) -> Inputs:
        """The call's arguments, targets included."""
        inputs: Inputs = {"input_ids": input_ids(), "attention_mask": masks()[self.mask]} | targets(self.head)
        inputs = self.option.alter(inputs)
        if inputs["attention_mask"] is None:
            del inputs["attention_mask"]
        return _in_choices(inputs) if self.head == CHOICES else inputs


def cases(*, every: bool = False) -> Iterator[Case]:
    """The cases: each option with right padding, each mask with the plain option, in every dtype.

    `every`: all masks with all options, in float64 and float32.
    """
    for head in HEADS:
        for option in OPTIONS:
            for mask in MASKS:
                if head not in option.heads or not _possible(head, mask, option):
                    continue
                chosen = mask == "right padding" or option.name == "plain"
                yield from (Case(head, mask, option, d) for d in DTYPES if chosen or (every and d in DIFFERENTIATED))


def _possible(head: str, mask: str, option: Option) -> bool:
    """Pooling needs a mask of tokens; pruned layers differ in their number of heads."""
    if head == SENTENCE and "-D" in mask:
        return False
    return not (option.name == "pruned heads" and mask == "4-D per head")


def weights(
    config: DistilBertConfig = CONFIG,
    head: str = MODEL,
    *,
    dtype: str = "float32",
    seed: int = 0,
    pooling: PoolingConfig | None = None,
) -> dict[str, NDArray[Any]]:
    """Weights of the class `head`, drawn so that every tensor matters, rounded to `dtype`."""
    random = np.random.default_rng(seed)
    drawn: dict[str, NDArray[Any]] = {}
    for name, spec in tensor_specs(config, head, pooling).items():
        values = random.normal(0.0, 0.2, spec.shape)
        if spec.module.kind == "norm" and spec.leaf == "weight":
            values = 1.0 + values
        drawn[name] = values.astype(np.float32).astype(np_dtype(dtype))
    return drawn | dict.fromkeys(tied(config, head), drawn[WORD_EMBEDDINGS])


def np_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def input_ids() -> NDArray[np.int64]:
    """Distinct token ids of (BATCH, SEQ)."""
    return np.random.default_rng(1).permutation(CONFIG.vocab_size)[: BATCH * SEQ].reshape(BATCH, SEQ)


@functools.cache
def masks() -> dict[str, NDArray[np.int64] | None]:
    """Every kind of attention mask by name."""
    random = np.random.default_rng(2)
    right = (np.arange(SEQ) < np.array([SEQ, 7, 3, 1])[:, None]).astype(np.int64)
    holes = random.integers(0, 2, (BATCH, SEQ))
    holes[:, 0] = 1
    one_row = right.copy()
    one_row[2] = 0
    blocks = np.kron(np.eye(SEQ // 4, dtype=np.int64), np.ones((4, 4), np.int64))  # three segments of four tokens
    per_head = random.integers(0, 2, (BATCH, CONFIG.n_heads, SEQ, SEQ))  # some queries see no key
    kinds = (
        None,
        right,
        right[:, ::-1].copy(),
        holes,
        one_row,
        np.zeros_like(right),
        np.broadcast_to(blocks, (BATCH, SEQ, SEQ)).copy(),
        np.broadcast_to(blocks, (BATCH, 1, SEQ, SEQ)).copy(),
        per_head,
    )
    return dict(zip(MASKS, kinds, strict=True))


def targets(head: str) -> Inputs:
    """What the class `head` is trained to return for `input_ids`; nothing for the encoder and the embedding."""
    random = np.random.default_rng(3)
    per_token = {MASKED_LM: CONFIG.vocab_size, TOKENS: CONFIG.num_labels}
    if head in per_token:
        counts = random.random((BATCH, SEQ)) < 0.6
        return {"labels": np.where(counts, random.integers(0, per_token[head], (BATCH, SEQ)), IGNORE)}
    if head == ANSWERS:
        return {"start_positions": np.array([2, 0, 5, 1]), "end_positions": np.array([4, 3, 5, 11])}
    return {SEQUENCE: {"labels": np.array([2, 0, 1, 1])}, CHOICES: {"labels": np.array([1, 0])}}.get(head, {})


def _in_choices(inputs: Inputs) -> Inputs:
    """The rows as questions with two choices each, as multiple choice takes them."""
    whole = ("labels", "head_mask")
    return {n: v if n in whole else v.reshape(BATCH // 2, 2, *v.shape[1:]) for n, v in inputs.items()}
