"""Fast inference in PyTorch: `optimize` freezes a model into the form that computes fastest on its device.

Twins: tf/inference.py and flax/inference.py; what they share is in distilbert/inference.py. Axes: batch, seq, dim,
total (kept tokens), num_labels, num_choices, vocab_size.
"""

from __future__ import annotations

import abc
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilbert.inference import (
    Array,
    Description,
    FrozenModel,
    Tokens,
    check_finite,
    check_model,
    check_precision,
    identity,
)
from distilbert.native.model import OwnKernels, reason_against
from distilbert.outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceOutput,
    QuestionAnsweringOutput,
    SentenceEmbeddingOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from distilbert.processors import recommended_threads
from distilbert.pt import heads
from distilbert.pt.losses import unit
from distilbert.pt.model import ACTIVATIONS, DistilBertModel
from distilbert.pt.pretrained import PretrainedModel, as_tensor, to_numpy
from distilbert.pt.products import Product, missing, new_product
from distilbert.pt.unpadded import Encoder, Runs, can_flash, frozen_norm

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
BUDGETS = {"cpu": 1024, "cuda": 65536}  # tokens computed at once: on a CPU, what its caches hold


def optimize(
    model: PretrainedModel, precision: str = "float32", *, keep_model: bool = True, native: bool | None = None
) -> OptimizedModel:
    """The model for inference, frozen: called as the model is, on one device, with results in float32.

    On a CPU, PyTorch computes with no more threads from then on than the process has cores, see `limit_threads`.

    Args:
        model: of any class, in any dtype, on the CPU or a CUDA device; its weights are copied, it is not changed.
        precision: of the products. "float32" gives the model's results. "bfloat16" keeps residuals, LayerNorm and
            softmax in float32. "int8" (CPU) quantizes weights per output and activations per token, when they come.
        keep_model: for the calls that only the model itself can answer; without it its memory can be freed.
        native: whether this package's own kernels compute instead of PyTorch's; default where they are faster.

    Raises:
        ValueError: there is no such precision, or not on this device; int8, and a weight that is not finite; native,
            and its kernels are not there.
        TypeError: it is no model.
    """
    check_model(model)
    cpu = model.device.type == "cpu"
    if check_precision(precision) == "int8" and not cpu:
        raise ValueError(f"precision 'int8' is for CPUs, and the model is on {model.device}: use 'bfloat16'.")
    if cpu:
        limit_threads()
    reason = reason_against(native, model.config, precision, cpu=cpu, framework_has_units=True)
    if not reason:
        return NativeModel(model, precision, keep_model=keep_model)
    return FrameworkModel(model, precision, reason, keep_model=keep_model)


def limit_threads() -> None:
    """Lower PyTorch's threads to what a container's quota and the cores allow, unless the environment names a number.

    Threads beyond that wait for each other at the end of every product.
    """
    allowed = recommended_threads()
    if torch.get_num_threads() > allowed and not any(name in os.environ for name in THREAD_VARIABLES):
        torch.set_num_threads(allowed)


class OptimizedModel(FrozenModel[PretrainedModel]):
    """What `optimize` returns.

    Example:
        fast = optimize(DistilBertModel.from_pretrained("folder"))
        hidden = fast([[101, 7592, 102], [101, 102]]).last_hidden_state  # (2, 3, dim)
    """

    def _to_host(self, name: str, value: Any) -> Array | None:
        if value is None or isinstance(value, np.ndarray):
            return value
        tensor = as_tensor(name, value, torch.device("cpu"))
        return to_numpy(tensor)

    def _call_model(self, model: PretrainedModel, **arguments: Any) -> Any:
        with model.evaluating():
            output = model(**arguments)
        parts = (tuple(map(torch.clone, x)) if isinstance(x, tuple) else x.clone() for x in output)
        return type(output)(*parts)  # ordinary tensors, which can be trained on


class NativeModel(OwnKernels[PretrainedModel], OptimizedModel):
    """By this package's own kernels."""

    backend = "pt"

    def __init__(self, model: PretrainedModel, precision: str, *, keep_model: bool) -> None:
        kept = model if keep_model else None
        super().__init__(*identity(model), precision, kept, model.weights_by_name())

    def _threads(self) -> int:
        return torch.get_num_threads()

    def _from_host(self, array: Array) -> Tensor:
        return torch.from_numpy(array)


