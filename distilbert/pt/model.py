"""The encoder in PyTorch. Twins: tf/model.py and flax/model.py.

Source: Sanh et al. 2019, arXiv 1910.01108. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the framework's own name
from torch.utils.checkpoint import checkpoint

from distilbert.checks import check_inputs, check_no_unknown
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig
from distilbert.outputs import BaseModelOutput
from distilbert.positions import sinusoidal_table
from distilbert.pt.attention import FLASH, KERNELS, Ragged, attend, attend_flash, attend_fused, keep_mask, ragged
from distilbert.pt.packed import Packing, attend_packed, packing_of
from distilbert.pt.pretrained import PretrainedModel, as_tensor, values


def rounded_once(formula: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The formula in float32 or better: half precision is rounded at its end only, not at each of its steps."""
    return functools.partial(in_float32, formula)


def in_float32(formula: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `rounded_once` computes; a function of the module, so that a model can be pickled."""
    return formula(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """X times the normal distribution function at x. Source: Hendrycks and Gimpel 2016, arXiv 1606.08415."""
    return F.gelu(x)


def gelu_new(x: Tensor) -> Tensor:
    """The tanh approximation of `gelu`."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of `gelu`."""
    return x * torch.sigmoid(1.702 * x)


def identity(x: Tensor) -> Tensor:
    """No activation."""
    return x


ACTIVATIONS = {  # PyTorch's own round once
    "gelu": gelu,
    "gelu_new": gelu_new,
    "quick_gelu": rounded_once(quick_gelu),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "identity": identity,
}


def linear(config: DistilBertConfig, in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A dense layer with N(0, initializer_range) kernel and zero bias, or none."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(layer.weight, std=config.initializer_range)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(config: DistilBertConfig, rows: int, padding: int | None = None) -> nn.Embedding:
    """A table of (rows, dim) drawn from N(0, initializer_range); the row `padding` is zero and not trained."""
    layer = nn.Embedding(rows, config.dim, padding_idx=padding)
    nn.init.normal_(layer.weight, std=config.initializer_range)
    if padding is not None:
        nn.init.zeros_(layer.weight[padding])
    return layer


def layer_norm(config: DistilBertConfig) -> nn.LayerNorm:
    """LayerNorm over dim, with statistics in float32 or better."""
    return nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)


def recomputed(block: nn.Module) -> Callable[..., Any]:
    """The block, whose inside is computed again for the gradient, with the same dropout, instead of being kept."""
    return functools.partial(checkpoint, block, use_reentrant=False)


class Embeddings(nn.Module):
    """dropout(LayerNorm(word + position)). input_ids, position_ids: (batch, seq); result: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.word_embeddings = embedding(config, config.vocab_size, config.pad_token_id)
        self.position_embeddings = embedding(config, config.max_position_embeddings)
        self.LayerNorm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        if config.sinusoidal_pos_embds:
            table = sinusoidal_table(config.max_position_embeddings, config.dim)
            self.position_embeddings.weight.requires_grad_(False)
            self.position_embeddings.weight.copy_(torch.from_numpy(table))

    def forward(self, input_ids: Any, position_ids: Any, inputs_embeds: Any) -> Tensor:
        word = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)  # (batch, seq, dim)
        if position_ids is None:
            position_ids = torch.arange(word.shape[1], device=word.device)[None, :]  # (1, seq)
        position = self.position_embeddings(position_ids)  # (batch or 1, seq, dim)
        return self.dropout(self.LayerNorm(word + position))


class MultiHeadSelfAttention(nn.Module):
    """Scaled dot-product attention in n_heads heads. Source: Vaswani et al. 2017, section 3.2.

    x and result: (batch, seq, dim); probabilities: (batch, n_heads, seq, seq), or None when not asked for.
    """

    attn_implementation = KERNELS[0]  # see PretrainedModel.set_attn_implementation

    def __init__(self, config: DistilBertConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.n_heads = config.heads_of(layer)
        self.q_lin = linear(config, config.dim, self.n_heads * self.head_dim)
        self.k_lin = linear(config, config.dim, self.n_heads * self.head_dim)
        self.v_lin = linear(config, config.dim, self.n_heads * self.head_dim)
        self.out_lin = linear(config, self.n_heads * self.head_dim, config.dim)
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self, x: Tensor, keep: Tensor | Ragged | Packing | None, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.split(self.q_lin(x)), self.split(self.k_lin(x)), self.split(self.v_lin(x))
        dropout_p, probabilities = self.dropout.p if self.training else 0.0, None
        if isinstance(keep, Ragged):
            context = attend_flash(q, k, v, keep, dropout_p)
        elif isinstance(keep, Packing):
            context = attend_packed(q, k, v, keep, dropout_p)
        elif self.attn_implementation == "eager" or head_mask is not None or output_attentions:
            context, probabilities = attend(q, k, v, keep, head_mask, self.dropout)
        else:
            context = attend_fused(q, k, v, keep, dropout_p)
        context = context.transpose(1, 2).flatten(2)  # (batch, seq, n_heads * head_dim)
        return self.out_lin(context), probabilities if output_attentions else None

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)  # (batch, n_heads, seq, head_dim)


class FFN(nn.Module):
    """Feed-forward of one block: dropout(lin2(activation(lin1(x)))).

    x and result: (batch, seq, dim). Source: Vaswani et al. 2017, eq. 2, with BERT's erf GELU.
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.lin1 = linear(config, config.dim, config.hidden_dim)
        self.lin2 = linear(config, config.hidden_dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.lin1(x))  # (batch, seq, hidden_dim)
        return self.dropout(self.lin2(x))  # (batch, seq, dim)


class TransformerBlock(nn.Module):
    """One post-norm layer: attention and feed-forward, each with a residual and a LayerNorm after it."""

    def __init__(self, config: DistilBertConfig, layer: int) -> None:
        super().__init__()
        self.attention = MultiHeadSelfAttention(config, layer)
        self.sa_layer_norm = layer_norm(config)
        self.ffn = FFN(config)
        self.output_layer_norm = layer_norm(config)

    def forward(
        self, x: Tensor, keep: Tensor | Ragged | Packing | None, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        attended, probabilities = self.attention(x, keep, head_mask, output_attentions)
        x = self.sa_layer_norm(attended + x)
        x = self.output_layer_norm(self.ffn(x) + x)
        return x, probabilities


class Transformer(nn.Module):
    """The stack of n_layers blocks. x: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.gradient_checkpointing = False  # see PretrainedModel.gradient_checkpointing_enable

    def forward(
        self,
        x: Tensor,
        keep: Tensor | Ragged | Packing | None,
        head_mask: Tensor | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> BaseModelOutput:
        hidden_states, attentions = (x,), ()
        for i, block in enumerate(self.layer):
            run = recomputed(block) if self.gradient_checkpointing else block
            x, probabilities = run(x, keep, None if head_mask is None else head_mask[i], output_attentions)
            hidden_states += (x,)
            attentions += (probabilities,)
        return BaseModelOutput(
            x, hidden_states if output_hidden_states else (), attentions if output_attentions else ()
        )


class DistilBertModel(PretrainedModel):
    """The encoder without a head.

    Example:
        model = DistilBertModel.from_pretrained("folder")
        hidden = model(input_ids, attention_mask).last_hidden_state  # (batch, seq, dim)
    """

    packs = False  # see packed.packed

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.transformer = Transformer(config)

    def forward(
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
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: (batch, seq), int32 or int64, below vocab_size. Either this or `inputs_embeds`.
            attention_mask: 1 keep, 0 drop; (batch, seq), (batch, seq, seq) or (batch, 1 or n_heads, seq, seq).
            position_ids: (batch, seq) or (1, seq), below max_position_embeddings; default 0 to seq-1.
            inputs_embeds: (batch, seq, dim), in place of the word embeddings.
            head_mask: (n_heads,) or (n_layers, n_heads), multiplies the attention probabilities.
            output_hidden_states: return n_layers + 1 tensors of (batch, seq, dim).
            output_attentions: return n_layers tensors of (batch, n_heads, seq, seq).
            unknown: refused by name.

        Raises:
            ValueError: an argument does not fit the config or another argument.
            TypeError: an argument that DistilBERT does not have.
        """
        check_no_unknown(unknown)
        device, dtype = self.device, self.dtype
        input_ids, position_ids = (
            as_tensor("input_ids", input_ids, device),
            as_tensor("position_ids", position_ids, device),
        )
        attention_mask = as_tensor("attention_mask", attention_mask, device)
        inputs_embeds, head_mask = (
            as_tensor("inputs_embeds", inputs_embeds, device, dtype),
            as_tensor("head_mask", head_mask, device, dtype),
        )
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, head_mask, values)
        if head_mask is not None:
            head_mask = head_mask.expand(self.config.n_layers, self.config.n_heads)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if self.packs and (packing := packing_of(attention_mask)):
            x = self.embeddings(packing.pack(input_ids), packing.columns, None)  # (1, total, dim)
            return packing.unpack(self.transformer(x, packing, None, output_hidden_states, False))
        x = self.embeddings(input_ids, position_ids, inputs_embeds)  # (batch, seq, dim)
        keep = keep_mask(attention_mask)
        if self.attn_implementation == FLASH and head_mask is None and not output_attentions:
            keep = ragged(keep, x, self.config.attention_dropout if self.training else 0.0) or keep
        return self.transformer(x, keep, head_mask, output_hidden_states, output_attentions)
