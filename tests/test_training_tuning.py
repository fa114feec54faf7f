"""The search for arguments: what is drawn, what is refused, what is best; and a search on Ray where it is installed."""

import json
import sys

import numpy as np
import pytest

from conformance import cases
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.errors import MissingDependencyError, TrainingError
from distilbert.initialization import initial_weights
from distilbert.training import tuning
from distilbert.training.arguments import TrainingArguments
from distilbert.training.tuning import Trial, best_of, check_space, draw, told

SPACE = {"learning_rate": [1e-4, 1e-3, 1e-2], "batch_size": [8, 16]}


class Uniform:
    """What a distribution of Ray Tune is to a search."""

    def sample(self, *, random_state):
        return random_state.random_sample()


def arguments(tmp_path, **others):
    given = {"model": str(tmp_path / "model"), "task": "text-classification", "backend": "pt", "threads": 1}
    data = {"train_data": (tmp_path / "train.jsonl",), "eval_data": (tmp_path / "eval.jsonl",)}
    return TrainingArguments(**{**given, **data, "out": tmp_path / "out", **others})


def test_points_depend_on_the_seed_and_the_number_of_the_trial_alone():
    space = {**SPACE, "dropout": Uniform()}
    drawn = [draw(space, 3, number) for number in range(40)]
    turned = dict(reversed(space.items()))
    assert drawn == [draw(turned, 3, number) for number in range(40)]
    assert drawn != [draw(space, 4, number) for number in range(40)]
    assert {point["learning_rate"] for point in drawn} == {1e-4, 1e-3, 1e-2}
    assert len({point["dropout"] for point in drawn}) == 40
    assert not any(isinstance(value, np.generic) for point in drawn for value in point.values())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": [1.0]}, "got 'learning_rat'"),
        ({"out": ["x"]}, "got 'out'"),
        ({"learning_rate": 1e-3}, "learning_rate must be a list of values or a distribution of Ray Tune, got 0.001"),
        ({"schedule": "linear"}, "schedule must be a list"),
        ({"batch_size": []}, r"batch_size must be a list .* got \[\]"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path, space, message):
    with pytest.raises(ValueError, match=message):
        check_space(arguments(tmp_path), space)


def test_without_evaluations_or_with_impossible_values_there_is_no_search(tmp_path):
    with pytest.raises(ValueError, match="a search needs eval_data"):
        check_space(arguments(tmp_path, eval_data=()), SPACE)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        told(arguments(tmp_path), {"batch_size": 0}, 0)


def test_a_trial_has_a_folder_of_its_own_and_its_values(tmp_path):
    one = told(arguments(tmp_path), {"batch_size": 4}, 12)
    assert (one.out, one.batch_size, one.threads) == (tmp_path / "out" / "trials" / "0012", 4, 1)


def test_paths_hold_in_every_folder_and_names_of_the_hub_stay(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    given = arguments(tmp_path, model="model", out=(tmp_path / "out").relative_to(tmp_path))
    assert (tuning.absolute(given).model, tuning.absolute(given).out) == (str(tmp_path / "model"), tmp_path / "out")
    assert tuning.absolute(arguments(tmp_path, model="owner/name")).model == "owner/name"


def test_the_best_is_that_of_the_metric_and_failed_trials_are_none(tmp_path):
    given = arguments(tmp_path)
    found = [{"accuracy": 0.5, "loss": 2.0}, {}, {"accuracy": 0.9, "loss": 3.0}, {"accuracy": 0.9, "loss": 1.0}]
    trials = [Trial(given, {"seed": i}, metrics, "" if metrics else "broke") for i, metrics in enumerate(found)]
    assert best_of(trials[:3], "accuracy").values == {"seed": 2}
    assert best_of(trials, "accuracy").values == {"seed": 2}
    assert best_of(trials[:3], "loss").values == {"seed": 0}
    with pytest.raises(TrainingError, match="no trial has come to its end; the first says: broke"):
        best_of(trials[1:2], "loss")


def test_arguments_become_json(tmp_path):
    given = arguments(tmp_path, field=("text=title",))
    plain = json.loads(json.dumps(tuning.plain(given)))
    assert plain["out"] == str(tmp_path / "out")
    assert plain["train_data"] == [str(tmp_path / "train.jsonl")]
    assert (plain["field"], plain["learning_rate"], plain["max_steps"]) == (["text=title"], 5e-5, None)


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(MissingDependencyError, match=r"a search for arguments needs .*distilbert\[ray\]"):
        tuning.search(arguments(tmp_path), SPACE, trials=1)


def test_a_search_on_ray_finds_what_learns_and_goes_on_where_it_was(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "fine", "bad", "poor"]
    config = cases.CONFIG.replace(vocab_size=len(words))
    save_checkpoint(tmp_path / "model", "safetensors", "DistilBertModel", config, initial_weights(config))
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words) + "\n")
    for name, count in (("train", 64), ("eval", 8)):
        records = [{"text": "good fine", "label": "yes"}, {"text": "bad poor", "label": "no"}] * (count // 2)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = arguments(tmp_path, epochs=4, batch_size=8, max_grad_norm=0.0)
    space = {"learning_rate": [1e-9, 1e-2, 1e38]}
    found = tuning.search(given, space, trials=6, seed=1)
    assert found.metric == "accuracy"
    assert {trial.values["learning_rate"] for trial in found.trials} == {1e-9, 1e-2, 1e38}
    assert found.best.values == {"learning_rate": 1e-2}
    assert found.best.metrics["accuracy"] == 1.0
    assert all("not finite" in trial.error for trial in found.trials if trial.values["learning_rate"] == 1e38)
    written = json.loads((tmp_path / "out" / "search.json").read_text())
    assert written["trials"][written["best"]]["values"] == found.best.values
    model = found.best.arguments.out / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    assert tuning.search(given, space, trials=6, seed=1) == found
    assert model.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="cpus must be at most what Ray has"):
        tuning.search(given, space, trials=1, cpus=10_000)
