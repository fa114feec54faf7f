"""Runs that are broken off, disturbed or begun again: the same bits in the end, or a refusal that names the reason."""

import hashlib
import json
import shutil
import signal
import subprocess
import time

import pytest

from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training.locks import locked
from tests.support import ROOT, run_cli
from tools import training_kills
from tools.tiny_runs import WORDS, make_model, write_examples

TASK = "text-classification"
STEPS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and its data."""
    folder = tmp_path_factory.mktemp("resume")
    make_model(folder / "model", "DistilBertForSequenceClassification", n_layers=1)
    write_examples(folder / "train.jsonl", TASK, 120)
    write_examples(folder / "eval.jsonl", TASK, 20, seed=1)
    return folder


@pytest.fixture
def own(place, tmp_path):
    """Copies, which a test may damage."""
    for name in ("model", "train.jsonl", "eval.jsonl"):
        (shutil.copytree if (place / name).is_dir() else shutil.copy)(place / name, tmp_path / name)
    return tmp_path


def command(folder, out, *options):
    numbers = {"--max-steps": STEPS, "--epochs": 9, "--batch-size": 8, "--learning-rate": 1e-3, "--save-every": 5,
               "--eval-every": 10, "--threads": 1, "--backend": "pt", "--keep": 3}  # fmt: skip
    given = {**numbers, **dict(zip(options[::2], options[1::2], strict=True))}
    values = [text for pair in given.items() if pair[1] is not None for text in pair]
    files = ("--train-data", folder / "train.jsonl", "--eval-data", folder / "eval.jsonl", "--out", out)
    return [str(part) for part in ("train", folder / "model", "--task", TASK, *files, *values)]


@pytest.fixture(scope="module")
def alone(place):
    """The folder of a run that nothing disturbed."""
    assert run_cli(*command(place, place / "alone"))[::2] == (0, "")
    return place / "alone"


def lines_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def final(out):
    """What must be equal in the end."""
    names = ("model/model.safetensors", f"checkpoints/step-{STEPS:08d}/state.safetensors", "log.jsonl")
    return {name: (out / name).read_bytes() for name in names}


def snapshot(out):
    """Digest and time of every file."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def halfway(own, alone):
    """A copy of a run without its last checkpoint and report: as if it had been killed after step 15."""
    out = own / "run"
    shutil.copytree(alone, out)
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:08d}")
    (out / "report.json").unlink()
    return out


def test_a_run_that_is_killed_ends_with_the_same_bits(tmp_path, capsys):
    command = training_kills.prepare(tmp_path, "train", "pt", "--accumulation", "2")
    assert training_kills.compare(command, tmp_path / "runs", kills=3)
    assert "3 kills, the same bits" in capsys.readouterr().out


def test_a_run_that_is_told_to_end_saves_and_can_be_gone_on_with(place, tmp_path):
    arguments = command(place, tmp_path / "run", "--save-every", 1000, "--epochs", 99, "--max-steps", 1000)
    code = "import sys; from distilbert.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [training_kills.sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while training_kills.last_step(tmp_path / "run" / "log.jsonl") < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "Traceback" not in process.stderr.read()
    last = training_kills.last_step(tmp_path / "run" / "log.jsonl")
    assert checkpoints(tmp_path / "run") == [f"step-{last:08d}"]
    assert run_cli(*arguments, "--max-steps", last + 3, "--allow-changed", "max_steps")[::2] == (0, "")


@pytest.mark.filterwarnings("always:.*taking the checkpoint before it")
def test_a_damaged_checkpoint_is_passed_over_with_one_warning(own, halfway, alone):
    newest = halfway / "checkpoints" / "step-00000015" / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[-9] ^= 1
    newest.write_bytes(data)
    code, _, err = run_cli(*command(own, halfway))
    assert code == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "step-00000015" in err
    assert final(halfway) == final(alone)


