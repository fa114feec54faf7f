"""An optimized model that computes by the library, and when one does: what the three backends share."""

from __future__ import annotations

import abc
from typing import Any, TypeVar

import numpy as np

from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.inference import ANSWERS, OUTPUTS, Array, Description, FrozenModel, Tokens
from distilbert.native.engine import Engine, Weights, aligned_zeros, lacks_for
from distilbert.native.library import NoKernelsError, has_matrix_units
from distilbert.processors import recommended_threads

Model = TypeVar("Model")


def reason_against(
    native: bool | None, config: DistilBertConfig, precision: str, *, cpu: bool, framework_has_units: bool
) -> str:
    """Why a model is not to be computed by the library; empty if it is.

    Args:
        native: what the user wants; None for what is faster.
        config: of the model.
        precision: of the products.
        cpu: whether the model is on one.
        framework_has_units: whether the framework uses the processor's matrix units, if there are some.

    Raises:
        NoKernelsError: `native` is True, and it cannot be.
    """
    if native is False:
        return "not wanted"
    reason = lacks_for(config, precision) if cpu else "the model is not on a CPU"
    if native and reason:
        raise NoKernelsError(f"native=True needs this package's own kernels: {reason}.")
    if native is None and not reason and framework_has_units and precision != "float32" and has_matrix_units():
        return "the framework uses this processor's matrix units"
    return reason


class OwnKernels(FrozenModel[Model]):
    """Results by the library, in the arrays of a framework."""

    backend: str  # its name

    def __init__(
        self,
        config: DistilBertConfig,
        head: str,
        pooling: PoolingConfig | None,
        precision: str,
        model: Model | None,
        weights: Weights,
    ) -> None:
        """As `FrozenModel`; weights by canonical name in canonical orientation, of any dtype, which are copied."""
        super().__init__(config, head, pooling, precision, model)
        self._engine = Engine(config, head, pooling, weights, precision, self._threads())

    def describe(self) -> Description:
        """What it uses: precision, kernels, fallbacks."""
        kernels = {
            "tokens": "unpadded",
            "everything": "this package's own kernels, AVX-512",
            "heads": "float32",
        }
        threads, useful = self._threads(), recommended_threads()
        fallbacks = [self._model_calls]
        if threads > useful:
            fallbacks.append(f"{threads} threads were asked for, and {useful} are faster here")
        return Description(self.backend, self.head, self.precision, "cpu", threads, kernels, tuple(fallbacks))

    def _compute(self, tokens: Tokens, choices: int | None) -> Any:
        flat = self._engine(tokens, self._threads())
        result = by_row(flat, tokens) if self._engine.per_row else by_place(flat, tokens)
        result = result if choices is None else result.reshape(-1, choices)
        parts = (result[..., 0], result[..., 1]) if self.head == ANSWERS else (result,)
        return OUTPUTS[self.head](*map(self._from_host, parts))

    @abc.abstractmethod
    def _threads(self) -> int:
        """That one call computes with."""

    @abc.abstractmethod
    def _from_host(self, array: Array) -> Any:
        """The array as the framework's, which may keep its memory."""


def by_place(flat: Array, tokens: Tokens) -> Array:
    """Results of tokens, (total, width), in their places, 0 elsewhere: (batch, seq, width)."""
    batch, seq = tokens.shape
    if not tokens.dense:
        padded = aligned_zeros((batch * seq, flat.shape[1]))
        padded[tokens.places] = flat
        flat = padded
    return flat.reshape(batch, seq, -1)


def by_row(flat: Array, tokens: Tokens) -> Array:
    """Results of rows, (rows, width), in the order of the batch."""
    result = np.empty_like(flat)
    result[tokens.rows] = flat
    return result
