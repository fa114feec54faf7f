"""Where training computes in TensorFlow: threads, devices and processes, by `tf.distribute`. Twins: pt/ and flax/.

TensorFlow settles threads and devices when it first computes; a session that asks for others afterwards is refused.
"""

# Keras types a variable's value as optional: it is not.
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Generator
from typing import Any

import tensorflow as tf

from distilbert.tf.pretrained import PretrainedModel
from distilbert.training.trainer import Session

LATE = "TensorFlow has computed already: {} can be chosen only before, in a fresh process."


@contextlib.contextmanager
def session(*, threads: int | None = None, devices: int | None = None) -> Generator[Session]:
    """Deterministic computing on that many threads and devices; joins the processes that TF_CONFIG names.

    What is made inside of it, models above all, is made on all of its devices. On processors TensorFlow computes the
    same bits each time; for accelerators it is told to, which holds for the rest of the process.

    Args:
        threads: of this process's products; None leaves TensorFlow's choice.
        devices: of this process; None takes one processor, or all accelerators. Several on a processor share it.

    Raises:
        ValueError: there are not that many devices, or TensorFlow has computed already with others.
    """
    for name, number in (("threads", threads), ("devices", devices)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    if threads is not None:
        set_threads(threads)
    accelerators = tf.config.list_physical_devices("GPU")
    if accelerators:
        tf.config.experimental.enable_op_determinism()
    strategy = new_strategy(len(accelerators), devices)
    with strategy.scope():
        yield Session(*processes(strategy), strategy.num_replicas_in_sync, "gpu" if accelerators else "cpu")


def set_threads(threads: int) -> None:
    """Let each product, and each pair of products at a time, have that many threads.

    Raises:
        ValueError: it is too late.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise ValueError(LATE.format(f"threads={threads}")) from error


def new_strategy(accelerators: int, devices: int | None) -> tf.distribute.Strategy:
    """How the devices of this process, and of those that TF_CONFIG names, work together.

    Raises:
        ValueError: there are not that many, or it is too late.
    """
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    count = devices or accelerators or 1
    if accelerators and count > accelerators:
        raise ValueError(f"devices must be at most {accelerators}, the number of accelerators, got {count}.")
    if count == 1:
        return tf.distribute.get_strategy()
    if not accelerators:
        divide_processor(count)
    return mirrored("GPU" if accelerators else "CPU", count)


@functools.cache
def mirrored(kind: str, devices: int) -> tf.distribute.Strategy:
    """The strategy of these devices: one for the process, since two would mistake each other's sums for their own."""
    sums = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None  # of accelerators, as TensorFlow chooses
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(devices)], sums)


def divide_processor(devices: int) -> None:
    """Make that many logical devices of the processor.

    Raises:
        ValueError: it is too late.
    """
    parts = [tf.config.LogicalDeviceConfiguration()] * devices
    try:
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    except RuntimeError as error:
        if len(tf.config.list_logical_devices("CPU")) < devices:
            raise ValueError(LATE.format(f"devices={devices}")) from error


def processes(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    cluster = strategy.cluster_resolver
    workers = () if cluster is None else cluster.cluster_spec().as_dict().get("worker", ())
    return (cluster.task_id, len(workers)) if workers else (0, 1)


def local_ranks(strategy: tf.distribute.Strategy) -> list[int]:
    """The numbers of this process's devices among all."""
    rank, count = processes(strategy)
    per_process = strategy.num_replicas_in_sync // count
    return [rank * per_process + i for i in range(per_process)]


def on_every_device(model: PretrainedModel) -> Any:
    """The model, if the current strategy's devices all have its variables; else a copy that they have."""
    strategy = tf.distribute.get_strategy()
    if all(strategy.extended.variable_created_in_scope(variable.value) for variable in model.variables):
        return model
    with strategy.scope():
        copy = type(model).from_config(model.get_config())
        copy.assign(model.weights_by_name())
    copy.load_report = model.load_report
    return copy


def replica() -> tuple[int, int]:
    """The number of the device for which this is traced, and how many compute the step."""
    context = tf.distribute.get_replica_context()
    number = tf.get_static_value(context.replica_id_in_sync_group)
    return int(number), context.num_replicas_in_sync


def add_up(x: Any) -> Any:
    """The sum over all devices, of each tensor in `x`."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


def gathered(x: tf.Tensor) -> tf.Tensor:
    """The rows of all devices in their order, with a gradient to each. x: as many rows on every device.

    A sum with zeros, since TensorFlow's `all_gather` fails with several processes.
    """
    number, count = replica()
    return add_up(tf.concat([x if i == number else tf.zeros_like(x) for i in range(count)], 0)) if count > 1 else x
