"""The heads in PyTorch: what follows from the encoder's hidden states. Twins: tf/heads.py and flax/heads.py.

Sources: Devlin et al. 2018 (heads), Sanh et al. 2019 (no pooler), Reimers and Gurevych 2019 (sentence embedding).
Axes: batch, seq, dim, vocab_size, num_labels, num_choices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
from distilbert.pt.losses import (
    at_least_float32,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
    unit,
)
from distilbert.pt.model import ACTIVATIONS, DistilBertModel, layer_norm, linear
from distilbert.pt.pretrained import PretrainedModel, as_tensor


def flatten_choices(x: Any) -> Any:
    """(batch, num_choices, ...) to (batch * num_choices, ...); None stays None."""
    return None if x is None else x.flatten(0, 1)


class DistilBertForMaskedLM(PretrainedModel):
    """The encoder, and logits over the vocabulary for every token.

    Example:
        model = DistilBertForMaskedLM.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, seq, vocab_size)
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.vocab_transform = linear(config, config.dim, config.dim)
        self.vocab_layer_norm = layer_norm(config)
        self.vocab_projector = linear(config, config.dim, config.vocab_size)
        self.activation = ACTIVATIONS[config.activation]
        self.tie_weights()

    def forward(
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
        )
        logits = self.vocab_logits(output.last_hidden_state)  # (batch, seq, vocab_size)
        loss = None if labels is None else cross_entropy(logits, labels)
        return with_loss(MaskedLMOutput(logits, output.hidden_states, output.attentions), loss)

    def vocab_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, for all hidden states or a selection: (..., dim) to (..., vocab_size)."""
        x = self.vocab_layer_norm(self.activation(self.vocab_transform(hidden)))  # (..., dim)
        return self.vocab_projector(x)


class DistilBertForSequenceClassification(PretrainedModel):
    """The encoder, and one row of logits (or one number) per text, from its first token.

    Example:
        model = DistilBertForSequenceClassification.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, num_labels)
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.pre_classifier = linear(config, config.dim, config.dim)
        self.classifier = linear(config, config.dim, config.num_labels)
        self.dropout = nn.Dropout(config.seq_classif_dropout)

    def forward(
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
        )
        pooled = torch.relu(self.pre_classifier(output.last_hidden_state[:, 0]))  # (batch, dim)
        logits = self.classifier(self.dropout(pooled))  # (batch, num_labels)
        loss = None if labels is None else sequence_classification_loss(self.config, logits, labels)
        return with_loss(SequenceClassifierOutput(logits, output.hidden_states, output.attentions), loss)


class DistilBertForQuestionAnswering(PretrainedModel):
    """The encoder, and for every token two logits: that an answer starts there, and that it ends there.

    Example:
        model = DistilBertForQuestionAnswering.from_pretrained("folder")
        start_logits, end_logits, *_ = model(input_ids, attention_mask)  # (batch, seq) each
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.qa_outputs = linear(config, config.dim, 2)
        self.dropout = nn.Dropout(config.qa_dropout)

    def forward(
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
        )
        logits = self.qa_outputs(self.dropout(output.last_hidden_state))  # (batch, seq, 2)
        start_logits, end_logits = logits[..., 0], logits[..., 1]
        answer = QuestionAnsweringOutput(start_logits, end_logits, output.hidden_states, output.attentions)
        if start_positions is None and end_positions is None:
            return answer
        return with_loss(answer, question_answering_loss(start_logits, end_logits, start_positions, end_positions))


class DistilBertForTokenClassification(PretrainedModel):
    """The encoder, and one row of logits per token.

    Example:
        model = DistilBertForTokenClassification.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, seq, num_labels)
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.classifier = linear(config, config.dim, config.num_labels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
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
        )
        logits = self.classifier(self.dropout(output.last_hidden_state))  # (batch, seq, num_labels)
        loss = None if labels is None else cross_entropy(logits, labels)
        return with_loss(TokenClassifierOutput(logits, output.hidden_states, output.attentions), loss)


