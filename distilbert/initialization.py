"""Initial weights from (config, seed): the same bits for every framework.

N(0, initializer_range) for kernels and embeddings, heads included; zero biases; a zero row at pad_token_id; LayerNorm
at 1 and 0; the sinusoidal table where the config asks for it. Drawn in canonical order from NumPy's legacy generator,
whose stream is frozen by NumPy's compatibility policy: a seed means the same weights in ten years.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.positions import sinusoidal_table
from distilbert.weight_map import (
    POSITION_EMBEDDINGS,
    WORD_EMBEDDINGS,
    TensorSpec,
    tensor_specs,
    tied,
)


def initial_weights(
    config: DistilBertConfig, head: str = "DistilBertModel", *, seed: int = 0, pooling: PoolingConfig | None = None
) -> dict[str, NDArray[np.float32]]:
    """Weights of the class `head` by canonical name, float32. `seed` is an integer from 0 to 2**32 - 1."""
    random = np.random.RandomState(seed)
    specs = tensor_specs(config, head, pooling)
    weights = {name: initial_tensor(config, spec, random) for name, spec in specs.items()}
    return weights | dict.fromkeys(tied(config, head), weights[WORD_EMBEDDINGS])


def initial_tensor(config: DistilBertConfig, spec: TensorSpec, random: np.random.RandomState) -> NDArray[np.float32]:
    """One tensor by the rule of its kind; `random` advances only for drawn tensors."""
    if spec.leaf == "bias" or spec.module.kind == "norm":
        return np.full(spec.shape, float(spec.leaf == "weight"), np.float32)
    if spec.name == POSITION_EMBEDDINGS and config.sinusoidal_pos_embds:
        return sinusoidal_table(*spec.shape)
    tensor = (random.standard_normal(spec.shape) * config.initializer_range).astype(np.float32)
    if spec.name == WORD_EMBEDDINGS and config.pad_token_id is not None:
        tensor[config.pad_token_id] = 0.0
    return tensor
