"""The heads in Keras 3: what follows from the encoder's hidden states. Twins: pt/heads.py and flax/heads.py.

Sources: Devlin et al. 2018 (heads), Sanh et al. 2019 (no pooler), Reimers and Gurevych 2019 (sentence embedding).
Axes: batch, seq, dim, vocab_size, num_labels, num_choices.
"""

# Keras types the results of its operations as optional: they are not.
# pyright: reportOptionalSubscript=false, reportOptionalOperand=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from distilbert.checks import check_choices, check_no_unknown, check_pooling_mask
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.outputs import (
    MaskedLMOutput,
    MaskedLMOutputWithLoss,
    MultipleChoiceOutput,
    MultipleChoiceOutputWithLoss,
    QuestionAnsweringOutput,
    QuestionAnsweringOutputWithLoss,
    SentenceEmbeddingOutput,
    SequenceClassifierOutput,
    SequenceClassifierOutputWithLoss,
    TokenClassifierOutput,
    TokenClassifierOutputWithLoss,
    with_loss,
)
from distilbert.tf.attention import lowest
from distilbert.tf.losses import (
    at_least_float32,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
    unit,
)
from distilbert.tf.model import ACTIVATIONS, DistilBertModel, Dropout, Shape, Tensor, layer_norm, linear
from distilbert.tf.pretrained import PretrainedModel, as_tensor


def flatten_choices(x: Any) -> Any:
    """(batch, num_choices, ...) to (batch * num_choices, ...); None stays None."""
    return None if x is None else ops.reshape(x, (-1, *ops.shape(x)[2:]))


