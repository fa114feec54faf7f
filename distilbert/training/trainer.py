"""What a backend's `training` module offers to the loop: a session, and a trainer of one model in it.

The loop gives every process the whole batches of a step. What of them a process or a device computes is the trainer's
affair, and the results are those of one device within rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from distilbert.training.batches import Batch
from distilbert.training.objective import Objective

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Optimization:
    """How a step changes the weights: AdamW behind clipping, and in what numbers the step is computed.

    max_grad_norm: gradients whose global norm is larger are scaled down to it; None clips nothing.
    precision: "bfloat16" computes the model in bfloat16 with weights, losses and moments in float32.
    seed: of dropout, together with the step.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Session:
    """Where a run computes.

    rank: of this process among `processes`; the process of rank 0 writes the files. devices: over all processes.
    kind: "cpu", "gpu" or "tpu".
    """

    rank: int = 0
    processes: int = 1
    devices: int = 1
    kind: str = "cpu"


@dataclass(frozen=True)
class StepResult:
    """What a step found, over all micro-batches and devices.

    loss: the objective. parts: its losses by name, without their alphas. gradient_norm: before clipping. Where loss
    or norm is not finite, the weights and moments are as they were before.
    """

    loss: float
    parts: Mapping[str, float]
    gradient_norm: float


class Trainer(Protocol):
    """A model in training, with its optimizer."""

    # Rows are padded to a multiple of it: 1, or more where every shape is compiled. It divides the model's positions.
    length_multiple: int

    def step(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """One step of the optimizer on the micro-batches of `step`, whose weights are normalized.

        A weight that no loss reads has a gradient of zero: it decays, as all others do.
        """
        ...

    def predict(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What the model returns for all rows in evaluation mode; numbers are float32.

        `logits`; `start_logits` and `end_logits`; `embeddings`. Of masked LM, for each position (n,): `tokens`, the
        likeliest ones, and `losses`, -log of the probability of its label.
        """
        ...

    def teach(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What the teacher gives for all rows, as `Batch.teacher` holds it, float32."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the trained weights and their moments in canonical names and orientation, equal in every backend.

        `weight/NAME`, `mean/NAME`, `square/NAME`, float32; and `count`, how many steps the optimizer has taken, int64.
        """
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `state` returned, bit for bit."""
        ...

    def weights(self) -> dict[str, NDArray[Any]]:
        """Copies of the model's weights by canonical name, as `weights_by_name` returns them, on every process."""
        ...

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; all must ask."""
        ...


class Training(Protocol):
    """The module `distilbert.<backend>.training`."""

    def session(self, *, threads: int | None = None, devices: int | None = None) -> AbstractContextManager[Session]:
        """Deterministic computing on that many threads and devices; joins the processes that a launcher started.

        threads: of a process's products; None leaves the framework's choice. devices: of this process; None takes one
        processor, or all accelerators.
        """
        ...

    def trainer(self, model: Any, objective: Objective, optimization: Optimization, teacher: Any = None) -> Trainer:
        """A trainer of the model. The teacher's weights never change."""
        ...


def check_trainer(head: str, dtype: str, objective: Objective, optimization: Optimization) -> None:
    """Refuse a model of the class `head` in `dtype`, or a precision, that cannot be trained so.

    Raises:
        ValueError: says what must hold, and what came.
    """
    if head != objective.head:
        raise ValueError(f"{objective.task} trains a {objective.head}, got a {head}.")
    if dtype != "float32":
        raise ValueError(f"a model must be float32 to be trained, got {dtype}: load it with dtype='float32'.")
    if optimization.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {optimization.precision!r}.")


def check_state(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, NDArray[Any]]) -> None:
    """Refuse the state of another model, before anything is taken over.

    Raises:
        ValueError: a name is missing or unknown, or has another shape.
    """
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(f"state must be that of the model; missing: {missing[:5]}, unknown: {unknown[:5]}.")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {state[name].shape}.")
