"""The data of a run: its tokenizer, its task, and the examples to train and to evaluate on, on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.opening import read_config
from distilbert.checkpoint.sentence_transformers import read_pooling
from distilbert.checkpoint.wanted import encoder_files
from distilbert.config import DistilBertConfig
from distilbert.progress import show_progress
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training.arguments import DistillationArguments, TrainingArguments
from distilbert.training.locks import locked
from distilbert.training.records import Faults, read_all
from distilbert.training.store import Store, prepare
from distilbert.training.tasks import TASKS, Task

EVALUATION_SEED = 0  # of masks: runs with the same batches and share of masks are measured on the same ones


class Data(NamedTuple):
    """What a run learns from and is measured on."""

    tokenizer: DistilBertTokenizerFast
    train: Store
    evaluation: Store | None

    @property
    def task(self) -> Task:
        """With what it has learned from the training data."""
        return self.train.task

    def close(self) -> None:
        """Close the files."""
        for store in (self.train, self.evaluation):
            if store is not None:
                store.close()


def load_data(arguments: TrainingArguments) -> Data:
    """Check and tokenize the files, or find what was made of them before, in the folder `data` of the run.

    Raises:
        DataError: an example cannot be used; file and line are named. ValueError: an argument does not fit the task.
    """
    folder = find_folder(arguments.model, encoder_files)
    tokenizer = DistilBertTokenizerFast.from_pretrained(folder)
    config = read_config(read_pooling(folder).encoder)
    task = TASKS[arguments.task](**_settings(arguments, tokenizer, config))
    place = arguments.out / "data"
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / ".lock", wait=True):  # processes of one run: one prepares, the others find what it made
        train = _store(arguments, place / "train", arguments.train_data, task)
        train.task = _weighted(train.task, arguments.class_weights)
        judged = _for_evaluation(train.task, arguments)
        evaluation = _store(arguments, place / "eval", arguments.eval_data, judged) if arguments.eval_data else None
    return Data(tokenizer, train, evaluation)


def _settings(
    arguments: TrainingArguments, tokenizer: DistilBertTokenizerFast, config: DistilBertConfig
) -> dict[str, Any]:
    """The arguments of the task's class."""
    distil = isinstance(arguments, DistillationArguments)
    limits = (tokenizer.model_max_length, config.max_position_embeddings)
    longest = min(limit for limit in limits if limit is not None)
    if arguments.max_length is not None and arguments.max_length > longest:
        raise ValueError(f"max_length must be at most the model's {longest}, got {arguments.max_length}.")
    default = TASKS[arguments.task].LONGEST
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_length": arguments.max_length or min(default, longest),
        "fields": arguments.columns,
        "distil": distil,
    }
    return settings | _of_task(arguments, config, distil=distil)


def _of_task(arguments: TrainingArguments, config: DistilBertConfig, *, distil: bool) -> dict[str, Any]:
    labels = None if arguments.labels is None else tuple(name.strip() for name in arguments.labels.split(","))
    match arguments.task:
        case "text-classification":
            kind = arguments.problem_type
            if distil:  # the teacher says what its classes are
                labels = tuple(config.id2label.values())
                kind = (
                    kind or config.problem_type or ("regression" if len(labels) == 1 else "single_label_classification")
                )
            return {"labels": labels, "problem_type": kind}
        case "token-classification":
            return {"labels": tuple(config.id2label.values()) if distil else labels}
        case "question-answering":
            return {"stride": arguments.stride}
        case "masked-lm":
            where = arguments.logit_positions if isinstance(arguments, DistillationArguments) else "masked"
            masking = {"probability": arguments.mask_probability, "smoothing": arguments.mask_smoothing}
            return {"seed": arguments.seed, "min_length": arguments.min_length, "logit_positions": where, **masking}
        case "sentence-embedding":
            return _pairs(arguments, distil=distil)
        case _:
            return {}


def _pairs(arguments: TrainingArguments, *, distil: bool) -> dict[str, bool]:
    """What the first record shows: whether there are pairs, and whether these have scores."""
    first = next(read_all(arguments.train_data, Faults(arguments.on_error)), None)
    names = set[str]() if first is None else {*first.values}
    column = {name: arguments.columns.get(name, name) for name in ("positive", "score")}
    return {"paired": not distil or column["positive"] in names, "scored": not distil and column["score"] in names}


def _store(arguments: TrainingArguments, folder: Path, paths: Sequence[Path], task: Task) -> Store:
    with show_progress("Reading") as advance:
        return prepare(folder, paths, task, on_error=arguments.on_error, rebuild=True, advance=advance)


def _weighted(task: Task, text: str | None) -> Task:
    """The task with class weights, which are given by the names of its labels."""
    if text is None:
        return task
    if text == "balanced":
        return dataclasses.replace(task, class_weights=text)  # pyright: ignore[reportCallIssue]
    names = [*task.config_changes["id2label"].values()]
    try:
        pairs = [entry.rsplit("=", 1) for entry in text.split(",")]
        weights = {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        pairs, weights = [], dict[str, float]()
    if not weights or len(weights) < len(pairs) or not {*weights} <= {*names}:
        raise ValueError(
            f"class_weights must be balanced, or LABEL=NUMBER for some of {', '.join(names)}, got {text!r}."
        )
    return dataclasses.replace(task, class_weights=[weights.get(name, 1.0) for name in names])  # pyright: ignore[reportCallIssue]


def _for_evaluation(task: Task, arguments: TrainingArguments) -> Task:
    """The task as it measures: with labels, without weights of classes, on masks that are the same for all runs."""
    changes: dict[str, Any] = {"evaluation": True, "distil": False}
    match arguments.task:
        case "text-classification" | "token-classification":
            changes["class_weights"] = None
        case "masked-lm":
            changes |= {"seed": EVALUATION_SEED, "logit_positions": "masked"}
        case "sentence-embedding":
            changes["paired"] = True
        case _:
            pass
    return dataclasses.replace(task, **changes)
