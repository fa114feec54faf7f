"""What the models return: one NamedTuple per head, declared once for all frameworks.

A NamedTuple is a pytree everywhere, so results pass through torch.export, jax.jit, tf.function and Keras `predict`.
What was not asked for is `()`, never None. `hidden_states` has n_layers + 1 entries of (batch, seq, dim), the first
after the embedding LayerNorm; `attentions` has n_layers entries of (batch, n_heads, seq, seq).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class BaseModelOutput(NamedTuple):
    """Result of `DistilBertModel`. last_hidden_state: (batch, seq, dim)."""

    last_hidden_state: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class SentenceEmbeddingOutput(NamedTuple):
    """Result of `DistilBertForSentenceEmbedding`. embeddings: (batch, dim)."""

    embeddings: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()
