"""Where training computes in JAX: the processes and devices of a run, and arrays on all of them.

Every device holds all parameters and computes its share of the rows; XLA inserts the sums over devices. Source: JAX's
documentation, "Distributed arrays and automatic parallelization" and "Multi-controller JAX".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distilbert.flax.inference import thread_count
from distilbert.training.trainer import Session

DATA = "data"  # the mesh's only axis
DETERMINISTIC = "xla_gpu_deterministic_ops"  # sums of scattered gradients in a fixed order on GPUs
LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # how many processes a launcher started, which JAX detects

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def session(*, threads: int | None = None, devices: int | None = None) -> Generator[Session]:
    """Deterministic computing on that many threads and devices; joins the processes that a launcher started.

    Several processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say so, or Slurm or Open MPI.

    Args:
        threads: of a process's products; None leaves JAX's choice, a thread for each processor.
        devices: of this process; None takes one processor, or all accelerators.

    Raises:
        ValueError: there are not that many devices, or JAX computes already with other threads.
    """
    prepare(threads, devices)
    join()
    mesh = make_mesh(devices)
    token = _mesh.set(mesh)
    try:
        yield Session(jax.process_index(), jax.process_count(), mesh.size, jax.default_backend())
    finally:
        _mesh.reset(token)


def prepare(threads: int | None, devices: int | None) -> None:
    """Set what JAX reads once, when it starts to compute."""
    for name, number in (("threads", threads), ("devices", devices)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    if started():
        if threads not in (None, thread_count()):
            raise ValueError(
                f"threads must be {thread_count()}, with which JAX computes already, got {threads}: set "
                f"NPROC={threads} before the process starts."
            )
        return
    if threads is not None:
        os.environ["NPROC"] = str(threads)
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)
    if DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{DETERMINISTIC}=true".strip()


def started() -> bool:
    """Whether JAX computes already, and so refuses another number of processors."""
    name = "jax_num_cpu_devices"
    now = jax.config.values[name]
    try:
        jax.config.update(name, now + 1)
    except RuntimeError:
        return True
    jax.config.update(name, now)
    return False


def join() -> None:
    """Meet the other processes, where the environment says that there are some."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    several = address or any(int(os.environ.get(name, "1")) > 1 for name in LAUNCHED)
    if jax.distributed.is_initialized() or not several:
        return
    count, rank = (
        int(told) if (told := os.environ.get(name)) else None for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.distributed.initialize(address, count, rank)


def make_mesh(devices: int | None) -> Mesh:
    """So many devices of each process, in a row."""
    kind, local = jax.default_backend(), jax.local_device_count()
    count = devices or (1 if kind == "cpu" else local)
    if count > local:
        hint = ": choose them before JAX starts to compute" if kind == "cpu" else ""
        raise ValueError(f"devices must be at most {local}, which JAX finds here ({kind}), got {count}{hint}.")
    of_process = [[d for d in jax.devices() if d.process_index == rank] for rank in range(jax.process_count())]
    return Mesh(np.array([device for found in of_process for device in found[:count]]), (DATA,))


def current_mesh() -> Mesh:
    """The session's devices; outside of a session those that it would take."""
    return _mesh.get() or make_mesh(None)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies of all arrays on every device, which may be donated."""
    return jax.tree.map(lambda leaf: _copy(leaf, replicated(mesh)), tree)


def _copy(leaf: Array, sharding: NamedSharding) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(np.array(jax.random.key_data(leaf)), sharding))
    return _put(np.array(leaf), sharding)


def spread(tree: Any, mesh: Mesh) -> Any:
    """NumPy's arrays on the devices: a share of the rows on each, or everything where there are no equal shares."""
    return jax.tree.map(lambda leaf: _put(leaf, _by_rows(leaf, mesh)), tree)


def _by_rows(leaf: np.ndarray[Any, Any], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(DATA)) if len(leaf) % mesh.size == 0 else replicated(mesh)


def _put(array: np.ndarray[Any, Any], sharding: NamedSharding) -> Array:
    """Every process has the whole array, and gives its devices their part."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def any_process(flag: bool) -> bool:
    """Whether any process says so; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())
