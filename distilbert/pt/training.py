"""Training in PyTorch: the optimizer, and the trainer of a model. Twins: tf/training.py and flax/training.py.

A step is autograd, clipping and `torch.optim.AdamW`. In a session of several processes each computes its share of every
batch, and the gradients, which are sums, are added up.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distilbert.pt import objectives
from distilbert.pt.devices import add_up, place, session
from distilbert.pt.pretrained import LAYOUT, PretrainedModel, from_numpy, to_numpy
from distilbert.training.batches import Batch
from distilbert.training.objective import Objective
from distilbert.training.randomness import derive
from distilbert.training.trainer import Optimization, StepResult, check_state, check_trainer

__all__ = ["Trainer", "adamw", "session", "trainer"]

Arrays = dict[str, NDArray[Any]]
TINY = sys.float_info.min
CHUNK = 1024
MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}  # our names, and those of torch.optim


def adamw(
    model: PretrainedModel,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW for the model, with weight decay on the kernels of its dense layers only.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Steps are equal in all three frameworks.
    """
    specs = model.tensor_specs()
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.trained_parameters().items():
        groups[specs[name].is_kernel].append(parameter)
    decayed = [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(decayed, lr=learning_rate, betas=betas, eps=eps, fused=True)


def trainer(model: Any, objective: Objective, optimization: Optimization, teacher: Any = None) -> Trainer:
    """A trainer of the model, where the session computes. The teacher's weights never change.

    Raises:
        ValueError: the model is not the objective's class, or not float32; there is no such precision.
    """
    return Trainer(model, objective, optimization, teacher)


class Trainer:
    """A model in training, with its optimizer. See `distilbert.training.trainer.Trainer`.

    The model is moved to the session's device, and is in evaluation mode but within a step.
    """

    length_multiple = 1

    def __init__(
        self, model: PretrainedModel, objective: Objective, optimization: Optimization, teacher: PretrainedModel | None
    ) -> None:
        check_trainer(type(model).__name__, str(model.dtype).removeprefix("torch."), objective, optimization)
        self.place = place()
        self.objective, self.optimization = objective, optimization
        self.model = model.to(self.place.device).eval()
        self.teacher = None if teacher is None else teacher.to(self.place.device)
        if optimization.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.optimizer = adamw(
            model,
            learning_rate=0.0,
            weight_decay=optimization.weight_decay,
            betas=optimization.betas,
            eps=optimization.eps,
        )
        self.parameters = model.trained_parameters()
        self.gradients = flat_gradients(list(self.parameters.values()))
        for parameter in self.parameters.values():
            self.optimizer.state[parameter] = no_moments(parameter)

    def step(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """One step of the optimizer on the micro-batches of `step`, whose weights are normalized."""
        self.gradients.zero_()
        self.model.train()
        devices = [self.place.device] if self.place.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the caller's random numbers stay as they were
            sums = [self.differentiate(self.share(batch), step, i) for i, batch in enumerate(batches)]
        self.model.eval()
        parts = self.sum_parts(sums)
        loss, norm = float(objectives.total(parts, self.objective)), global_norm(add_up(self.gradients))
        if math.isfinite(loss) and math.isfinite(norm):
            self.update(norm, learning_rate)
        return StepResult(loss, parts, norm)

    def differentiate(self, batch: Batch, step: int, micro_batch: int) -> dict[str, Tensor]:
        """Add a micro-batch's gradients to the others'. Returns its losses by name."""
        inputs, targets = self.on_device(batch.inputs), self.on_device(batch.targets)
        weights, taught = self.on_device(batch.weights), self.on_device(batch.teacher)
        torch.manual_seed(derive(self.optimization.seed, "dropout", step, micro_batch, self.place.rank))
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.optimization.precision == "bfloat16"):
            if self.objective.needs_teacher and not taught:
                taught = self.taught(inputs, targets)
            parts = objectives.losses(self.model, inputs, targets, weights, self.objective, taught)
            loss = objectives.total(parts, self.objective)
        loss.backward()
        return {name: part.detach() for name, part in parts.items()}

    def taught(self, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the teacher gives for a micro-batch that came without it."""
        if self.teacher is None:
            raise ValueError("the objective needs a teacher, or batches that hold what one gave.")
        return objectives.teach(self.teacher, inputs, targets, self.objective)

    def update(self, norm: float, learning_rate: float) -> None:
        """Clip the gradients, whose global norm is known, and apply them."""
        limit = self.optimization.max_grad_norm
        if limit is not None:
            self.gradients *= min(1.0, limit / max(norm, TINY))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def predict(self, batch: Batch) -> Arrays:
        """What the model returns for all rows in evaluation mode, float32, on every process."""
        inputs, targets = self.on_device(batch.inputs), self.on_device(batch.targets)
        with self.model.evaluating():
            found = objectives.predictions(self.model, inputs, targets, self.objective.task)
        return {name: to_numpy(x) for name, x in found.items()}

    def teach(self, batch: Batch) -> Arrays:
        """What the teacher gives for all rows, float32."""
        inputs, targets = self.on_device(batch.inputs), self.on_device(batch.targets)
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.optimization.precision == "bfloat16"):
            return {name: to_numpy(x.float()) for name, x in self.taught(inputs, targets).items()}

    def state(self) -> Arrays:
        """Copies of the trained weights, their moments and the number of steps taken, as every backend has them."""
        specs, state = self.model.tensor_specs(), {"count": np.array(self.count, np.int64)}
        for name, parameter in self.parameters.items():
            for key, tensor in self.tensors(parameter).items():
                state[f"{key}/{name}"] = specs[name].from_layout(to_numpy(tensor).copy(), LAYOUT)
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state` returned, bit for bit.

        Raises:
            ValueError: it is that of another model.
        """
        specs, own = self.model.tensor_specs(), self.state()
        check_state({name: array.shape for name, array in own.items()}, state)
        for name, parameter in self.parameters.items():
            for key, tensor in self.tensors(parameter).items():
                tensor.copy_(from_numpy(specs[name].to_layout(state[f"{key}/{name}"], LAYOUT)))
            self.optimizer.state[parameter]["step"].fill_(float(state["count"]))

    def weights(self) -> Arrays:
        """Copies of the model's weights by canonical name."""
        return self.model.weights_by_name()

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; all must ask."""
        return bool(add_up(torch.tensor(int(flag), device=self.place.device)))

    @property
    def count(self) -> int:
        """How many steps the optimizer has taken."""
        return int(self.optimizer.state[next(iter(self.parameters.values()))]["step"])

    def tensors(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """A parameter and its moments, by the names of `state`."""
        moments = self.optimizer.state[parameter]
        return {"weight": parameter, **{key: moments[name] for key, name in MOMENTS.items()}}

    def share(self, batch: Batch) -> Batch:
        """This process's share of the batch."""
        return batch if self.place.processes == 1 else batch.split(self.place.processes)[self.place.rank]

    def on_device(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The arrays as tensors; copies to a GPU run beside what it computes."""
        tensors = {name: from_numpy(array) for name, array in arrays.items()}
        if self.place.device.type == "cpu":
            return tensors
        return {name: x.pin_memory().to(self.place.device, non_blocking=True) for name, x in tensors.items()}

    def sum_parts(self, sums: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """The losses of all micro-batches and processes, by name."""
        rows = torch.stack([torch.stack(list(parts.values())).double() for parts in sums])  # (micro-batches, losses)
        return dict(zip(sums[0], add_up(rows.sum(0)).tolist(), strict=True))


def flat_gradients(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """One zero tensor whose parts are the parameters' gradients, which autograd adds to from now on.

    Its size is rounded up to a multiple of CHUNK.
    """
    sizes = [p.numel() for p in parameters]
    flat = torch.zeros(-(-sum(sizes) // CHUNK) * CHUNK, device=parameters[0].device)
    for parameter, part in zip(parameters, flat[: sum(sizes)].split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat


def no_moments(parameter: torch.nn.Parameter) -> dict[str, Tensor]:
    """What AdamW remembers of a parameter before its first step."""
    step = torch.zeros((), device=parameter.device)
    return {"step": step, **{name: torch.zeros_like(parameter) for name in MOMENTS.values()}}


def global_norm(gradients: Tensor) -> float:
    """The Euclidean norm; in parts, since one long float32 sum of squares loses 1e-3 of 20 million."""
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(gradients.view(-1, CHUNK), dim=1)))
