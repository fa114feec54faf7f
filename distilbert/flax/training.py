"""Training in NNX: AdamW, and a model in training. Twins: pt/training.py and tf/training.py.

What is computed are three jitted functions of the module: `gradients` of a micro-batch, `add`, and `update`. Each shape
is compiled, so batches are filled up to few shapes, with what has the weight 0.
Axes: rows, choices, seq, n (chosen positions), pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from distilbert.flax.devices import any_process, current_mesh, replicate, replicated, session, spread
from distilbert.flax.objectives import losses, predictions, teach, total
from distilbert.flax.pretrained import LAYOUT, PretrainedModel, exact
from distilbert.training.batches import Arrays, Batch
from distilbert.training.objective import Objective
from distilbert.training.randomness import derive
from distilbert.training.trainer import Optimization, StepResult, check_state, check_trainer

__all__ = ["Trainer", "adamw", "session", "trainer"]

KINDS = ("weight", "mean", "square")  # of a state's arrays
LENGTHS = 32  # rows are padded to a multiple of it, or of the largest power of two that the model's positions allow
POSITIONS = 64  # chosen positions are filled up to a multiple of it
PAIRS = 8  # pairs are filled up to a multiple of it, so that their places are the same on one device and on eight


def adamw(
    model: PretrainedModel,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> nnx.Optimizer[PretrainedModel]:
    """AdamW for the model, with weight decay on the kernels of its dense layers only.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Steps are equal in all three frameworks.
    """
    transform = optax.adamw(learning_rate, *betas, eps, weight_decay=weight_decay, mask=kernels)
    return nnx.Optimizer(model, transform, wrt=nnx.Param)


def kernels(parameters: Any) -> Any:
    """Which parameters are kernels of dense layers: NNX gives these, and only these, the name `kernel`."""
    return jax.tree.map_with_path(lambda path, _: any(getattr(key, "key", "") == "kernel" for key in path), parameters)


def trainer(
    model: PretrainedModel, objective: Objective, optimization: Optimization, teacher: PretrainedModel | None = None
) -> Trainer:
    """A trainer of the model on the devices of the session. The teacher's weights never change.

    Raises:
        ValueError: the model is not the objective's class, or not float32; there is no such precision.
    """
    return Trainer(model, objective, optimization, teacher)


class Trainer:
    """A model in training, with its optimizer; see `distilbert.training.trainer.Trainer`.

    The parameters live here between steps, and the model shows those of the last one.
    """

    def __init__(
        self,
        model: PretrainedModel,
        objective: Objective,
        optimization: Optimization,
        teacher: PretrainedModel | None = None,
    ) -> None:
        check_trainer(type(model).__name__, model.dtype.name, objective, optimization)
        if optimization.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.model, self.optimization, self.mesh = model, optimization, current_mesh()
        self.length_multiple = math.gcd(LENGTHS, model.config.max_position_embeddings)
        graph, parameters, rest = nnx.split(nnx.view(model, deterministic=False), nnx.Param, ...)
        self.parameters, self.rest = replicate((parameters, rest), self.mesh)
        self.moments: Any = replicate(transform(0.0, optimization).init(self.parameters), self.mesh)
        taught, self.teacher = None, ()
        if teacher is not None and objective.needs_teacher:
            taught, state = nnx.split(nnx.view(teacher, deterministic=True))
            self.teacher = replicate(rounded(state, optimization.precision), self.mesh)
        self.recipe = Recipe(graph, taught, objective, optimization.precision, replicated(self.mesh))

    def step(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """One step of the optimizer on the micro-batches of `step`, whose weights are normalized.

        Raises:
            ValueError: the objective needs a teacher, and there is none, nor its outputs in the batches.
        """
        seeds = (np.uint32(derive(self.optimization.seed, "dropout", step, number)) for number in range(len(batches)))
        with exact("float32"):
            sums, parts = functools.reduce(add, map(self.differentiate, batches, seeds))
            loss = total(parts, self.recipe.objective)
            before = (self.parameters, self.moments, sums, loss, np.float32(learning_rate))
            self.parameters, self.moments, norm = update(self.optimization, *before)
        nnx.update(self.model, self.parameters)
        return StepResult(float(loss), {name: float(part) for name, part in parts.items()}, float(norm))

    def predict(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What the model returns for all rows in evaluation mode, float32; see `objectives.predictions`."""
        with exact("float32"):
            found = predict(self.recipe, self.parameters, self.rest, self.arrays(unpaired(batch)))
        return {name: np.array(array)[: counted(batch, name)] for name, array in found.items()}

    def teach(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What the teacher gives for all rows, float32."""
        with exact("float32"):
            found = teachings(self.recipe, self.teacher, self.arrays(unpaired(batch)))
        return {name: np.array(array, np.float32)[: counted(batch, name)] for name, array in found.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the trained weights and their moments, by canonical name; see the protocol."""
        adam = self.moments[0]
        trees = {"weight": self.parameters, "mean": adam.mu, "square": adam.nu}
        return {
            f"{kind}/{name}": array for kind, tree in trees.items() for name, array in self.by_name(tree).items()
        } | {"count": np.array(adam.count, np.int64)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state` returned, bit for bit.

        Raises:
            ValueError: it is the state of another model.
        """
        trained = {name: self.model.tensor_specs()[name].shape for name in self.model.trained_parameters()}
        check_state({f"{kind}/{n}": s for kind in KINDS for n, s in trained.items()} | {"count": ()}, state)
        self.parameters, mean, square = (self.from_names(state, kind) for kind in KINDS)
        count = replicate(jnp.asarray(state["count"], jnp.int32), self.mesh)
        self.moments = (self.moments[0]._replace(count=count, mu=mean, nu=square), *self.moments[1:])
        nnx.update(self.model, self.parameters)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Copies of the model's weights by canonical name."""
        return {name: np.array(array, order="C") for name, array in self.model.weights_by_name().items()}

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; all must ask."""
        return any_process(flag)

    def differentiate(self, batch: Batch, seed: np.uint32) -> tuple[Any, dict[str, Array]]:
        """Of a micro-batch: the gradients, and the losses by name."""
        return gradients(self.recipe, self.parameters, self.rest, self.teacher, self.arrays(batch), seed)

    def arrays(self, batch: Batch) -> Any:
        """What the jitted functions take of a batch, on the devices."""
        objective = self.recipe.objective
        if batch.weights and objective.needs_teacher and not (batch.teacher or self.recipe.teacher):
            raise ValueError(f"the objective {objective} needs a teacher, got none.")
        batch = filled(batch, self.mesh.size)
        taught = batch.teacher if objective.needs_teacher else {}
        return spread((dict(batch.inputs), dict(batch.targets), dict(batch.weights), dict(taught)), self.mesh)

    def by_name(self, tree: Any) -> dict[str, NDArray[Any]]:
        """A tree of parameters, or of something like them, as copies by canonical name in canonical orientation."""
        specs = self.model.tensor_specs()
        variables = nnx.merge(self.recipe.graph, tree, self.rest).trained_parameters()
        return {n: np.array(specs[n].from_layout(np.asarray(v[...]), LAYOUT), order="C") for n, v in variables.items()}

    def from_names(self, state: Mapping[str, NDArray[Any]], kind: str) -> Any:
        """The tree of parameters whose arrays are KIND/NAME in `state`."""
        specs = self.model.tensor_specs()
        model = nnx.merge(self.recipe.graph, self.parameters, self.rest)
        for name, variable in model.trained_parameters().items():
            variable.set_value(specs[name].to_layout(state[f"{kind}/{name}"], LAYOUT))
        return replicate(nnx.state(model, nnx.Param), self.mesh)


@dataclass(frozen=True)
class Recipe:
    """What of a trainer is compiled into the jitted functions. graph: of the model in training mode."""

    graph: nnx.GraphDef[Any]
    teacher: Any  # likewise, in evaluation mode; None without one
    objective: Objective
    precision: str
    replicated: NamedSharding


@functools.partial(jax.jit, static_argnums=0)
def gradients(recipe: Recipe, parameters: Any, rest: Any, teacher: Any, arrays: Any, seed: Any) -> tuple[Any, Any]:
    """Of a micro-batch: the gradients, and the losses by name.

    The model is computed in the recipe's precision, the gradients are those of the float32 parameters.
    """
    inputs, targets, weights, taught = arrays
    if recipe.teacher is not None and not taught:
        taught = teach(nnx.merge(recipe.teacher, teacher), inputs, targets, recipe.objective)

    def objective(parameters: Any) -> tuple[Array, dict[str, Array]]:
        model = nnx.merge(recipe.graph, *rounded((parameters, rest), recipe.precision))
        reseed(model, seed)
        given = inputs if recipe.precision == "float32" else look_up(recipe, parameters, rest, inputs)
        parts = losses(model, given, targets, weights, recipe.objective, taught)
        return total(parts, recipe.objective), parts

    found, parts = jax.grad(objective, has_aux=True)(parameters)
    return jax.lax.with_sharding_constraint((found, parts), recipe.replicated)


@functools.partial(jax.jit, donate_argnums=0)
def add(x: Any, y: Any) -> Any:
    """The sum of two trees, in the place of the first."""
    return jax.tree.map(jnp.add, x, y)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def update(
    optimization: Optimization, parameters: Any, moments: Any, gradients: Any, loss: Array, learning_rate: Array
) -> tuple[Any, Any, Array]:
    """Parameters and moments after the step, in the place of those before, and the gradients' global norm.

    Where the loss or the norm is not finite, parameters and moments stay as they are.
    """
    norm = jnp.sqrt(sum((leaf * leaf).sum() for leaf in jax.tree.leaves(gradients)))
    if optimization.max_grad_norm is not None:
        scale = jnp.minimum(1.0, optimization.max_grad_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        gradients = jax.tree.map(lambda leaf: leaf * scale, gradients)
    changes, moved = transform(learning_rate, optimization).update(gradients, moments, parameters)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    after, before = (optax.apply_updates(parameters, changes), moved), (parameters, moments)
    parameters, moments = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return parameters, moments, norm


@functools.partial(jax.jit, static_argnums=0)
def predict(recipe: Recipe, parameters: Any, rest: Any, arrays: Any) -> dict[str, Array]:
    """The predictions in evaluation mode, on every device."""
    inputs, targets, _, _ = arrays
    model = nnx.view(nnx.merge(recipe.graph, parameters, rest), deterministic=True)
    return jax.lax.with_sharding_constraint(
        predictions(model, inputs, targets, recipe.objective.task), recipe.replicated
    )


@functools.partial(jax.jit, static_argnums=0)
def teachings(recipe: Recipe, teacher: Any, arrays: Any) -> dict[str, Array]:
    """What the teacher gives, on every device."""
    inputs, targets, _, _ = arrays
    found = teach(nnx.merge(recipe.teacher, teacher), inputs, targets, recipe.objective)
    return jax.lax.with_sharding_constraint(found, recipe.replicated)


def unpaired(batch: Batch) -> Batch:
    """The rows of a batch, each for itself, with nothing that counts them; of masked LM the positions stay."""
    targets = batch.targets if batch.has_positions else {}
    full = batch.full * 2 if batch.paired else batch.full
    return replace(batch, targets=targets, weights={}, teacher={}, paired=False, full=full)


def counted(batch: Batch, name: str) -> int:
    """How many entries of an output belong to the batch: hidden states to rows, others to rows or positions."""
    return len(batch.targets["positions"]) if batch.has_positions and name != "hidden" else batch.rows


def transform(learning_rate: Any, optimization: Optimization) -> optax.GradientTransformation:
    """AdamW as in `adamw`; the learning rate may be traced."""
    betas, eps, decay = optimization.betas, optimization.eps, optimization.weight_decay
    return optax.adamw(learning_rate, *betas, eps, weight_decay=decay, mask=kernels)


def rounded(tree: Any, precision: str) -> Any:
    """The floating-point arrays in the dtype that `precision` names."""
    return jax.tree.map(lambda x: x.astype(precision) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def look_up(recipe: Recipe, parameters: Any, rest: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs with the words' float32 vectors in place of their ids: a word's gradients are then summed in float32."""
    table = nnx.merge(recipe.graph, parameters, rest).distilbert.embeddings.word_embeddings
    return {"inputs_embeds": table(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]}


def reseed(model: Any, seed: Array) -> None:
    """Give each dropout of the model its own stream of random numbers, a function of the seed."""
    streams = [module for _, module in nnx.iter_graph(model) if isinstance(module, nnx.RngStream)]
    for number, stream in enumerate(streams):
        stream.key.set_value(jax.random.fold_in(jax.random.key(seed), number))
        stream.count.set_value(jnp.zeros((), jnp.uint32))


def filled(batch: Batch, parts: int) -> Batch:
    """The batch in one of few shapes that divide into so many parts; what is added has the weight 0.

    Dropout differs by the place of a row. Only of pairs does what is added change that of others.
    """
    units, multiple = (batch.rows // 2, math.lcm(PAIRS, parts)) if batch.paired else (batch.rows, parts)
    size = filled_size(max(units, batch.full), multiple)
    numbers = np.arange(size)
    if size > units:
        batch = batch.take(np.where(numbers < units, numbers, 0), numbers < units)
    return fill_positions(batch, size / units, parts) if batch.has_positions else batch


def fill_positions(batch: Batch, growth: float, parts: int) -> Batch:
    """More chosen positions, the first place of the batch again and again: at least as many more as there are rows."""
    n = len(batch.targets["positions"])
    missing = filled_size(math.ceil(n * growth), math.lcm(POSITIONS, parts)) - n

    def longer(arrays: Arrays) -> Arrays:
        by_row = ("hidden",)
        return {k: a if k in by_row else np.pad(a, [(0, missing), *[(0, 0)] * (a.ndim - 1)]) for k, a in arrays.items()}

    return replace(batch, targets=longer(batch.targets), weights=longer(batch.weights), teacher=longer(batch.teacher))


def filled_size(size: int, multiple: int) -> int:
    """The next of few sizes, at most 8 between a power of two and the next, or the next multiple after it."""
    step = max(1, 2 ** (size - 1).bit_length() // 16)
    few = -(-max(size, 1) // step) * step
    return -(-few // multiple) * multiple
