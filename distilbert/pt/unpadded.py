"""The encoder of an optimized PyTorch model, on the kept tokens of a batch alone.

Sources: Sanh et al. 2019, arXiv 1910.01108; computing on unpadded tokens: Krell et al. 2021, arXiv 2107.02027.
Axes: total (tokens of a batch), rows, dim, n_heads, head_dim. Between products everything is float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the framework's own name

from distilbert.config import LAYER_NORM_EPS
from distilbert.inference import Tokens
from distilbert.pt.attention import flash_kernel
from distilbert.pt.model import DistilBertModel, TransformerBlock
from distilbert.pt.products import Product, Table, has_bfloat16, new_product

Norm = Callable[[Tensor], Tensor]
Runs = list[tuple[int, int]]

# Lengths of rows that batched products attend to fastest; the flash kernel takes the others. A row's own length alone
# decides, so that its result does not depend on the rows beside it.
BATCHED = {torch.float32: range(48, 257), torch.bfloat16: range(48, 1 << 30)}


class Batch(NamedTuple):
    """The tokens of a batch where the encoder computes."""

    ids: Tensor  # (total,), int32
    positions: Tensor  # (total,), int32
    starts: Tensor  # (rows + 1,), int32
    runs: Runs  # (rows, length)

    @classmethod
    def of(cls, tokens: Tokens, device: torch.device) -> Batch:
        """The tokens as tensors on the device."""
        ids, positions, starts = (torch.from_numpy(x) for x in (tokens.ids, tokens.positions, tokens.starts))
        return cls(ids.to(device), positions.to(device), starts.to(device), list(tokens.runs()))


class Layer:
    """One post-norm layer. x and result: (total, dim); for the first tokens alone, (rows, dim)."""

    def __init__(self, block: TransformerBlock, precision: str, activation: str, *, first_only: bool) -> None:
        attention = block.attention
        self.n_heads, self.head_dim = attention.n_heads, attention.head_dim
        self.scores = torch.bfloat16 if precision == "int8" and has_bfloat16() else None  # of long rows
        parts = [attention.q_lin, attention.k_lin, attention.v_lin]
        self.query = new_product(precision, parts[0].weight, parts[0].bias) if first_only else None
        parts = parts[1:] if first_only else parts
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        self.project = new_product(precision, weight, bias)  # q, k, v in one; without q for the first tokens alone
        self.out = new_product(precision, attention.out_lin.weight, attention.out_lin.bias)
        self.sa_layer_norm = frozen_norm(block.sa_layer_norm)
        self.lin1 = new_product(precision, block.ffn.lin1.weight, block.ffn.lin1.bias, activation)
        self.lin2 = new_product(precision, block.ffn.lin2.weight, block.ffn.lin2.bias)
        self.output_layer_norm = frozen_norm(block.output_layer_norm)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        if self.query is None:
            context = self.attend(self.project(x), batch)  # (total, n_heads * head_dim)
        else:
            first = x.index_select(0, batch.starts[:-1])  # (rows, dim)
            context = self.attend_first(self.query(first), self.project(x), batch)
            x = first
        x = self.sa_layer_norm(self.out(context, x))
        return self.output_layer_norm(self.lin2(self.lin1(x), x))

    def attend(self, qkv: Tensor, batch: Batch) -> Tensor:
        """qkv: (total, 3 * n_heads * head_dim)."""
        if qkv.is_cuda and qkv.dtype == torch.bfloat16 and can_flash(self.head_dim):
            return self.attend_ragged(qkv, batch)
        sizes = [rows * length for rows, length in batch.runs]
        context = [
            self.attend_run(part, rows, length)
            for part, (rows, length) in zip(qkv.split(sizes), batch.runs, strict=True)
        ]
        return context[0] if len(context) == 1 else torch.cat(context)

    def attend_run(self, qkv: Tensor, rows: int, length: int) -> Tensor:
        """Rows of one length: all heads of all rows at once."""
        qkv = qkv.view(rows, length, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        dtype = qkv.dtype if self.scores is None else self.scores
        if length in BATCHED[dtype]:
            context = attend_batched(qkv.to(dtype)).to(qkv.dtype)
        else:
            context = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return context.transpose(1, 2).reshape(rows * length, -1)  # (rows * length, n_heads * head_dim)

    def attend_first(self, q: Tensor, kv: Tensor, batch: Batch) -> Tensor:
        """The first tokens' queries, (rows, n_heads * head_dim), on all keys and values of their rows."""
        context, sizes = [], [rows * length for rows, length in batch.runs]
        queries = q.split([rows for rows, _ in batch.runs])
        for query, part, (rows, length) in zip(queries, kv.split(sizes), batch.runs, strict=True):
            k, v = part.view(rows, length, 2, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            first = query.view(rows, self.n_heads, 1, self.head_dim)
            context.append(F.scaled_dot_product_attention(first, k, v).view(rows, -1))
        return context[0] if len(context) == 1 else torch.cat(context)  # (rows, n_heads * head_dim)

    def attend_ragged(self, qkv: Tensor, batch: Batch) -> Tensor:
        """All rows in one call of the flash kernel for unlike lengths."""
        kernel, _ = flash_kernel()
        q, k, v = qkv.view(len(qkv), 3, self.n_heads, self.head_dim).unbind(1)
        longest = batch.runs[0][1]
        return kernel(q, k, v, batch.starts, batch.starts, longest, longest).flatten(1)


class Encoder:
    """Embeddings and layers. With `first_only` the last layer computes what the first tokens need, and no more."""

    def __init__(self, model: DistilBertModel, precision: str, *, first_only: bool) -> None:
        embeddings, layers = model.embeddings, cast(list[TransformerBlock], list(model.transformer.layer))
        self.device = model.device
        self.words = Table(embeddings.word_embeddings.weight, precision)
        self.positions = Table(embeddings.position_embeddings.weight, "float32")
        self.norm = frozen_norm(embeddings.LayerNorm)
        self.layers = [
            Layer(block, precision, model.config.activation, first_only=first_only and block is layers[-1])
            for block in layers
        ]

    def __call__(self, tokens: Tokens) -> tuple[Tensor, Runs]:
        """Hidden states (total, dim), or (rows, dim) of the first tokens; and the runs of rows of one length."""
        batch = Batch.of(tokens, self.device)
        x = self.norm(self.words(batch.ids).add_(self.positions(batch.positions)))
        for layer in self.layers:
            x = layer(x, batch)
        return x, batch.runs

    @property
    def products(self) -> list[Product]:
        """Of the first layer, which are those of all."""
        layer = self.layers[0]
        return [layer.project, layer.out, layer.lin1, layer.lin2]


@functools.cache
def can_flash(head_dim: int) -> bool:
    """Whether there is a flash kernel for rows of unlike lengths, which takes heads of that width."""
    try:
        flash_kernel()
    except ImportError:
        return False
    return head_dim % 8 == 0


def frozen_norm(norm: nn.LayerNorm) -> Norm:
    """LayerNorm over the last axis, in float32."""
    weight, bias = norm.weight.detach().to(torch.float32, copy=True), norm.bias.detach().to(torch.float32, copy=True)
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS)


def attend_batched(qkv: Tensor) -> Tensor:
    """Scaled dot-product attention by batched products. qkv: (3, rows, n_heads, length, head_dim)."""
    q, k, v = qkv.flatten(1, 2).unbind(0)  # (rows * n_heads, length, head_dim) each, copied together
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, qkv.shape[1:3])  # (rows, n_heads, length, head_dim)
