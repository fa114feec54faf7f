"""Logs of runs: the same bytes after a kill, TensorBoard's files without a framework, and the picture of curves."""

import json
import signal
import sys
import warnings
from xml.etree import ElementTree

import pytest

from distilbert.errors import DataError
from distilbert.training import curves, logs
from distilbert.training.logs import Log
from tests.support import run_python

FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "flax"}

# Steps 1 to 12, a checkpoint every 5th; killed at random, it goes on from the last one.
RUN = """
import sys
from pathlib import Path
from distilbert.training.logs import Log
folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
file = folder / "checkpoint"
begin = int(file.read_text()) if file.exists() else None
with Log(folder, resume_from_step=begin, tensorboard=False) as log:
    for step in range((begin or 0) + 1, 13):
        log.step(step, {"loss": 1 / step, "learning_rate": 1e-5 * step})
        if step == kill_at:
            log._file.write(b'{"step": 9')
            log._file.flush()
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 5 == 0:
            log.evaluation(step, {"accuracy": step / 13})
            log.sync()
            file.write_text(str(step))
"""


def write(folder, steps, **options):
    with Log(folder, tensorboard=False, **options) as log:
        for step in steps:
            log.step(step, {"loss": 1 / step, "learning_rate": 1e-5 * step})
            if step % 5 == 0:
                log.evaluation(step, {"accuracy": step / 13})
    return log.path.read_bytes()


def test_lines_are_json_with_their_step_and_nothing_of_a_clock(tmp_path):
    write(tmp_path, range(4, 6))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 4, "loss": 0.25, "learning_rate": 4e-5},
        {"step": 5, "loss": 0.2, "learning_rate": 5e-5},
        {"step": 5, "evaluation": {"accuracy": 5 / 13}},
    ]
    assert logs.read(tmp_path / "log.jsonl") == lines
    assert logs.read(tmp_path / "log.jsonl", from_step=5) == lines[1:]


def test_a_run_killed_several_times_ends_with_the_same_bytes(tmp_path):
    expected = write(tmp_path / "whole", range(1, 13))
    killed = tmp_path / "killed"
    killed.mkdir()
    for kill_at in (3, 5, 8, 12):
        done = run_python("-c", RUN, str(killed), str(kill_at))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (killed / "log.jsonl").read_bytes() != expected
    assert run_python("-c", RUN, str(killed), "0").returncode == 0
    assert (killed / "log.jsonl").read_bytes() == expected
    assert sorted(path.name for path in killed.iterdir()) == ["checkpoint", "log.jsonl"]


