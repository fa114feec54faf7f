"""Training in Keras 3 on TensorFlow: AdamW, and a trainer that takes steps. Twins: pt/training.py and flax/training.py.

A step is a `GradientTape` in a `tf.function`, run by `tf.distribute` on every device, then clipping, then Keras's
optimizer. On one device the strategy is TensorFlow's default one, which does nothing.
"""

# Keras types a variable's value as optional, and as tensors of other backends: it is neither here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from distilbert.tf import objectives
from distilbert.tf.devices import add_up, local_ranks, on_every_device, processes, replica, session
from distilbert.tf.model import Dropout
from distilbert.tf.pretrained import LAYOUT, PretrainedModel
from distilbert.training.batches import Batch
from distilbert.training.objective import Objective
from distilbert.training.randomness import derive
from distilbert.training.trainer import Optimization, StepResult, check_state, check_trainer

__all__ = ["AdamW", "Trainer", "adamw", "session", "trainer"]

TINY = sys.float_info.min
Tensors = dict[str, dict[str, tf.Tensor]]  # the parts of a batch


def adamw(
    model: PretrainedModel,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> keras.optimizers.Optimizer:
    """AdamW for the model, with weight decay on the kernels of its dense layers only.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Steps are equal in all three frameworks.
    """
    optimizer = AdamW(learning_rate, weight_decay=weight_decay, beta_1=betas[0], beta_2=betas[1], epsilon=eps)
    specs, variables = model.tensor_specs(), model.trained_parameters()
    optimizer.exclude_from_weight_decay([v for name, v in variables.items() if not specs[name].is_kernel])
    return optimizer


@keras.saving.register_keras_serializable(package="distilbert")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW with epsilon where the paper has it: added to the corrected root, not to the raw one."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable against its gradient.

        TensorFlow's kernel adds epsilon to the raw root; multiplied by what corrects the root, it is the paper's.
        """
        dtype, index = variable.dtype, self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float64)
        of_mean, of_root = 1 - self.beta_1**step, tf.sqrt(1 - self.beta_2**step)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.zeros((), dtype),  # the corrections are in lr and epsilon, computed in float64
            beta2_power=tf.zeros((), dtype),
            lr=tf.cast(tf.cast(learning_rate, tf.float64) * of_root / of_mean, dtype),
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon * of_root, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )


def trainer(
    model: PretrainedModel, objective: Objective, optimization: Optimization, teacher: PretrainedModel | None = None
) -> Trainer:
    """A trainer of the model, on the devices of the session. The teacher's weights never change.

    Raises:
        ValueError: the model is not the objective's class, or not float32; there is no such precision.
    """
    return Trainer(model, objective, optimization, teacher)


class Trainer:
    """A model in training, with its optimizer. See `distilbert.training.trainer.Trainer`.

    Each of several devices has all variables, which are made for that. Those of a model made within the session are;
    of one made before, `model` is a copy whose variables are, and the given one is not trained.
    """

    length_multiple = 1

    def __init__(
        self,
        model: PretrainedModel,
        objective: Objective,
        optimization: Optimization,
        teacher: PretrainedModel | None = None,
    ) -> None:
        check_trainer(type(model).__name__, model.variable_dtype, objective, optimization)
        self.strategy = tf.distribute.get_strategy()
        self.model = on_every_device(model)
        self.teacher = on_every_device(teacher) if teacher is not None and objective.needs_teacher else None
        self.objective, self.optimization = objective, optimization
        if optimization.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.parameters = self.model.trained_parameters()
        with self.strategy.scope():
            self.optimizer = adamw(
                self.model,
                learning_rate=0.0,  # each step has its own
                weight_decay=optimization.weight_decay,
                betas=optimization.betas,
                eps=optimization.eps,
            )
            self.optimizer.build(list(self.parameters.values()))
        self.optimizer._all_reduce_sum_gradients = list  # noqa: SLF001 - they are summed already, to be clipped
        self._gradients = tf.function(self.all_gradients, autograph=False)
        self._apply = tf.function(self.all_updates, autograph=False)
        self._predict = tf.function(self.predictions, autograph=False)
        self._teach = tf.function(self.teachings, autograph=False)

    def step(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """One step of the optimizer on the micro-batches of `step`, whose weights are normalized.

        Raises:
            ValueError: the objective needs a teacher, and there is none, nor its outputs in the batches.
        """
        summed: Any = None  # the losses, and the gradients
        for i, batch in enumerate(batches):
            found = self.differentiate(batch, step, i)
            summed = found if summed is None else tf.nest.map_structure(tf.add, summed, found)
        parts, gradients = {name: float(part) for name, part in summed[0].items()}, summed[1]
        loss, norm = float(objectives.total(parts, self.objective)), float(tf.linalg.global_norm(gradients))
        if math.isfinite(loss) and math.isfinite(norm):
            self.update(gradients, norm, learning_rate)
        return StepResult(loss, parts, norm)

    def differentiate(self, batch: Batch, step: int, micro_batch: int) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """The losses of a micro-batch by name, and the gradients, over all devices."""
        if self.objective.needs_teacher and self.teacher is None and not batch.teacher:
            raise ValueError("the objective needs a teacher, or batches that hold what one gave.")
        ranks, replicas = local_ranks(self.strategy), self.strategy.num_replicas_in_sync
        parts = [batch] if replicas == 1 else batch.split(replicas)
        seeds = [derive(self.optimization.seed, "dropout", step, micro_batch, rank) for rank in ranks]
        arguments = [share(parts[rank]) for rank in ranks], [as_int32(seed) for seed in seeds]
        return self._gradients.get_concrete_function(*of_any_size(arguments))(*arguments)

    def update(self, gradients: list[tf.Tensor], norm: float, learning_rate: float) -> None:
        """Clip the gradients, whose global norm is known, and apply them."""
        limit = self.optimization.max_grad_norm
        scale = 1.0 if limit is None else min(1.0, limit / max(norm, TINY))
        self.optimizer.learning_rate.assign(learning_rate)
        self._apply(gradients, tf.constant(scale, tf.float32))

    def predict(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What the model returns for all rows in evaluation mode, float32."""
        given = {"inputs": tensors(batch.inputs), "targets": tensors(batch.targets)}
        found = self._predict.get_concrete_function(of_any_size(given))(given)
        return {name: np.array(x) for name, x in found.items()}

    def teach(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What the teacher gives for all rows, float32."""
        given = {"inputs": tensors(batch.inputs), "targets": tensors(batch.targets)}
        found = self._teach.get_concrete_function(of_any_size(given))(given)
        return {name: np.array(x, np.float32) for name, x in found.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the trained weights and their moments in canonical names and orientation, and the count."""
        specs = self.model.tensor_specs()
        state = {
            f"{kind}/{name}": np.array(specs[name].from_layout(variable.numpy(), LAYOUT), order="C")
            for kind, name, variable in self.slots()
        }
        return {**state, "count": np.array(self.optimizer.iterations.numpy(), np.int64)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state` returned, bit for bit.

        Raises:
            ValueError: it is not the state of such a model.
        """
        specs = self.model.tensor_specs()
        shapes = {f"{kind}/{name}": specs[name].shape for kind, name, _ in self.slots()}
        check_state({**shapes, "count": ()}, state)
        for kind, name, variable in self.slots():
            variable.assign(specs[name].to_layout(state[f"{kind}/{name}"], LAYOUT))
        self.optimizer.iterations.assign(int(state["count"]))

    def weights(self) -> dict[str, NDArray[Any]]:
        """Copies of the model's weights by canonical name, on every process."""
        return {name: np.array(array, order="C") for name, array in self.model.weights_by_name().items()}

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; all must ask."""
        if processes(self.strategy)[1] == 1:
            return flag
        # Traced anew by every process alike: a process that had another flag traced would wait for the others forever.
        found = self.strategy.run(tf.function(lambda: add_up(tf.constant(int(flag))), autograph=False))
        return bool(self.strategy.experimental_local_results(found)[0] > 0)

    def slots(self) -> Iterator[tuple[str, str, keras.Variable]]:
        """What a state holds: (kind, canonical name, variable)."""
        moments = self.optimizer._momentums, self.optimizer._velocities  # noqa: SLF001 - of AdamW, which is ours
        for kind, variables in zip(("weight", "mean", "square"), (self.parameters.values(), *moments), strict=True):
            for name, variable in zip(self.parameters, variables, strict=True):
                yield kind, name, variable

    def all_gradients(self, shares: list[Tensors], seeds: list[tf.Tensor]) -> Any:
        """What is traced of `differentiate`: every device computes its share, and the sum comes back."""
        with contextlib.ExitStack() as stack:
            for model in (self.model, self.teacher):
                if model is not None:
                    stack.enter_context(computing(model, self.optimization.precision))
            found = self.strategy.run(self.replica_gradients, args=(shares, seeds))
        return tf.nest.map_structure(lambda x: self.strategy.experimental_local_results(x)[0], found)

    def replica_gradients(self, shares: list[Tensors], seeds: list[tf.Tensor]) -> Any:
        """What one device computes: losses and gradients of its share, and of these the sum over all devices."""
        number = replica()[0] % len(shares)  # among those of this process
        given, parameters = shares[number], [variable.value for variable in self.parameters.values()]
        inputs, targets, taught = given["inputs"], given["targets"], given["teacher"]
        if self.teacher is not None and not taught:
            taught = objectives.teach(self.teacher, inputs, targets, self.objective)
        seed_dropout(self.model, seeds[number])
        with tf.GradientTape() as tape:
            parts = objectives.losses(
                self.model, inputs, targets, given["weights"], self.objective, taught, training=True
            )
            loss = objectives.total(parts, self.objective)
        gradients = tape.gradient(loss, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]  # that of a look-up holds rows only
        return add_up((parts, dense))

    def all_updates(self, gradients: list[tf.Tensor], scale: tf.Tensor) -> None:
        """What is traced of `update`: every device changes its variables by the same gradients."""
        clipped = [gradient * scale for gradient in gradients]
        self.strategy.run(self.optimizer.apply, args=(clipped,))

    def predictions(self, given: Tensors) -> dict[str, tf.Tensor]:
        """What is traced of `predict`."""
        return objectives.predictions(self.model, given["inputs"], given["targets"], self.objective.task)

    def teachings(self, given: Tensors) -> dict[str, tf.Tensor]:
        """What is traced of `teach`."""
        with computing(self.teacher, self.optimization.precision):
            return objectives.teach(self.teacher, given["inputs"], given["targets"], self.objective)


def as_int32(seed: int) -> tf.Tensor:
    """A seed below 2**32 as TensorFlow takes it: the same bits, as a signed number."""
    return tf.constant(np.array(seed, np.uint32).view(np.int32))


def share(batch: Batch) -> Tensors:
    """The parts of a batch as tensors."""
    return {name: tensors(getattr(batch, name)) for name in ("inputs", "targets", "weights", "teacher")}


def tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tf.Tensor]:
    """Arrays as tensors."""
    return {name: tf.convert_to_tensor(array) for name, array in arrays.items()}


def of_any_size(arguments: Any) -> Any:
    """What tells `tf.function` to trace once for all sizes of these arguments."""
    return tf.nest.map_structure(lambda x: tf.TensorSpec([None] * x.shape.rank, x.dtype), arguments)


@contextlib.contextmanager
def computing(model: PretrainedModel, precision: str) -> Generator[None]:
    """Trace the model in this precision: its layers cast float32 variables to bfloat16, as Keras's mixed policy says.

    Afterwards the layers have their policies, and their dropouts the generators, that they had before.
    """
    layers = model._flatten_layers()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - Keras has no other way to all layers
    policies = [(layer, layer.dtype_policy) for layer in layers]
    generators = [(layer, layer.seed_generator) for layer in dropouts(model)]
    try:
        for layer, _ in policies if precision == "bfloat16" else ():
            layer.dtype_policy = "mixed_bfloat16"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy
        for layer, generator in generators:
            layer.seed_generator = generator


def dropouts(model: PretrainedModel) -> list[Dropout]:
    """The dropouts of the model that have an effect, in the order of its layers."""
    layers = model._flatten_layers()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return [layer for layer in layers if isinstance(layer, Dropout) and layer.rate > 0]


def seed_dropout(model: PretrainedModel, seed: tf.Tensor) -> None:
    """Let each dropout of the model draw from the seed and from its number, instead of from a state."""
    for number, layer in enumerate(dropouts(model)):
        layer.seed_generator = Seed(tf.stack([seed, number]))


class Seed:
    """Stands in for Keras's `SeedGenerator`, and gives the same seed each time. value: (2,)."""

    def __init__(self, value: tf.Tensor) -> None:
        self.value = value

    def next(self) -> tf.Tensor:
        """The seed."""
        return self.value
