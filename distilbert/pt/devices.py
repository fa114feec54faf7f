"""Where PyTorch trains: the processor or this process's GPU, alone or with the processes that torchrun started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.utils import deterministic

from distilbert.training.trainer import Session


class Place(NamedTuple):
    """This process among those of the session, and its device."""

    rank: int
    processes: int
    device: torch.device


def place() -> Place:
    """Where this process computes now."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    if not (distributed.is_available() and distributed.is_initialized()):
        return Place(0, 1, device)
    return Place(distributed.get_rank(), distributed.get_world_size(), device)


@contextlib.contextmanager
def session(*, threads: int | None = None, devices: int | None = None) -> Generator[Session]:
    """Deterministic computing on that many threads, on a GPU if there is one; joins the processes of torchrun.

    Raises:
        ValueError: threads is below 1; devices is not 1, since a process of PyTorch has one.
    """
    check_session(threads, devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(using_threads(threads))
        if torch.cuda.is_available():
            stack.enter_context(using_cuda())
        if "WORLD_SIZE" in os.environ and "RANK" in os.environ and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            stack.callback(distributed.destroy_process_group)
        rank, processes, device = place()
        yield Session(rank, processes, processes, "gpu" if device.type == "cuda" else "cpu")


def check_session(threads: int | None, devices: int | None) -> None:
    """Refuse what a process of PyTorch cannot do."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    if devices not in (None, 1):
        raise ValueError(
            f"devices must be 1 in PyTorch, got {devices}: start one process for each device, with "
            f"`torchrun --nproc-per-node {devices}`."
        )


@contextlib.contextmanager
def using_threads(threads: int | None) -> Generator[None]:
    """That many threads for products; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def using_cuda() -> Generator[None]:
    """This process's GPU, with deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def add_up(x: Tensor) -> Tensor:
    """The sum of x over all processes, in its place."""
    if place().processes > 1:
        distributed.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """The tensors, of one shape, of all processes: (processes, ...). Their gradients return to where they are from."""
    return Gathered.apply(x) if place().processes > 1 else x[None]  # pyright: ignore[reportReturnType]


class Gathered(torch.autograd.Function):
    """What `gathered` computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004, D102
        parts = [torch.empty_like(x) for _ in range(place().processes)]
        distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004, D102
        return add_up(gradients[0].contiguous().clone())[place().rank]
