"""Training on the tokens that a mask keeps: a batch of padded rows as one row without padding.

All but attention is computed on (1, total, dim); attention, for the rows of one length together. Source: Krell et al.
2021, arXiv 2107.02027. Axes: batch, seq, total (kept tokens), n_heads, head_dim, dim.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the framework's own name

from distilbert.outputs import BaseModelOutput


class Packing(NamedTuple):
    """Where the kept tokens of a batch are, the longest rows first."""

    shape: tuple[int, int]  # (batch, seq)
    places: Tensor  # (total,): row * seq + column
    runs: list[tuple[int, int]]  # (rows, length) of the rows of one length, one after the other

    @property
    def columns(self) -> Tensor:
        """The positions of the tokens: (1, total)."""
        return (self.places % self.shape[1])[None]

    def pack(self, x: Tensor) -> Tensor:
        """(batch, seq) to (1, total)."""
        return x.flatten().index_select(0, self.places)[None]

    def unpack(self, output: BaseModelOutput) -> BaseModelOutput:
        """Hidden states (1, total, dim) to (batch, seq, dim), 0 at padding."""
        return BaseModelOutput(self.pad(output.last_hidden_state), tuple(map(self.pad, output.hidden_states)), ())

    def pad(self, x: Tensor) -> Tensor:
        """(1, total, dim) to (batch, seq, dim), 0 at padding."""
        batch, seq = self.shape
        return x.new_zeros(batch * seq, x.shape[-1]).index_copy(0, self.places, x[0]).unflatten(0, (batch, seq))


@contextlib.contextmanager
def packed(model: Any) -> Generator[None]:
    """Within, the encoder of the model packs its batches; then hidden states at padding are 0."""
    encoder = getattr(model, "distilbert", model)
    encoder.packs = True
    try:
        yield
    finally:
        encoder.packs = False


def packing_of(attention_mask: Tensor | None) -> Packing | None:
    """The packing of a batch with this mask; None where padded rows are needed, or as fast.

    Heads read the first token of a row, so it must be kept. On other devices than processors padding costs little.
    """
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.device.type != "cpu":
        return None
    keep = attention_mask != 0
    if not keep[:, 0].all():
        return None
    order = keep.sum(1).argsort(descending=True, stable=True)
    rows, columns = keep[order].nonzero(as_tuple=True)  # (total,) each
    lengths = keep.sum(1)[order].tolist()
    runs = [(len(list(group)), length) for length, group in itertools.groupby(lengths)]
    return Packing((keep.shape[0], keep.shape[1]), order[rows] * keep.shape[1] + columns, runs)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, packing: Packing, dropout_p: float) -> Tensor:
    """Each token attends to those of its row. q, k, v and the context: (1, n_heads, total, head_dim)."""
    sizes = [rows * length for rows, length in packing.runs]
    parts = zip(*(x[0].split(sizes, 1) for x in (q, k, v)), packing.runs, strict=True)
    context = [attend_run(q, k, v, run, dropout_p) for q, k, v, run in parts]
    return torch.cat(context).transpose(0, 1)[None]


def attend_run(q: Tensor, k: Tensor, v: Tensor, run: tuple[int, int], dropout_p: float) -> Tensor:
    """Rows of one length. q, k, v: (n_heads, rows * length, head_dim); result: (rows * length, n_heads, head_dim)."""
    q, k, v = (x.unflatten(1, run).transpose(0, 1) for x in (q, k, v))  # (rows, n_heads, length, head_dim)
    context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    return context.transpose(1, 2).flatten(0, 1)