@pytest.mark.parametrize("change", ["data", "tokenizer", "weights", "threads", "seed", "dropout"])
def test_a_run_that_became_another_is_refused_by_name(own, halfway, change):
    options, name = (), change
    if change == "data":
        text = (own / "train.jsonl").read_text()
        (own / "train.jsonl").write_text(text.replace(" the ", " thE ", 1))
        name = "train_data"
    elif change == "tokenizer":
        DistilBertTokenizerFast({word: i for i, word in enumerate(sorted(WORDS))}).save_pretrained(own / "model")
        name = "train_data"
    elif change == "weights":
        make_model(own / "model", "DistilBertForSequenceClassification", n_layers=1, seed=5)
    else:
        options = (f"--{change}", {"threads": 2, "seed": 1, "dropout": 0.25}[change])
    before = checkpoints(halfway)
    code, _, err = run_cli(*command(own, halfway, *options))
    assert code == 2
    assert err.startswith("error: the run that lies there is another one (")
    assert err.count("\n") == 1
    assert name in err.partition("(")[2].partition(")")[0].split(", ")
    assert f"{name} was " in err
    assert checkpoints(halfway) == before


def test_an_allowed_change_goes_on_and_is_in_the_log(own, halfway):
    assert run_cli(*command(own, halfway, "--threads", 2, "--allow-changed", "threads"))[::2] == (0, "")
    assert {"step": 15, "event": {"changed": "threads was 1 and is 2"}} in lines_of(halfway)
    assert [line["step"] for line in lines_of(halfway) if "loss" in line] == list(range(1, STEPS + 1))


def test_only_what_is_compared_can_be_allowed(own, halfway):
    code, _, err = run_cli(*command(own, halfway, "--allow-changed", "weather"))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: allow_changed has weather, and must name some of ")


def test_a_run_that_is_done_changes_nothing(place, alone):
    before = snapshot(alone)
    code, out, err = run_cli(*command(place, alone))
    assert (code, err) == (0, "")
    assert f"{STEPS} steps" in out
    assert snapshot(alone) == before


def test_two_runs_in_one_folder_are_refused(place, alone):
    with locked(alone / ".lock"):
        code, _, err = run_cli(*command(place, alone))
    assert (code, err) == (2, f"error: {alone}: another process is training there; choose another folder.\n")


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_before_saved(place, tmp_path):
    code, _, err = run_cli(*command(place, tmp_path / "run", "--learning-rate", 1e30, "--warmup", 0))
    assert code == 2
    assert err.startswith("error: step 2: loss or gradient is not finite")
    assert err.count("\n") == 1
    assert checkpoints(tmp_path / "run") == ["step-00000001"]
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1]


def test_steps_that_are_not_finite_can_be_left_out(place, tmp_path):
    arguments = command(place, tmp_path / "run", "--learning-rate", 1e30, "--warmup", 0, "--max-steps", 4)
    code, out, err = run_cli(*arguments, "--skip-nonfinite")
    assert (code, err) == (0, "")
    assert "skipped 3 steps" in out
    assert json.loads((tmp_path / "run" / "report.json").read_text())["skipped_steps"] == 3
    assert [line.get("skipped") for line in lines_of(tmp_path / "run") if "evaluation" not in line] == [None] + 3 * [
        True
    ]


def test_a_run_ends_early_and_keeps_its_best_model(place, tmp_path):
    """With a learning rate that ruins what was learned: the best is an early one."""
    out = tmp_path / "run"
    options = ("--eval-every", 2, "--patience", 3, "--learning-rate", 0.3, "--max-steps", 200, "--epochs", 99)
    assert run_cli(*command(place, out, *options))[::2] == (0, "")
    report = json.loads((out / "report.json").read_text())
    judged = {line["step"]: line["evaluation"]["accuracy"] for line in lines_of(out) if "evaluation" in line}
    assert report["steps"] == max(judged) == report["best_step"] + 6 < 200
    assert judged[report["best_step"]] == max(judged.values()) == report["metrics"]["accuracy"]
    kept = (out / "model" / "model.safetensors").read_bytes()
    log = (out / "log.jsonl").read_bytes()
    (out / "report.json").unlink()  # as if killed between the last checkpoint and the report
    assert run_cli(*command(place, out, *options))[::2] == (0, "")
    assert (out / "log.jsonl").read_bytes() == log
    assert json.loads((out / "report.json").read_text())["steps"] == report["steps"]
    again = tmp_path / "again"
    options = (*options[:-2], "--epochs", 99, "--save-every", report["best_step"])
    assert run_cli(*command(place, again, *options))[::2] == (0, "")
    assert (again / "model" / "model.safetensors").read_bytes() == kept