@pytest.mark.parametrize("torn", [b'{"step": 9', b'{"step": 9, "loss": 1}', b"\0\0\0\n", b"3\n", b'{"loss": 1}\n'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    expected = write(tmp_path, range(1, 9))
    path = tmp_path / "log.jsonl"
    path.write_bytes(expected + torn)
    assert logs.read(path)[-1]["step"] == 8
    assert write(tmp_path, [], resume_from_step=20) == expected


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path):
    expected = write(tmp_path, range(1, 4))
    broken = expected.replace(b'{"step": 2', b'{"step": x')
    (tmp_path / "log.jsonl").write_bytes(broken)
    with pytest.raises(DataError, match=r"log\.jsonl:2: is no line of a log"):
        Log(tmp_path, resume_from_step=3)
    assert (tmp_path / "log.jsonl").read_bytes() == broken


def test_without_a_checkpoint_a_log_begins_anew(tmp_path):
    write(tmp_path, range(1, 9))
    assert write(tmp_path, range(1, 3)) == write(tmp_path / "other", range(1, 3))


def test_an_event_is_written_once_however_often_the_run_is_resumed(tmp_path):
    event = {"resumed": "forced", "threads": [2, 4]}
    write(tmp_path, range(1, 9))
    for _ in range(3):
        with Log(tmp_path, resume_from_step=5, tensorboard=False) as log:
            log.event(5, event)
            log.step(6, {"loss": 0.5})
    assert [line for line in logs.read(log.path) if "event" in line] == [{"step": 5, "event": event}]


def test_what_is_not_finite_becomes_null(tmp_path):
    with Log(tmp_path, tensorboard=False) as log:
        log.step(1, {"loss": float("nan"), "gradient_norm": float("inf")})
    assert json.loads(log.path.read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "gradient_norm": None,
    }


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with Log(tmp_path, tensorboard=False) as log:
        log.step(1, {"loss": 1.0})
        assert logs.read(log.path) == [{"step": 1, "loss": 1.0}]


def test_tensorboard_reads_the_event_files_and_forgets_what_was_undone(tmp_path):
    code = f"""
import json, sys, types
for name in {sorted(FRAMEWORKS)!r}:
    assert name not in sys.modules
from pathlib import Path
from distilbert.training.logs import Log
folder = Path({str(tmp_path)!r})
with Log(folder) as log:
    for step in range(1, 8):
        log.step(step, {{"loss": step / 8}}, tokens_per_second=100.0 * step)
with Log(folder, resume_from_step=4) as log:
    log.step(5, {{"loss": 50.0}}, tokens_per_second=1.0)
    log.evaluation(5, {{"accuracy": 0.75}})
imported = sorted({FRAMEWORKS!r} & set(sys.modules))
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")  # its own way to do without TensorFlow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(str(folder / "tensorboard")).Reload()
points = {{tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}}
print(json.dumps([imported, points]))
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    imported, points = json.loads(done.stdout.splitlines()[-1])
    assert imported == []
    assert points == {
        "train/loss": [[1, 0.125], [2, 0.25], [3, 0.375], [4, 0.5], [5, 50.0]],
        "train/tokens_per_second": [[1, 100.0], [2, 200.0], [3, 300.0], [4, 400.0], [5, 1.0]],
        "evaluation/accuracy": [[5, 0.75]],
    }


def test_without_tensorboard_there_is_a_warning_and_a_log(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # those of other tests' objects, which may be collected just now
        warnings.simplefilter("always", UserWarning)
        log = Log(tmp_path)
    log.step(1, {"loss": 1.0}, tokens_per_second=3.0)
    log.close()
    assert len(caught) == 1
    assert "pip install 'distilbert[train]'" in str(caught[0].message)
    assert len(logs.read(log.path)) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_curves_keep_training_and_evaluation_apart():
    lines = [
        {"step": 1, "loss": 3.0, "learning_rate": 0.1},
        {"step": 2, "loss": None, "learning_rate": 0.2},
        {"step": 2, "evaluation": {"loss": 9.0, "accuracy": 0.5}},
        {"step": 2, "event": {"resumed": "forced"}},
        {"step": 3, "loss": 1.0, "learning_rate": 0.3},
    ]
    found = {quantity: curves.curve(lines, quantity) for quantity in curves.quantities([lines[:2], lines[2:]])}
    assert found == {
        ("train", "loss"): ([1, 3], [3.0, 1.0]),
        ("train", "learning_rate"): ([1, 2, 3], [0.1, 0.2, 0.3]),
        ("evaluation", "loss"): ([2], [9.0]),
        ("evaluation", "accuracy"): ([2], [0.5]),
    }


def test_curves_of_two_runs_are_one_picture_and_the_same_bytes(tmp_path):
    write(tmp_path / "one", range(1, 1001))
    write(tmp_path / "two", range(1, 8))
    runs = {"first run": tmp_path / "one" / "log.jsonl", "<second> & last": tmp_path / "two" / "log.jsonl"}
    for name in ("a.svg", "b.svg"):
        curves.plot(runs, tmp_path / name)
    picture = (tmp_path / "a.svg").read_text()
    assert picture == (tmp_path / "b.svg").read_text()
    assert len(picture) < 200_000
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own file
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("first run") == texts.count("<second> & last") == 3
    assert {"loss", "learning rate", "accuracy", "step"} <= set(texts)


def test_curves_of_nothing_are_refused(tmp_path):
    write(tmp_path, [])
    with pytest.raises(DataError, match=r"log\.jsonl: nothing to draw"):
        curves.plot({"run": tmp_path / "log.jsonl"}, tmp_path / "curves.svg")
    assert not (tmp_path / "curves.svg").exists()
