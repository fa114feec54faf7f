"""The sinusoidal position table (Vaswani et al. 2017, section 3.5): sine in even columns, cosine in odd ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sinusoidal_table(max_position_embeddings: int, dim: int) -> NDArray[np.float32]:
    """Table of (max_position_embeddings, dim): row p, columns 2k and 2k+1 hold sin and cos of p / 10000^(2k/dim)."""
    position = np.arange(max_position_embeddings, dtype=np.float64)[:, None]
    angle = position / 10000.0 ** (np.arange(0, dim, 2, dtype=np.float64) / dim)  # (positions, dim / 2)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(max_position_embeddings, dim).astype(np.float32)
