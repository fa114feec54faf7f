"""Search for arguments that make training end better, on Ray Tune: many runs, each in a folder of its own.

out/
  trials/0000/    a run, as training leaves it
  search.json     what was tried, what came of it, and the arguments of the best
  ray/            what Ray Tune writes of its own

What is tried is drawn before, from the seed alone, and finished runs are not repeated: a search that was broken off
goes on where it is started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.checkpoint import safely
from distilbert.errors import TrainingError
from distilbert.optional import require
from distilbert.processors import recommended_threads
from distilbert.training import logs, run
from distilbert.training.arguments import DistillationArguments, TrainingArguments, check_number
from distilbert.training.data import load_data
from distilbert.training.evaluation import LESS_IS_BETTER, deciding_metric
from distilbert.training.metrics import Metrics
from distilbert.training.randomness import generator

RESULT, TRIALS, RAY = "search.json", "trials", "ray"
FIXED = ("out", "train_data", "eval_data", "task", "metric", "threads")  # arguments that trials share

Space = Mapping[str, Any]
Values = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A run of a search.

    values: what it was told otherwise than the other runs. metrics: of the evaluation whose model it kept; {} where
    it failed, and `error` says why.
    """

    arguments: TrainingArguments
    values: Values
    metrics: Metrics
    error: str = ""


@dataclass(frozen=True)
class Search:
    """What was found: the metric that decided, the trials in the order in which they were drawn, and the best."""

    metric: str
    trials: Sequence[Trial]
    best: Trial


def search(
    arguments: TrainingArguments,
    space: Space,
    *,
    trials: int,
    metric: str | None = None,
    cpus: int | None = None,
    gpus: float = 0.0,
    at_once: int | None = None,
    seed: int = 0,
) -> Search:
    """Train with arguments drawn from a space, and find those whose model is best.

    Args:
        arguments: of every trial, but for what the space draws; those of `distill` are distilled with. `out` is the
            folder of the search.
        space: by the name of an argument what it may be: a list, of which each is as likely, or a distribution of
            Ray Tune such as `tune.loguniform(1e-5, 1e-3)`.
        trials: how many.
        metric: what decides; default as in training.
        cpus: processors, and threads, of a trial; default all.
        gpus: of a trial.
        at_once: trials at a time at most; default as many as the processors allow.
        seed: of what is drawn.

    Returns:
        The search. The best trial's arguments name its folder: there is its model, and training with them again ends
        at once.

    Raises:
        ValueError: the space has an argument that there is not, or a value that it cannot have; Ray has fewer
            processors than a trial needs.
        TrainingError: no trial has come to its end.
        MissingDependencyError: Ray Tune is not installed.
    """
    _ray_tune()
    check_number("trials", trials, 1, whole=True)
    check_space(arguments, space)
    with contextlib.closing(load_data(arguments)) as data:
        metric = deciding_metric(data.task, metric or arguments.metric)
    threads = cpus or arguments.threads or recommended_threads()
    shared = dataclasses.replace(absolute(arguments), metric=metric, threads=threads)
    points = [draw(space, seed, number) for number in range(trials)]
    candidates = [told(shared, values, number) for number, values in enumerate(points)]
    errors = _try_all(candidates, threads, gpus, at_once, shared.out)
    pairs = enumerate(zip(candidates, points, strict=True))
    done = [_trial(candidate, values, errors.get(number, "")) for number, (candidate, values) in pairs]
    return _written(shared.out, Search(metric, done, best_of(done, metric)))


def check_space(arguments: TrainingArguments, space: Space) -> None:
    """Refuse a space that no search can draw from, and arguments that give nothing to decide by.

    Raises:
        ValueError: that is so.
    """
    if not arguments.eval_data:
        raise ValueError("a search needs eval_data: without evaluations no trial is better than another.")
    names = [field.name for field in dataclasses.fields(arguments) if field.name not in FIXED]
    for name, values in space.items():
        if name not in names:
            raise ValueError(f"the space must hold arguments that may differ, {', '.join(names)}; got {name!r}.")
        if not (hasattr(values, "sample") or (isinstance(values, list | tuple) and values)):
            raise ValueError(f"{name} must be a list of values or a distribution of Ray Tune, got {values!r}.")


def draw(space: Space, seed: int, number: int) -> Values:
    """The values of a trial by its number."""
    random = generator(seed, "search", number)
    return {name: _drawn(space[name], random) for name in sorted(space)}


