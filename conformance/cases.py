"""What is compared, as data: a tiny model with weights that hide nothing, ragged inputs, and every kind of mask.

Norm scales are not 1, biases not 0, tokens distinct, so that no tensor can be dropped or swapped unnoticed.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distilbert.config import DistilBertConfig
from distilbert.weight_map import tensor_specs

CONFIG = DistilBertConfig(
    vocab_size=99, max_position_embeddings=24, n_layers=2, n_heads=4, dim=32, hidden_dim=64,
    dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
BATCH, SEQ = 4, 12

# Largest absolute difference from the reference at this size, whose weights are rounded to the same dtype.
# Measured over all masks and backends: float64 4.8e-15, float32 2.1e-6, float16 7.7e-3, bfloat16 8.4e-2 (hidden states
# of magnitude up to 4.5, where bfloat16 has steps of 3e-2). The weakest planted fault in float32: 3.1e-5.
TOLERANCES = {"float64": 1e-10, "float32": 5e-6, "float16": 1.5e-2, "bfloat16": 1.2e-1}


def weights(config: DistilBertConfig = CONFIG, *, dtype: str = "float32", seed: int = 0) -> dict[str, NDArray[Any]]:
    """Weights of the encoder, drawn so that every tensor matters, rounded to `dtype`."""
    random = np.random.default_rng(seed)
    drawn: dict[str, NDArray[Any]] = {}
    for name, spec in tensor_specs(config).items():
        values = random.normal(0.0, 0.2, spec.shape)
        if spec.module.kind == "norm" and spec.leaf == "weight":
            values = 1.0 + values
        drawn[name] = values.astype(np.float32).astype(np_dtype(dtype))
    return drawn


def np_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def input_ids(config: DistilBertConfig = CONFIG) -> NDArray[np.int64]:
    """Distinct token ids of (BATCH, SEQ)."""
    return np.random.default_rng(1).permutation(config.vocab_size)[: BATCH * SEQ].reshape(BATCH, SEQ)


def masks(config: DistilBertConfig = CONFIG) -> dict[str, NDArray[np.int64] | None]:
    """Every kind of attention mask by name."""
    random = np.random.default_rng(2)
    right = (np.arange(SEQ) < np.array([SEQ, 7, 3, 1])[:, None]).astype(np.int64)
    holes = random.integers(0, 2, (BATCH, SEQ))
    holes[:, 0] = 1
    one_row = right.copy()
    one_row[2] = 0
    blocks = np.kron(np.eye(SEQ // 4, dtype=np.int64), np.ones((4, 4), np.int64))  # three segments of four tokens
    return {
        "none": None,
        "right padding": right,
        "left padding": right[:, ::-1].copy(),
        "holes": holes,
        "one row all masked": one_row,
        "all rows masked": np.zeros_like(right),
        "3-D": np.broadcast_to(blocks, (BATCH, SEQ, SEQ)).copy(),
        "4-D": np.broadcast_to(blocks, (BATCH, 1, SEQ, SEQ)).copy(),
        "4-D per head": random.integers(0, 2, (BATCH, config.n_heads, SEQ, SEQ)),  # some queries see no key
    }
