"""What training needs from PyTorch. Twins: tf/training.py and flax/training.py."""

from __future__ import annotations

import torch

from distilbert.pt.pretrained import PretrainedModel


def adamw(
    model: PretrainedModel,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW for the model, with weight decay on the kernels of its dense layers only.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Steps are equal in all three frameworks.
    """
    specs = model.tensor_specs()
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.trained_parameters().items():
        groups[specs[name].is_kernel].append(parameter)
    decayed = [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(decayed, lr=learning_rate, betas=betas, eps=eps)
