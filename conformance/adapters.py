"""One adapter per backend: a model with given weights, what it returns, its gradients, and one step of AdamW.

Everything goes in and comes out as NumPy arrays under canonical names, so that what compares knows no framework.
"""

from __future__ import annotations

import abc
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilbert.backends import load_backend
from distilbert.training.objective import Objective

Arrays = dict[str, NDArray[Any]]
Inputs = Mapping[str, Any]
Loss = Callable[[Any, Inputs], Any]  # of a model and inputs, a scalar of the framework

HASTE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of programs that run once


class Adapter(abc.ABC):
    """A model of one backend, in evaluation mode. The subclasses know how their framework differentiates."""

    backend: str
    kernels: tuple[str, ...]  # the attention kernels that any machine can run
    needs_dtype = False  # whether the constructor must be told the dtype

    def __init__(self, model: Any, dtype: str, *, compiled: bool = False) -> None:
        self.model, self.dtype, self.compiled = model, dtype, compiled
        self.module = load_backend(self.backend)
        self.losses = importlib.import_module(f"distilbert.{self.backend}.losses")
        self.objectives = importlib.import_module(f"distilbert.{self.backend}.objectives")
        self.training = importlib.import_module(f"distilbert.{self.backend}.training")

    def outputs(self, inputs: Inputs) -> tuple[Any, Any]:
        """What the model returns with all states and attention maps, by the plain kernel; and without, by its own.

        Both in NumPy arrays.
        """
        calls = [dict(inputs, output_hidden_states=full, output_attentions=full) for full in (True, False)]
        with self.module.exact(self.dtype), self.model.evaluating() as model:
            everything, own = self.call(model, calls)
        return self._in_numpy(everything), self._in_numpy(own)

    def gradients(self, inputs: Inputs) -> Arrays:
        """The gradient of the loss with respect to every trained tensor."""
        with self.module.exact(self.dtype):
            return self._named(self.differentiate(inputs))

    def objective(self, objective: Objective, teacher: Any, *given: Inputs) -> tuple[Inputs, Inputs, Arrays]:
        """What the teacher gives, the losses by name, and the gradient of the objective for every trained tensor.

        given: inputs, targets and weights of a batch, in arrays of the framework.
        """
        inputs, targets, weights = given
        taught = self.objectives.teach(teacher, inputs, targets, objective) if objective.needs_teacher else {}
        parts: dict[str, Any] = {}

        def loss(model: Any, _: Inputs) -> Any:
            parts.update(self.objectives.losses(model, inputs, targets, weights, objective, taught))
            return self.objectives.total(parts, objective)

        return taught, parts, self._named(self.differentiate({}, loss))

    def step(self, inputs: Inputs, **options: Any) -> tuple[Arrays, Arrays]:
        """The gradients, and every trained tensor after one step of AdamW. The model is changed."""
        with self.module.exact(self.dtype):
            native = self.differentiate(inputs)
            gradients = self._named(native)
            self.update(native, self.training.adamw(self.model, **options))
            weights = self.model.weights_by_name()
        return gradients, {name: weights[name] for name in gradients}

    def _named(self, gradients: Any) -> Arrays:
        """What `differentiate` returned, in canonical orientation."""
        specs, layout = self.model.tensor_specs(), self.module.pretrained.LAYOUT
        return {n: specs[n].from_layout(self.array(g), layout) for n, g in self.by_name(gradients).items()}

    def assign(self, weights: Mapping[str, Any]) -> None:
        """Give the model its weights, as they were before a step."""
        with self.module.exact(self.dtype):
            self.model.assign(weights)

    def loss(self, model: Any, inputs: Inputs) -> Any:
        """The scalar that `reference_training.objective` names: the head's loss, or what stands in for it."""
        output = model(**inputs)
        if hasattr(output, "loss"):
            return output.loss
        if hasattr(output, "embeddings"):
            half = output.embeddings.shape[0] // 2
            rank = self.losses.multiple_negatives_ranking_loss
            return rank(output.embeddings[:half], output.embeddings[half:])
        return self.mean(output.last_hidden_state**2)

    def call(self, model: Any, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the model returns for each of the calls' arguments, as the framework has it."""
        return [model(**arguments) for arguments in calls]

    def mean(self, x: Any) -> Any:
        """The mean of an array of the framework."""
        return x.mean()

    def array(self, x: Any) -> NDArray[Any]:
        """An array of the framework as NumPy's, in its dtype."""
        return np.asarray(x)

    @abc.abstractmethod
    def differentiate(self, inputs: Inputs, loss: Loss | None = None) -> Any:
        """The gradients of a loss of model and inputs, by default of its own, as the framework has them."""

    def by_name(self, gradients: Any) -> Mapping[str, Any]:
        """What `differentiate` returned, by canonical name."""
        return gradients

    @abc.abstractmethod
    def update(self, gradients: Any, optimizer: Any) -> None:
        """Take one step against what `differentiate` returned."""

    def _in_numpy(self, output: Any) -> Any:
        parts = (tuple(map(self.array, x)) if isinstance(x, tuple) else self.array(x) for x in output)
        return type(output)(*parts)


class PyTorch(Adapter):
    """Backward passes on the parameters."""

    backend, kernels = "pt", ("sdpa", "eager")

    def array(self, x: Any) -> NDArray[Any]:  # noqa: D102
        return self.module.pretrained.to_numpy(x)

    def differentiate(self, inputs: Inputs, loss: Loss | None = None) -> dict[str, Any]:  # noqa: D102
        import torch

        parameters = self.model.trained_parameters()
        value = (loss or self.loss)(self.model, inputs)
        gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        return dict(zip(parameters, gradients, strict=True))

    def update(self, gradients: dict[str, Any], optimizer: Any) -> None:  # noqa: D102
        for name, parameter in self.model.trained_parameters().items():
            parameter.grad = gradients[name]
        optimizer.step()


class TensorFlow(Adapter):
    """Gradient tapes on the variables."""

    backend, kernels, needs_dtype = "tf", ("eager",), True

    def mean(self, x: Any) -> Any:  # noqa: D102
        import tensorflow as tf

        return tf.reduce_mean(x)

    def differentiate(self, inputs: Inputs, loss: Loss | None = None) -> dict[str, Any]:  # noqa: D102
        import tensorflow as tf

        variables = {name: variable.value for name, variable in self.model.trained_parameters().items()}
        with tf.GradientTape() as tape:
            value = (loss or self.loss)(self.model, inputs)
        gradients = tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {name: tf.convert_to_tensor(gradient) for name, gradient in gradients.items()}

    def update(self, gradients: dict[str, Any], optimizer: Any) -> None:  # noqa: D102
        variables = self.model.trained_parameters()
        optimizer.apply([gradients[name] for name in variables], list(variables.values()))


class Flax(Adapter):
    """Gradients of a function of the parameters.

    Operation by operation, or compiled: one program is ready sooner than as many as there are operations, where no
    other model has had its shapes.
    """

    backend, kernels = "flax", ("eager", "xla")

    def call(self, model: Any, calls: Sequence[Mapping[str, Any]]) -> list[Any]:  # noqa: D102
        return self._program(lambda given: [given(**arguments) for arguments in calls])(model)

    def differentiate(self, inputs: Inputs, loss: Loss | None = None) -> Any:  # noqa: D102
        from flax import nnx

        return self._program(nnx.grad(lambda model: (loss or self.loss)(model, inputs)))(self.model)

    def objective(self, objective: Objective, teacher: Any, *given: Inputs) -> tuple[Inputs, Inputs, Arrays]:  # noqa: D102
        from flax import nnx

        graphs, states = zip(nnx.split(self.model), nnx.split(teacher), strict=True)
        taught, parts, gradients = _objective_in_jax(objective)(graphs, states, *given)
        return taught, parts, self._named(gradients)

    def _program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from flax import nnx

        return nnx.jit(function) if self.compiled else function

    def by_name(self, gradients: Any) -> Mapping[str, Any]:  # noqa: D102
        from flax import nnx

        graph, _, rest = nnx.split(self.model, nnx.Param, ...)
        variables = nnx.merge(graph, gradients, rest).trained_parameters()
        return {name: variable[...] for name, variable in variables.items()}

    def update(self, gradients: Any, optimizer: Any) -> None:  # noqa: D102
        optimizer.update(self.model, gradients)


@functools.cache
def _objective_in_jax(objective: Objective) -> Callable[..., Any]:
    """As `Adapter.objective`, of the two models' graphs and states: one program for all batches of one shape."""
    import jax
    from flax import nnx

    from distilbert.flax import objectives

    def run(graphs: Any, states: Any, inputs: Any, targets: Any, weights: Any) -> Any:
        student, teacher = (nnx.merge(*model) for model in zip(graphs, states, strict=True))
        taught = objectives.teach(teacher, inputs, targets, objective) if objective.needs_teacher else {}

        def loss(model: Any) -> Any:
            parts = objectives.losses(model, inputs, targets, weights, objective, taught)
            return objectives.total(parts, objective), parts

        gradients, parts = nnx.grad(loss, has_aux=True)(student)
        return taught, parts, gradients

    return jax.jit(run, static_argnums=0, compiler_options=HASTE)


ADAPTERS: dict[str, type[Adapter]] = {adapter.backend: adapter for adapter in (PyTorch, TensorFlow, Flax)}


def make(
    backend: str, head: str, config: Any, weights: Mapping[str, Any], *, kernel: str | None = None, **settings: Any
) -> Adapter:
    """A model of the backend with given canonical weights, in their dtype, behind its adapter."""
    adapter, module = ADAPTERS[backend], load_backend(backend)
    dtype = next(iter(weights.values())).dtype.name
    if adapter.needs_dtype:
        settings["dtype"] = dtype
    with module.exact(dtype):
        model = getattr(module, head).from_config(config, **settings)
        model.assign(weights)
    return adapter(model.set_attn_implementation(kernel or adapter.kernels[0]), dtype)


def load(backend: str, head: str, folder: Any, dtype: str) -> Adapter:
    """A model of the backend with the weights of a checkpoint, behind its adapter; compiled, where that is a choice."""
    module = load_backend(backend)
    with module.exact(dtype):
        model = getattr(module, head).from_pretrained(folder, dtype=dtype)
    return ADAPTERS[backend](model, dtype, compiled=True)
