"""Three frameworks that train from one seed take the same way: the losses of every step are those of the others."""

import json

import numpy as np
import pytest

from tests.run_commands import finish, start
from tests.support import BACKENDS
from tools.tiny_runs import HEADS, make_model, write_examples

RUNS = (("train", "text-classification"), ("distill", "masked-lm"))
STEPS = 50


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """The loss of each step of each run, by kind and backend."""
    folder = tmp_path_factory.mktemp("curves")
    for kind, task in RUNS:
        make_model(folder / f"{kind}-model", HEADS[task])
        write_examples(folder / f"{kind}.jsonl", task, 300)
    started = {backend: start([command(folder, backend, *run) for run in RUNS]) for backend in BACKENDS}
    for process in started.values():
        assert [(result.code, result.err) for result in finish(process)] == [(0, ""), (0, "")]
    return {(kind, backend): losses(folder / f"{backend}-{kind}") for kind, _ in RUNS for backend in BACKENDS}


def command(folder, backend, kind, task):
    numbers = ("--seed", 0, "--dropout", 0, "--max-steps", STEPS, "--epochs", 9, "--batch-size", 8, "--threads", 1)
    files = ("--train-data", folder / f"{kind}.jsonl", "--out", folder / f"{backend}-{kind}")
    return [kind, folder / f"{kind}-model", "--task", task, "--backend", backend, *files, *numbers,
            "--learning-rate", 1e-3]  # fmt: skip


def losses(folder):
    return [line["loss"] for line in map(json.loads, (folder / "log.jsonl").open()) if "loss" in line]


@pytest.mark.parametrize("kind", [kind for kind, _ in RUNS])
def test_fifty_steps_have_the_same_losses_in_every_framework(curves, kind):
    first = curves[kind, "pt"]
    assert len(first) == STEPS
    assert np.mean(first[-5:]) < 0.95 * np.mean(first[:5])
    for backend in BACKENDS:
        np.testing.assert_allclose(curves[kind, backend], first, rtol=1e-4, err_msg=backend)
