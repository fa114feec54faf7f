"""What one backend makes of NumPy arrays in training: losses, objectives, their gradients, and whole steps."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.adapters import HASTE, Adapter, make
from distilbert.backends import load_backend
from distilbert.config import DistilBertConfig
from distilbert.training.batches import Batch
from distilbert.training.objective import Objective
from distilbert.training.trainer import Optimization, StepResult

Arrays = dict[str, NDArray[Any]]


def value_and_gradients(
    backend: str, function: str, arguments: Mapping[str, NDArray[Any]], by: Sequence[str], dtype: str, **options: Any
) -> tuple[NDArray[Any], Arrays]:
    """The loss of that name for the arguments, and its gradient with respect to those of the names `by`."""
    module, losses = load_backend(backend), importlib.import_module(f"distilbert.{backend}.losses")
    with module.exact(dtype):
        given = native(backend, arguments)
        value, gradients = DIFFERENTIATE[backend](getattr(losses, function), given, by, options)
        return np.asarray(value), {name: np.asarray(gradients[name]) for name in by}


def objective_parts(
    backend: str, models: Sequence[tuple[DistilBertConfig, Arrays]], batch: Batch, objective: Objective, dtype: str
) -> tuple[Arrays, Arrays, Arrays]:
    """What a teacher gives for a batch, the losses by name, and the gradient of the objective for every tensor.

    models: config and weights of the student, and of the teacher.
    """
    student, teacher = (make(backend, objective.head, config, weights) for config, weights in models)
    with load_backend(backend).exact(dtype):
        given = [native(backend, x) for x in (batch.inputs, batch.targets, batch.weights)]
        taught, parts, gradients = student.objective(objective, teacher.model, *given)
    return _in_numpy(student, taught), _in_numpy(student, parts), gradients


def trained(
    backend: str,
    models: Sequence[tuple[DistilBertConfig, Arrays]],
    objective: Objective,
    optimization: Optimization,
    steps: Sequence[Sequence[Batch]],
    learning_rates: Sequence[float],
) -> tuple[list[StepResult], Arrays]:
    """What a trainer's steps found, and its state after them."""
    training = importlib.import_module(f"distilbert.{backend}.training")
    student, teacher = (make(backend, objective.head, config, weights).model for config, weights in models)
    with training.session():
        trainer = training.trainer(student, objective, optimization, teacher)
        taken = enumerate(zip(steps, learning_rates, strict=True))
        results = [trainer.step(number, batches, rate) for number, (batches, rate) in taken]
        return results, dict(trainer.state())


def _in_numpy(adapter: Adapter, arrays: Mapping[str, Any]) -> Arrays:
    return {name: adapter.array(array) for name, array in arrays.items()}


def native(backend: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Arrays as the framework has them."""
    return {name: NATIVE[backend](array) for name, array in arrays.items()}


def _tensor_of_torch(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(array.copy())


def _tensor_of_tensorflow(array: NDArray[Any]) -> Any:
    import tensorflow as tf

    return tf.convert_to_tensor(array)


def _array_of_jax(array: NDArray[Any]) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


def _by_torch(function: Any, given: dict[str, Any], by: Sequence[str], options: Mapping[str, Any]) -> tuple[Any, Any]:
    import torch

    leaves = [given[name].requires_grad_() for name in by]
    value = function(**given, **options)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(by, gradients, strict=True))


def _by_tensorflow(
    function: Any, given: dict[str, Any], by: Sequence[str], options: Mapping[str, Any]
) -> tuple[Any, Any]:
    import tensorflow as tf

    leaves = {name: given[name] for name in by}
    with tf.GradientTape() as tape:
        tape.watch(leaves)
        value = function(**given, **options)
    return value, tape.gradient(value, leaves, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _by_jax(function: Any, given: dict[str, Any], by: Sequence[str], options: Mapping[str, Any]) -> tuple[Any, Any]:
    leaves = {name: given[name] for name in by}
    return _program_of_jax(function, tuple(options.items()))(leaves, given)


@functools.cache
def _program_of_jax(function: Any, options: tuple[tuple[str, Any], ...]) -> Any:
    """Compiled: one program is ready sooner than as many as it has operations."""
    import jax

    value_and_grad = jax.value_and_grad(lambda leaves, given: function(**given | leaves, **dict(options)))
    return jax.jit(value_and_grad, compiler_options=HASTE)


NATIVE = {"pt": _tensor_of_torch, "tf": _tensor_of_tensorflow, "flax": _array_of_jax}
DIFFERENTIATE = {"pt": _by_torch, "tf": _by_tensorflow, "flax": _by_jax}