class FrameworkModel(OptimizedModel):
    """By PyTorch's kernels; `reason` says why not by this package's own."""

    def __init__(self, model: PretrainedModel, precision: str, reason: str, *, keep_model: bool) -> None:
        super().__init__(*identity(model), precision, model if keep_model else None)
        check_finite((to_numpy(parameter) for parameter in model.parameters()), precision)
        self._reason = reason
        encoder: Any = getattr(model, "distilbert", model)
        self._head = HEADS[self.head](model, precision)
        self._encoder = Encoder(encoder, precision, first_only=self._reads_first_token)
        self._budget = BUDGETS.get(model.device.type, BUDGETS["cpu"])
        self._device = model.device

    def describe(self) -> Description:
        """What it uses: precision, kernels, fallbacks."""
        kernels = {
            "tokens": "unpadded",
            "products": ", ".join(dict.fromkeys(product.kernel for product in self._encoder.products)),
            "attention": "flash for unlike lengths" if self._flash else "rows of one length together",
            "heads": "float32",
        }
        lacks = missing(self.precision) if self._device.type == "cpu" else ()
        fallbacks = (*lacks, f"this package's own kernels: {self._reason}", self._model_calls)
        return Description(
            "pt", self.head, self.precision, str(self._device), torch.get_num_threads(), kernels, fallbacks
        )

    @property
    def _flash(self) -> bool:
        return self._device.type == "cuda" and self.precision == "bfloat16" and can_flash(self.config.head_dim)

    @torch.no_grad()
    def _compute(self, tokens: Tokens, choices: int | None) -> Any:
        with torch.autocast(self._device.type, enabled=False):
            results = [self._head(*self._encoder(part)) for part in tokens.chunks(self._budget)]
        arrange = self._rows if self._head.per_row else self._padded
        return self._head.output(arrange(results, tokens), choices)

    def _rows(self, results: list[Tensor], tokens: Tokens) -> Tensor:
        """Results of rows, the longest first, in the order of the batch: (batch, width)."""
        result = results[0] if len(results) == 1 else torch.cat(results)
        if len(result) == 1:
            return result
        return torch.empty_like(result).index_copy_(0, self._to_device(tokens.rows).long(), result)

    def _padded(self, results: list[Tensor], tokens: Tokens) -> Tensor:
        """Results of kept tokens in their places, 0 elsewhere: (batch, seq, width)."""
        if tokens.dense:
            return (
                torch.cat(results).view(*tokens.shape, -1) if len(results) > 1 else results[0].view(*tokens.shape, -1)
            )
        batch, seq = tokens.shape
        padded = torch.zeros(batch * seq, self._head.width, dtype=torch.float32, device=self._device)
        places = self._to_device(tokens.places).split([len(result) for result in results])
        for result, place in zip(results, places, strict=True):
            padded.index_copy_(0, place, result)
        return padded.view(batch, seq, -1)

    def _to_device(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class Head(abc.ABC):
    """What follows the encoder: hidden states of unpadded tokens to results, and these to the model's output."""

    per_row = False  # whether there is one result per row, instead of one per token

    def __init__(self, model: Any, precision: str) -> None:  # noqa: ARG002 - some heads have products
        self.width: int = model.config.dim

    @abc.abstractmethod
    def __call__(self, x: Tensor, runs: Runs) -> Tensor:
        """x: (total, dim), or (rows, dim) of first tokens; result: (total, width), or (rows, width)."""

    @abc.abstractmethod
    def output(self, results: Tensor, choices: int | None) -> Any:
        """results: (batch, seq, width), or (batch, width)."""


class HiddenStateHead(Head):
    """None: hidden states are the result."""

    def __call__(self, x: Tensor, runs: Runs) -> Tensor:  # noqa: ARG002 - rows do not matter here
        return x

    def output(self, results: Tensor, choices: int | None) -> BaseModelOutput:  # noqa: ARG002 - has none
        return BaseModelOutput(results)


class MaskedLMHead(Head):
    """Logits over the vocabulary."""

    def __init__(self, model: heads.DistilBertForMaskedLM, precision: str) -> None:
        super().__init__(model, precision)
        transform, projector = model.vocab_transform, model.vocab_projector
        self.transform = new_product(precision, transform.weight, transform.bias, model.config.activation)
        self.norm = frozen_norm(model.vocab_layer_norm)
        self.projector = new_product(precision, projector.weight, projector.bias)
        self.width = model.config.vocab_size

    def __call__(self, x: Tensor, runs: Runs) -> Tensor:  # noqa: ARG002 - as above
        return self.projector(self.norm(self.transform(x).float())).float()

    def output(self, results: Tensor, choices: int | None) -> MaskedLMOutput:  # noqa: ARG002 - as above
        return MaskedLMOutput(results)


class TokenClassificationHead(Head):
    """Logits of each token."""

    def __init__(self, model: heads.DistilBertForTokenClassification, precision: str) -> None:
        super().__init__(model, precision)
        self.classifier = in_float32(model.classifier)
        self.width = model.config.num_labels

    def __call__(self, x: Tensor, runs: Runs) -> Tensor:  # noqa: ARG002 - as above
        return self.classifier(x)

    def output(self, results: Tensor, choices: int | None) -> TokenClassifierOutput:  # noqa: ARG002 - as above
        return TokenClassifierOutput(results)


class QuestionAnsweringHead(Head):
    """Two logits of each token."""

    def __init__(self, model: heads.DistilBertForQuestionAnswering, precision: str) -> None:
        super().__init__(model, precision)
        self.qa_outputs = in_float32(model.qa_outputs)
        self.width = 2

    def __call__(self, x: Tensor, runs: Runs) -> Tensor:  # noqa: ARG002 - as above
        return self.qa_outputs(x)

    def output(self, results: Tensor, choices: int | None) -> QuestionAnsweringOutput:  # noqa: ARG002 - as above
        return QuestionAnsweringOutput(results[..., 0], results[..., 1])


class SequenceClassificationHead(Head):
    """Logits of each row, from its first token."""

    per_row = True

    def __init__(
        self,
        model: heads.DistilBertForSequenceClassification | heads.DistilBertForMultipleChoice,
        precision: str,
    ) -> None:
        super().__init__(model, precision)
        self.pre_classifier = in_float32(model.pre_classifier, "relu")
        self.classifier = in_float32(model.classifier)

    def __call__(self, x: Tensor, runs: Runs) -> Tensor:  # noqa: ARG002 - as above
        return self.classifier(self.pre_classifier(x))

    def output(self, results: Tensor, choices: int | None) -> Any:  # noqa: ARG002 - as above
        return SequenceClassifierOutput(results)


class MultipleChoiceHead(SequenceClassificationHead):
    """One logit of each choice, from its first token."""

    def output(self, results: Tensor, choices: int | None) -> MultipleChoiceOutput:
        return MultipleChoiceOutput(results.view(-1, choices or 1))


class SentenceEmbeddingHead(Head):
    """One vector of each row."""

    per_row = True

    def __init__(self, model: heads.DistilBertForSentenceEmbedding, precision: str) -> None:
        super().__init__(model, precision)
        self.config = model.pooling.config
        self.dense = None if self.config.dense is None else in_float32(model.pooling.dense)

    def __call__(self, x: Tensor, runs: Runs) -> Tensor:
        if self.config.mode != "cls":
            parts = x.split([rows * length for rows, length in runs])
            x = torch.cat([self.pool(part.view(*run, -1)) for part, run in zip(parts, runs, strict=True)])
        if self.config.dense is not None and self.dense is not None:
            x = ACTIVATIONS[self.config.dense.activation](self.dense(x))
        return unit(x) if self.config.normalize else x

    def pool(self, x: Tensor) -> Tensor:
        """Rows of one length, (rows, length, dim), to (rows, dim)."""
        if self.config.mode == "max":
            return x.amax(1)
        return x.mean(1) if self.config.mode == "mean" else x.sum(1) / x.shape[1] ** 0.5

    def output(self, results: Tensor, choices: int | None) -> SentenceEmbeddingOutput:  # noqa: ARG002 - as above
        return SentenceEmbeddingOutput(results)


HEADS: dict[str, type[Head]] = {
    DistilBertModel.__name__: HiddenStateHead,
    heads.DistilBertForMaskedLM.__name__: MaskedLMHead,
    heads.DistilBertForSequenceClassification.__name__: SequenceClassificationHead,
    heads.DistilBertForQuestionAnswering.__name__: QuestionAnsweringHead,
    heads.DistilBertForTokenClassification.__name__: TokenClassificationHead,
    heads.DistilBertForMultipleChoice.__name__: MultipleChoiceHead,
    heads.DistilBertForSentenceEmbedding.__name__: SentenceEmbeddingHead,
}


def in_float32(layer: nn.Linear, activation: str = "identity") -> Product:
    """A small last layer, in float32 whatever the precision of the others."""
    return new_product("float32", layer.weight, layer.bias, activation)