def _drawn(values: Any, random: np.random.RandomState) -> Any:
    return values.sample(random_state=random) if hasattr(values, "sample") else values[random.randint(len(values))]


def told(arguments: TrainingArguments, values: Values, number: int) -> TrainingArguments:
    """The arguments of a trial.

    Raises:
        ValueError: an argument cannot have its value.
    """
    return dataclasses.replace(arguments, out=arguments.out / TRIALS / f"{number:04d}", **values)


def absolute(arguments: TrainingArguments) -> TrainingArguments:
    """The arguments for processes that work in other folders."""
    data = {name: tuple(path.absolute() for path in getattr(arguments, name)) for name in ("train_data", "eval_data")}
    model = Path(arguments.model)
    name = str(model.absolute()) if model.exists() else arguments.model
    return dataclasses.replace(arguments, model=name, out=arguments.out.absolute(), **data)


def best_of(trials: Sequence[Trial], metric: str) -> Trial:
    """The trial whose model is best by the metric, of equal ones the first.

    Raises:
        TrainingError: none has come to its end.
    """
    ended = [trial for trial in trials if trial.metrics]
    if not ended:
        raise TrainingError(f"no trial has come to its end; the first says: {trials[0].error}")
    choose = min if metric in LESS_IS_BETTER else max
    return choose(ended, key=lambda trial: trial.metrics[metric])


def _try_all(
    candidates: Sequence[TrainingArguments], cpus: int, gpus: float, at_once: int | None, folder: Path
) -> dict[int, str]:
    """Run the trials; what broke those that failed, by their numbers."""
    tune = _ray_tune()
    with _ray(cpus, gpus):
        results = tune.Tuner(
            tune.with_resources(functools.partial(_train, candidates), {"cpu": cpus, "gpu": gpus}),
            param_space={"trial": tune.grid_search(list(range(len(candidates))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name=RAY, storage_path=str(folder), verbose=0, callbacks=[tune.logger.JsonLoggerCallback()]
            ),
        ).fit()
    return {result.config["trial"]: _last_line(result.error) for result in results if result.error is not None}


def _train(candidates: Sequence[TrainingArguments], point: Mapping[str, Any]) -> None:
    """A trial, in a process of Ray."""
    tune, arguments = _ray_tune(), candidates[point["trial"]]
    if isinstance(arguments, DistillationArguments):
        run.distill(arguments)
    else:
        run.train(arguments)
    for line in logs.read(arguments.out / logs.NAME):
        if "evaluation" in line:
            tune.report({**line["evaluation"], "step": line["step"]})


def _trial(arguments: TrainingArguments, values: Values, error: str) -> Trial:
    """What came of a trial."""
    metrics = {} if error else safely.read_json(arguments.out / run.REPORT_FILE)["metrics"]
    return Trial(arguments, values, metrics, error)


def _written(folder: Path, found: Search) -> Search:
    """The search, once its file is there."""
    trials = [{"values": trial.values, "metrics": trial.metrics, "error": trial.error} for trial in found.trials]
    best = {"best": found.trials.index(found.best), "arguments": plain(found.best.arguments)}
    safely.write_json(folder / RESULT, {"metric": found.metric, **best, "trials": trials})
    return found


def plain(arguments: TrainingArguments) -> dict[str, Any]:
    """Arguments as JSON holds them: paths are texts."""
    values = dataclasses.asdict(arguments)
    return {name: str(value) if isinstance(value, Path) else _texts(value) for name, value in values.items()}


def _texts(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, tuple) else value


def _ray_tune() -> Any:
    """Ray Tune, which then neither tells its makers of its use nor loads PyTorch to write event files."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    return require("ray.tune", extra="ray", needed_for="a search for arguments")


@contextlib.contextmanager
def _ray(cpus: int, gpus: float) -> Generator[None]:
    """A Ray that runs and can hold a trial: the user's, or one that is ended afterwards."""
    ray = require("ray", extra="ray", needed_for="a search for arguments")
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
            stack.callback(ray.shutdown)
        there = ray.cluster_resources()
        for name, needed, found in (("cpus", cpus, there.get("CPU", 0)), ("gpus", gpus, there.get("GPU", 0))):
            if needed > found:
                raise ValueError(f"{name} must be at most what Ray has, {found:g}, got {needed:g}.")
        yield


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
