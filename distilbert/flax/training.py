"""What training needs from NNX. Twins: pt/training.py and tf/training.py."""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax import nnx

from distilbert.flax.pretrained import PretrainedModel


def adamw(
    model: PretrainedModel,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> nnx.Optimizer[PretrainedModel]:
    """AdamW for the model, with weight decay on the kernels of its dense layers only.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Steps are equal in all three frameworks.
    """
    transform = optax.adamw(learning_rate, *betas, eps, weight_decay=weight_decay, mask=kernels)
    return nnx.Optimizer(model, transform, wrt=nnx.Param)


def kernels(parameters: Any) -> Any:
    """Which parameters are kernels of dense layers: NNX gives these, and only these, the name `kernel`."""
    return jax.tree.map_with_path(lambda path, _: any(getattr(key, "key", "") == "kernel" for key in path), parameters)
