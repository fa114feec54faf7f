"""Training in several processes that know of each other, too long for the suite: `pytest -n0` with this file's name."""

import contextlib
import json
import socket

import numpy as np

from tests import test_flax_training as flax
from tests import test_tf_training as tf


def free_addresses(count):
    """Addresses of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def test_two_processes_of_tensorflow_compute_what_one_does():
    alone = tf.result_of(tf.start("curves(1)"))
    cluster = {"worker": free_addresses(2)}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": rank}} for rank in range(2)]
    started = [tf.start("curves(None)", TF_CONFIG=json.dumps(task)) for task in tasks]
    for rank, found in enumerate(map(tf.result_of, started)):
        assert found["session"] == {"rank": rank, "processes": 2, "devices": 2, "kind": "cpu"}
        assert found["agree"] == [True, False]
        for task in tf.DISTRIBUTED:
            assert np.allclose(found[task], alone[task], rtol=1e-5, atol=0), task


def test_a_run_of_tensorflow_has_the_same_bits_in_another_process_and_resumed():
    one, again, two = (tf.result_of(tf.start(f"bits({devices})")) for devices in (1, 1, 2))
    assert one == again
    assert one[0] == one[1]
    assert two[0] == two[1] != one[0]


def test_two_hosts_of_jax_compute_what_one_does():
    alone = flax.read(flax.start(1, *flax.RUNS))
    assert flax.read(flax.start(1, flax.RUNS[0]))[2][flax.RUNS[0]] == alone[2][flax.RUNS[0]]
    told = {"JAX_COORDINATOR_ADDRESS": free_addresses(1)[0], "JAX_NUM_PROCESSES": "2"}
    started = [flax.start(2, "masked_lm", JAX_PROCESS_ID=str(rank), **told) for rank in range(2)]
    reports = [flax.read(process) for process in started]
    assert [session for session, *_ in reports] == [[0, 2, 4, "cpu"], [1, 2, 4, "cpu"]]
    assert reports[0][1:] == reports[1][1:]
    assert reports[0][1] == [False, True]
    flax.assert_near(reports[0][2], alone[2])
