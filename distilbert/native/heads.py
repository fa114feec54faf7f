"""The seven classes for inference without a framework."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from distilbert import weight_map
from distilbert.checkpoint.loading import LoadReport
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checks import no_array
from distilbert.inference import MODEL_ONLY, Array, check_precision
from distilbert.native.engine import lacks_for
from distilbert.native.library import NoKernelsError
from distilbert.native.model import OwnKernels
from distilbert.processors import recommended_threads


class PretrainedModel(OwnKernels[None]):
    """A checkpoint for inference: called as the models of the backends are, on NumPy arrays or lists of ids.

    Hidden states, attentions and what else `FrozenModel` leaves to a model itself are refused: backends have them.
    """

    backend = "native"
    load_report: LoadReport

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        precision: str = "float32",
        strict: bool = True,
        new_head: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        **config_overrides: Any,
    ) -> Self:
        """A model with the weights of a checkpoint, in any format.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            precision: of the products: "float32", "bfloat16" or "int8", see `inference.optimize` of a backend.
            strict: refuse tensors that the class does not know.
            new_head: allow a head that the checkpoint lacks; it gets initial weights.
            revision: of the hub model: a branch, a tag or a commit hash; default its main branch.
            local_files_only: take a hub model from the cache, without the network.
            config_overrides: config fields that win over the file.

        Raises:
            CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
            NoKernelsError: this machine cannot compute the model in that precision. ValueError: there is no such
                precision; int8, and a weight that is not finite.
        """
        check_precision(precision)
        source = open_checkpoint(
            folder_or_hub_id, cls.__name__, strict=strict, new_head=new_head, revision=revision,
            local_files_only=local_files_only, **config_overrides,
        )  # fmt: skip
        reason = lacks_for(source.config, precision)
        if reason:
            raise NoKernelsError(f"distilbert.native needs its kernels: {reason}; use a framework.")
        weights = dict(source)
        for name in weight_map.tied(source.config, cls.__name__):
            weights.setdefault(name, weights[weight_map.WORD_EMBEDDINGS])
        model = cls(source.config, cls.__name__, source.settings.get("pooling"), precision, None, weights)
        model.load_report = source.report
        return model

    def _threads(self) -> int:
        told = os.environ.get("OMP_NUM_THREADS", "")
        return int(told) if told.isdecimal() and int(told) else recommended_threads()

    def _to_host(self, name: str, value: Any) -> Array | None:
        try:
            array = None if value is None else np.asarray(value)
        except (TypeError, ValueError) as error:
            raise ValueError(no_array(name, value)) from error
        if array is not None and array.dtype.kind not in "biuf":
            raise ValueError(no_array(name, value))
        return array

    def _by_model(self, given: dict[str, Any], **options: Any) -> Any:
        return self._call_model(None, **given, **options)

    def _call_model(self, model: None, **arguments: Any) -> Any:  # noqa: ARG002 - there is no model
        raise ValueError(f"{MODEL_ONLY} need a framework's model: take distilbert.pt, tf or flax.")

    def _from_host(self, array: Array) -> Array:
        return array


class DistilBertModel(PretrainedModel):
    """The encoder: last hidden states (batch, seq, dim)."""


class DistilBertForMaskedLM(PretrainedModel):
    """Logits over the vocabulary, (batch, seq, vocab_size)."""


class DistilBertForSequenceClassification(PretrainedModel):
    """Logits of each row, (batch, num_labels)."""


class DistilBertForQuestionAnswering(PretrainedModel):
    """Logits of where the answer starts and ends, (batch, seq) each."""


class DistilBertForTokenClassification(PretrainedModel):
    """Logits of each token, (batch, seq, num_labels)."""


class DistilBertForMultipleChoice(PretrainedModel):
    """Logits of each choice, (batch, num_choices)."""


class DistilBertForSentenceEmbedding(PretrainedModel):
    """One vector of each row, (batch, width)."""