class DistilBertForMultipleChoice(PretrainedModel):
    """The encoder, and one logit for each choice, from its first token. num_labels has no meaning here.

    Example:
        model = DistilBertForMultipleChoice.from_pretrained("folder")
        logits = model(input_ids, attention_mask).logits  # (batch, num_choices), input_ids (batch, num_choices, seq)
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.pre_classifier = linear(config, config.dim, config.dim)
        self.classifier = linear(config, config.dim, 1)
        self.dropout = nn.Dropout(config.seq_classif_dropout)

    def forward(
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
        **unknown: Any,
    ) -> MultipleChoiceOutput | MultipleChoiceOutputWithLoss:
        """Choose. Arguments as for `DistilBertModel`, those per token with the axes (batch, num_choices, ...).

        labels: (batch,), the index of the right choice. Hidden states and attentions have batch * num_choices rows.
        """
        check_no_unknown(unknown)
        input_ids, attention_mask = (
            as_tensor("input_ids", input_ids, self.device),
            as_tensor("attention_mask", attention_mask, self.device),
        )
        position_ids, inputs_embeds = (
            as_tensor("position_ids", position_ids, self.device),
            as_tensor("inputs_embeds", inputs_embeds, self.device),
        )
        num_choices = check_choices(input_ids, attention_mask, position_ids, inputs_embeds)
        output = self.distilbert(
            flatten_choices(input_ids),
            flatten_choices(attention_mask),
            position_ids=flatten_choices(position_ids),
            inputs_embeds=flatten_choices(inputs_embeds),
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        pooled = torch.relu(self.pre_classifier(output.last_hidden_state[:, 0]))  # (batch * num_choices, dim)
        logits = self.classifier(self.dropout(pooled)).reshape(-1, num_choices)  # (batch, num_choices)
        loss = None if labels is None else cross_entropy(logits, labels)
        return with_loss(MultipleChoiceOutput(logits, output.hidden_states, output.attentions), loss)


class Pooling(nn.Module):
    """One vector per row from the token vectors that the mask keeps; zeros for a row without any, but in mode cls.

    A dense layer may follow. hidden: (batch, seq, dim); attention_mask: (batch, seq); result: (batch, dim), or
    (batch, out_features) with the layer. Source: Reimers and Gurevych 2019.
    """

    def __init__(self, config: DistilBertConfig, pooling: PoolingConfig) -> None:
        super().__init__()
        self.config = pooling
        if pooling.dense is not None:
            self.dense = linear(config, config.dim, pooling.dense.out_features, bias=pooling.dense.bias)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = at_least_float32(hidden)
        keep = torch.ones_like(x[:, :, :1]) if attention_mask is None else (attention_mask != 0)[:, :, None].to(x)
        count = keep.sum(1)  # (batch, 1)
        if self.config.mode == "cls":
            x = x[:, 0]
        elif self.config.mode == "max":
            x = torch.where(keep != 0, x, torch.finfo(x.dtype).min).amax(1) * (count != 0)
        else:
            x = (x * keep).sum(1) / (count if self.config.mode == "mean" else count.sqrt()).clamp(min=1e-9)
        if self.config.dense is not None:
            x = ACTIVATIONS[self.config.dense.activation](self.dense(x.to(hidden.dtype)))
        if self.config.normalize:
            x = unit(x)
        return x.to(hidden.dtype)  # (batch, dim or out_features)


class DistilBertForSentenceEmbedding(PretrainedModel):
    """The encoder and a pooling: one vector per text, as sentence-transformers computes it.

    Example:
        model = DistilBertForSentenceEmbedding.from_pretrained("folder")
        vectors = model(input_ids, attention_mask).embeddings  # (batch, dim), or as wide as the pooling's dense layer
    """

    def __init__(self, config: DistilBertConfig, pooling: PoolingConfig | None = None) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.pooling = Pooling(config, pooling or PoolingConfig())

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
    ) -> SentenceEmbeddingOutput:
        """Embed a batch. Arguments as for `DistilBertModel`; attention_mask only as (batch, seq)."""
        check_no_unknown(unknown)
        attention_mask = as_tensor("attention_mask", attention_mask, self.device)
        check_pooling_mask(attention_mask)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        embeddings = self.pooling(output.last_hidden_state, attention_mask)  # (batch, dim or out_features)
        return SentenceEmbeddingOutput(embeddings, output.hidden_states, output.attentions)
