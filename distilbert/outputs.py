"""What the models return: one NamedTuple per head, and its twin with the loss first, declared once for all frameworks.

A NamedTuple is a pytree everywhere, so results pass through torch.export, jax.jit, tf.function and Keras `predict`.
What was not asked for is `()`, never None. `hidden_states` has n_layers + 1 entries of (batch, seq, dim), the first
after the embedding LayerNorm; `attentions` has n_layers entries of (batch, n_heads, seq, seq). `loss` is a scalar.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class BaseModelOutput(NamedTuple):
    """Result of `DistilBertModel`. last_hidden_state: (batch, seq, dim)."""

    last_hidden_state: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class MaskedLMOutput(NamedTuple):
    """Result of `DistilBertForMaskedLM`. logits: (batch, seq, vocab_size)."""

    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class MaskedLMOutputWithLoss(NamedTuple):
    """Result of `DistilBertForMaskedLM`, given labels."""

    loss: Any
    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class SequenceClassifierOutput(NamedTuple):
    """Result of `DistilBertForSequenceClassification`. logits: (batch, num_labels)."""

    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class SequenceClassifierOutputWithLoss(NamedTuple):
    """Result of `DistilBertForSequenceClassification`, given labels."""

    loss: Any
    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class QuestionAnsweringOutput(NamedTuple):
    """Result of `DistilBertForQuestionAnswering`. start_logits, end_logits: (batch, seq)."""

    start_logits: Any
    end_logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class QuestionAnsweringOutputWithLoss(NamedTuple):
    """Result of `DistilBertForQuestionAnswering`, given start and end positions."""

    loss: Any
    start_logits: Any
    end_logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class TokenClassifierOutput(NamedTuple):
    """Result of `DistilBertForTokenClassification`. logits: (batch, seq, num_labels)."""

    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class TokenClassifierOutputWithLoss(NamedTuple):
    """Result of `DistilBertForTokenClassification`, given labels."""

    loss: Any
    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class MultipleChoiceOutput(NamedTuple):
    """Result of `DistilBertForMultipleChoice`. logits: (batch, num_choices); states: batch * num_choices rows."""

    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class MultipleChoiceOutputWithLoss(NamedTuple):
    """Result of `DistilBertForMultipleChoice`, given labels."""

    loss: Any
    logits: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


class SentenceEmbeddingOutput(NamedTuple):
    """Result of `DistilBertForSentenceEmbedding`. embeddings: (batch, dim)."""

    embeddings: Any
    hidden_states: tuple[Any, ...] = ()
    attentions: tuple[Any, ...] = ()


_WITH_LOSS: dict[type, type] = {
    MaskedLMOutput: MaskedLMOutputWithLoss,
    SequenceClassifierOutput: SequenceClassifierOutputWithLoss,
    QuestionAnsweringOutput: QuestionAnsweringOutputWithLoss,
    TokenClassifierOutput: TokenClassifierOutputWithLoss,
    MultipleChoiceOutput: MultipleChoiceOutputWithLoss,
}


def with_loss(output: Any, loss: Any) -> Any:
    """`output` as its twin with the loss first; `output` itself when there is no loss."""
    return output if loss is None else _WITH_LOSS[type(output)](loss, *output)
