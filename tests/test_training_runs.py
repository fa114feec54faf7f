"""Whole runs through the command line: every task in every framework, and what a run leaves behind."""

import json
import math

import numpy as np
import pytest

from distilbert.backends import load_backend
from tests.run_commands import run_all
from tests.support import BACKENDS
from tools.tiny_runs import HEADS, TOPICS, make_model, write_examples

TASKS = tuple(HEADS)
DISTILLED = ("masked-lm", "text-classification", "question-answering", "sentence-embedding")
RUNS = [*(("train", task) for task in TASKS), *(("distill", task) for task in DISTILLED)]
STEPS = 30
LABELS = {"text-classification": {"id2label": dict(enumerate(TOPICS))}}  # of the teacher
LEARNED = {  # of a guess: what a run must have reached, where so few steps show it
    ("train", "text-classification"): ("accuracy", 1 / 3 + 0.1),
    ("train", "token-classification"): ("accuracy", 0.75),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and data, a folder for all runs."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        make_model(folder / f"{task}-model", HEADS[task], n_layers=1)
        make_model(folder / f"{task}-teacher", HEADS[task], n_layers=2, seed=1, **LABELS.get(task, {}))
        write_examples(folder / f"{task}-train.jsonl", task, 200)
        write_examples(folder / f"{task}-eval.jsonl", task, 30, seed=1)
    return folder


def command(place, backend, kind, task, *options):
    """The command line of a run, and its folder."""
    out = place / f"{backend}-{kind}-{task}"
    model = place / f"{task}-{'model' if kind == 'train' else 'teacher'}"
    data = ("--train-data", place / f"{task}-train.jsonl", "--eval-data", place / f"{task}-eval.jsonl")
    numbers = ("--max-steps", STEPS, "--epochs", 9, "--batch-size", 16, "--learning-rate", 3e-3, "--eval-every", 15)
    return [kind, model, "--task", task, *data, "--out", out, "--backend", backend, "--threads", 1, *numbers, *options]


@pytest.fixture(scope="module", params=BACKENDS)
def done(request, place):
    """Backend, and how each run ended, by kind and task."""
    results = run_all([command(place, request.param, *run) for run in RUNS])
    return request.param, dict(zip(RUNS, results, strict=True))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_a_run_ends_well_and_leaves_everything_behind(done, place, run):
    backend, results = done
    kind, task = run
    result, out = results[run], place / f"{backend}-{kind}-{task}"
    assert (result.code, result.err) == (0, "")
    assert f"{HEADS[task]}, " in result.out
    assert f"wrote {out / 'model'}" in result.out
    steps = [line for line in lines_of(out) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines_of(out) if "evaluation" in line] == [15, 30]
    report = json.loads((out / "report.json").read_text())
    assert (report["steps"], report["head"], report["backend"]) == (STEPS, HEADS[task], backend)
    assert report["tokens"] == sum(line["tokens"] for line in steps)
    assert report["metrics"]
    assert all(math.isfinite(value) for value in report["metrics"].values())
    assert (out / "curves.svg").read_text().startswith("<")
    losses = [line["loss"] for line in steps]
    if task != "multiple-choice":  # which takes a larger model
        assert np.mean(losses[-5:]) < np.mean(losses[:5])
    if run in LEARNED:
        name, least = LEARNED[run]
        assert report["metrics"][name] > least


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_every_framework_loads_what_a_run_wrote(done, place, run):
    backend, _ = done
    kind, task = run
    folder = place / f"{backend}-{kind}-{task}" / "model"
    pt, *others = (getattr(load_backend(name), HEADS[task]).from_pretrained(folder) for name in BACKENDS)
    weights = pt.weights_by_name()
    assert all(np.isfinite(array).all() for array in weights.values())
    for other in others:
        found = other.weights_by_name()
        assert found.keys() == weights.keys()
        assert all(np.array_equal(found[name], weights[name]) for name in weights)