class TiedProjector(keras.layers.Layer):
    """Logits by the word embeddings: x table^T + bias. x: (..., dim); table: (vocab_size, dim)."""

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        self.bias = self.add_weight(shape=(self.config.vocab_size,), initializer="zeros", name="bias")

    def call(self, x: Tensor, table: Tensor) -> Tensor:
        return ops.matmul(x, ops.transpose(ops.cast(table, x.dtype))) + ops.cast(self.bias, x.dtype)


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForMaskedLM(PretrainedModel):
    """The encoder, and logits over the vocabulary for every token.

    Example:
        model = DistilBertForMaskedLM.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, seq, vocab_size)
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.vocab_transform = linear(config, config.dim, "vocab_transform", self.dtype_policy)
        self.vocab_layer_norm = layer_norm(config, "vocab_layer_norm", self.dtype_policy)
        self.vocab_projector = (
            TiedProjector(config, name="vocab_projector", dtype=self.dtype_policy)
            if config.tie_word_embeddings
            else linear(config, config.vocab_size, "vocab_projector", self.dtype_policy)
        )
        self.activation = ACTIVATIONS[config.activation]
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        for layer in (self.vocab_transform, self.vocab_layer_norm, self.vocab_projector):
            layer.build((None, None, self.config.dim))

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> MaskedLMOutput | MaskedLMOutputWithLoss:
        """Predict tokens. Arguments as for `DistilBertModel`; labels: (batch, seq), ids, -100 where none counts."""
        check_no_unknown(unknown)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        logits = self.vocab_logits(output.last_hidden_state)  # (batch, seq, vocab_size)
        loss = None if labels is None else cross_entropy(logits, labels)
        return with_loss(MaskedLMOutput(logits, output.hidden_states, output.attentions), loss)

    def vocab_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, for all hidden states or a selection: (..., dim) to (..., vocab_size)."""
        x = self.vocab_layer_norm(self.activation(self.vocab_transform(hidden)))  # (..., dim)
        if isinstance(self.vocab_projector, TiedProjector):
            return self.vocab_projector(x, table=self.distilbert.embeddings.word_embeddings.embeddings)
        return self.vocab_projector(x)


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForSequenceClassification(PretrainedModel):
    """The encoder, and one row of logits (or one number) per text, from its first token.

    Example:
        model = DistilBertForSequenceClassification.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, num_labels)
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.pre_classifier = linear(config, config.dim, "pre_classifier", self.dtype_policy)
        self.classifier = linear(config, config.num_labels, "classifier", self.dtype_policy)
        self.dropout = Dropout(config.seq_classif_dropout, dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        for layer in (self.pre_classifier, self.classifier):
            layer.build((None, None, self.config.dim))

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> SequenceClassifierOutput | SequenceClassifierOutputWithLoss:
        """Classify texts. Arguments as for `DistilBertModel`; labels: see `losses.sequence_classification_loss`."""
        check_no_unknown(unknown)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        pooled = ops.relu(self.pre_classifier(output.last_hidden_state[:, 0]))  # (batch, dim)
        logits = self.classifier(self.dropout(pooled))  # (batch, num_labels)
        loss = None if labels is None else sequence_classification_loss(self.config, logits, labels)
        return with_loss(SequenceClassifierOutput(logits, output.hidden_states, output.attentions), loss)


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForQuestionAnswering(PretrainedModel):
    """The encoder, and for every token two logits: that an answer starts there, and that it ends there.

    Example:
        model = DistilBertForQuestionAnswering.from_pretrained("folder")
        start_logits, end_logits, *_ = model(input_ids, attention_mask)  # (batch, seq) each
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.qa_outputs = linear(config, 2, "qa_outputs", self.dtype_policy)
        self.dropout = Dropout(config.qa_dropout, dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        self.qa_outputs.build((None, None, self.config.dim))

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> QuestionAnsweringOutput | QuestionAnsweringOutputWithLoss:
        """Find answers. Arguments as for `DistilBertModel`; the positions: (batch,), ignored outside the sequence."""
        check_no_unknown(unknown)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        logits = self.qa_outputs(self.dropout(output.last_hidden_state))  # (batch, seq, 2)
        start_logits, end_logits = logits[..., 0], logits[..., 1]
        answer = QuestionAnsweringOutput(start_logits, end_logits, output.hidden_states, output.attentions)
        if start_positions is None and end_positions is None:
            return answer
        return with_loss(answer, question_answering_loss(start_logits, end_logits, start_positions, end_positions))


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForTokenClassification(PretrainedModel):
    """The encoder, and one row of logits per token.

    Example:
        model = DistilBertForTokenClassification.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, seq, num_labels)
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.classifier = linear(config, config.num_labels, "classifier", self.dtype_policy)
        self.dropout = Dropout(config.dropout, dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        self.classifier.build((None, None, self.config.dim))

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> TokenClassifierOutput | TokenClassifierOutputWithLoss:
        """Classify tokens. Arguments as for `DistilBertModel`; labels: (batch, seq), -100 where none counts."""
        check_no_unknown(unknown)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        logits = self.classifier(self.dropout(output.last_hidden_state))  # (batch, seq, num_labels)
        loss = None if labels is None else cross_entropy(logits, labels)
        return with_loss(TokenClassifierOutput(logits, output.hidden_states, output.attentions), loss)


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForMultipleChoice(PretrainedModel):
    """The encoder, and one logit for each choice, from its first token. num_labels has no meaning here.

    Example:
        model = DistilBertForMultipleChoice.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, num_choices), input_ids (batch, num_choices, seq)
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.pre_classifier = linear(config, config.dim, "pre_classifier", self.dtype_policy)
        self.classifier = linear(config, 1, "classifier", self.dtype_policy)
        self.dropout = Dropout(config.seq_classif_dropout, dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        for layer in (self.pre_classifier, self.classifier):
            layer.build((None, None, self.config.dim))

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> MultipleChoiceOutput | MultipleChoiceOutputWithLoss:
        """Choose. Arguments as for `DistilBertModel`, those per token with the axes (batch, num_choices, ...).

        labels: (batch,), the index of the right choice. Hidden states and attentions have batch * num_choices rows.
        """
        check_no_unknown(unknown)
        input_ids, attention_mask = as_tensor("input_ids", input_ids), as_tensor("attention_mask", attention_mask)
        position_ids, inputs_embeds = as_tensor("position_ids", position_ids), as_tensor("inputs_embeds", inputs_embeds)
        num_choices = check_choices(input_ids, attention_mask, position_ids, inputs_embeds)
        if num_choices is None:  # not known before the call
            num_choices = ops.shape(input_ids if inputs_embeds is None else inputs_embeds)[1]
        output = self.distilbert(
            flatten_choices(input_ids),
            flatten_choices(attention_mask),
            position_ids=flatten_choices(position_ids),
            inputs_embeds=flatten_choices(inputs_embeds),
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        pooled = ops.relu(self.pre_classifier(output.last_hidden_state[:, 0]))  # (batch * num_choices, dim)
        logits = ops.reshape(self.classifier(self.dropout(pooled)), (-1, num_choices))  # (batch, num_choices)
        loss = None if labels is None else cross_entropy(logits, labels)
        return with_loss(MultipleChoiceOutput(logits, output.hidden_states, output.attentions), loss)


class Pooling(keras.layers.Layer):
    """One vector per row from the token vectors that the mask keeps; zeros for a row without any, but in mode cls.

    A dense layer may follow. hidden: (batch, seq, dim); attention_mask: (batch, seq); result: (batch, dim), or
    (batch, out_features) with the layer. Source: Reimers and Gurevych 2019.
    """

    def __init__(self, config: DistilBertConfig, pooling: PoolingConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = pooling
        if pooling.dense is not None:
            size, bias = pooling.dense.out_features, pooling.dense.bias
            self.dense = linear(config, size, "dense", self.dtype_policy, bias=bias)

    def build(self, input_shape: Shape = None) -> None:
        if self.config.dense is not None:
            self.dense.build(input_shape)

    def call(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = at_least_float32(hidden)
        keep = ops.ones_like(x[:, :, 0]) if attention_mask is None else attention_mask
        keep = ops.cast(ops.cast(keep, "bool"), x.dtype)[:, :, None]
        count = ops.sum(keep, 1)  # (batch, 1)
        if self.config.mode == "cls":
            x = x[:, 0]
        elif self.config.mode == "max":
            x = ops.max(ops.where(keep != 0, x, lowest(x)), 1) * ops.cast(count != 0, x.dtype)
        else:
            x = ops.sum(x * keep, 1) / ops.maximum(count if self.config.mode == "mean" else ops.sqrt(count), 1e-9)
        if self.config.dense is not None:
            x = ACTIVATIONS[self.config.dense.activation](self.dense(ops.cast(x, hidden.dtype)))
        if self.config.normalize:
            x = unit(x)
        return ops.cast(x, hidden.dtype)  # (batch, dim or out_features)


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForSentenceEmbedding(PretrainedModel):
    """The encoder and a pooling: one vector per text, as sentence-transformers computes it.

    Example:
        model = DistilBertForSentenceEmbedding.from_pretrained("folder")
        vectors = model(input_ids, attention_mask).embeddings  # (batch, dim), or as wide as the pooling's dense layer
    """

    def __init__(self, config: DistilBertConfig, pooling: PoolingConfig | None = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.pooling = Pooling(config, pooling or PoolingConfig(), name="pooling", dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        self.pooling.build((None, None, self.config.dim))

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> SentenceEmbeddingOutput:
        """Embed a batch. Arguments as for `DistilBertModel`; attention_mask only as (batch, seq)."""
        check_no_unknown(unknown)
        attention_mask = as_tensor("attention_mask", attention_mask)
        check_pooling_mask(attention_mask)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        embeddings = self.pooling(
            output.last_hidden_state, attention_mask=attention_mask
        )  # (batch, dim or out_features)
        return SentenceEmbeddingOutput(embeddings, output.hidden_states, output.attentions)
