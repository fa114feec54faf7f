"""What a run is told: one declaration for the command line and for Python, with the same defaults in every backend."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbert.backends import BACKENDS
from distilbert.training.records import OnError
from distilbert.training.schedule import SCHEDULES
from distilbert.training.trainer import PRECISIONS

TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "masked-lm",
    "sentence-embedding",
)
POLICIES = ("stop", "skip")
LOGIT_POSITIONS = ("masked", "all")
MOST = 64  # threads, or devices, of a process; threads also four for each processor
INITIAL = ("teacher", "random")
WITH_LABELS = ("text-classification", "token-classification")


def option(default: Any, text: str, *, tasks: tuple[str, ...] = TASKS, needs: str | None = None) -> Any:
    """A field: the text that `--help` shows, the tasks in which it acts, and the field without which it does not."""
    return dataclasses.field(default=default, metadata={"help": text, "tasks": tasks, "needs": needs})


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """Everything that `train` is told.

    Raises:
        ValueError: a value is outside what its help text says.
    """

    model: str = dataclasses.field(metadata={"help": "Folder or hub id of the checkpoint to start from."})
    task: str = dataclasses.field(metadata={"help": f"One of {', '.join(TASKS)}."})
    train_data: tuple[Path, ...] = dataclasses.field(
        metadata={"help": "File of examples: .jsonl, .csv, .parquet, .txt."}
    )
    out: Path = dataclasses.field(metadata={"help": "Folder of the run; a run that was broken off goes on from there."})
    eval_data: tuple[Path, ...] = option((), "File of examples to evaluate on.")
    backend: str | None = option(None, f"One of {', '.join(BACKENDS)}; default the first that is installed.")
    field: tuple[str, ...] = option((), "Where a field of the task is found: FIELD=COLUMN, such as text=title.")
    labels: str | None = option(
        None, "Names of the labels, joined by commas; default what the data shows, sorted.", tasks=WITH_LABELS
    )
    problem_type: str | None = option(
        None,
        "single_label_classification, multi_label_classification or regression; default what the data shows.",
        tasks=("text-classification",),
    )
    class_weights: str | None = option(None, '"balanced", or LABEL=WEIGHT joined by commas.', tasks=WITH_LABELS)
    on_error: OnError = option("stop", "What a bad example does: stop, or skip, which counts it.")
    max_length: int | None = option(None, "The most tokens of an example; default 384 for questions, else 512.")
    stride: int = option(
        128, "Tokens that two windows of one context share, in question answering.", tasks=("question-answering",)
    )
    batch_size: int = option(32, "The most examples of a batch.")
    token_budget: int | None = option(None, "The most tokens of a batch, padding included.")
    accumulation: int = option(1, "Batches of a step.")
    group_by_length: bool = option(True, "Put texts of like length together, so that little is padding.")
    epochs: float = option(3.0, "How often all examples are taken.")
    max_steps: int | None = option(None, "End after that many steps.")
    learning_rate: float = option(5e-5, "Its peak.")
    warmup: float = option(0.05, "Part of the steps in which the learning rate rises.")
    schedule: str = option("linear", "What follows: linear (a fall towards 0) or constant.")
    weight_decay: float = option(0.01, "Of the kernels; biases, norms and embeddings do not decay.")
    beta_1: float = option(0.9, "Of AdamW.")
    beta_2: float = option(0.999, "Of AdamW.")
    eps: float = option(1e-8, "Of AdamW.")
    max_grad_norm: float = option(1.0, "Gradients of a larger norm are scaled down to it; 0 for any norm.")
    dropout: float | None = option(None, "Every dropout of the model; default what its config says.")
    min_length: int = option(
        12, "The fewest tokens of a text, or of its last part, that masked LM learns from.", tasks=("masked-lm",)
    )
    mask_probability: float = option(0.15, "Part of the tokens that masked LM predicts.", tasks=("masked-lm",))
    mask_smoothing: float = option(
        0.7, "How much more often rare tokens are masked; 0 for all alike.", tasks=("masked-lm",)
    )
    precision: str = option("float32", f"Of the model's compute: {', '.join(PRECISIONS)}.")
    gradient_checkpointing: bool = option(False, "Compute each layer twice and keep less in memory.")
    seed: int = option(0, "Of order, masks, dropout and new weights.")
    threads: int | None = option(None, "Of the processor; default its cores.")
    devices: int | None = option(
        None, "Of this process; default one processor, or all accelerators, of which PyTorch takes one."
    )
    eval_every: int | None = option(None, "Steps between two evaluations; default an epoch.", needs="eval_data")
    save_every: int = option(500, "Steps between two checkpoints.")
    keep: int = option(2, "How many checkpoints stay.")
    patience: int | None = option(None, "End after that many evaluations without a better one.", needs="eval_data")
    metric: str | None = option(None, "What decides which evaluation is better; default the task's.", needs="eval_data")
    skip_nonfinite: bool = option(False, "Leave out steps whose loss is not finite, rather than stop.")
    allow_changed: tuple[str, ...] = option((), "Go on although this differs from the broken-off run, such as threads.")

    def __post_init__(self) -> None:
        self._make_paths()
        self._check_types()
        self._check_choices()
        self._check_numbers()
        self._check_use()
        if not self.train_data:
            raise ValueError("train_data must name at least one file.")
        for entry in self.field:
            if entry.count("=") != 1 or not all(entry.split("=")):
                raise ValueError(f"field must be FIELD=COLUMN, such as text=title, got {entry!r}.")
        if len(self.columns) < len(self.field):
            raise ValueError(f"field must name each field once, got {', '.join(self.field)}.")

    def _check_types(self) -> None:
        """Refuse None, texts and truth values where the command line could not give them."""
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if value is None and type(None) not in kinds:
                raise ValueError(f"{name} must be given, got None.")
            for kind, text in ((str, "a text"), (bool, "True or False")):
                if kind in kinds and not isinstance(value, (kind, types.NoneType)):
                    raise ValueError(f"{name} must be {text}, got {value!r}.")

    def _make_paths(self) -> None:
        """Take texts for paths, and one for several; a model may be named by a path."""
        object.__setattr__(self, "model", os.fspath(self.model))
        for name in ("train_data", "eval_data"):
            given = getattr(self, name)
            paths = (given,) if isinstance(given, str | Path) else given
            object.__setattr__(self, name, tuple(map(Path, paths)))
        object.__setattr__(self, "out", Path(self.out))

    def _check_choices(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "task": TASKS,
            "on_error": POLICIES,
            "schedule": SCHEDULES,
            "precision": PRECISIONS,
        }
        if self.backend is not None:
            choices["backend"] = tuple(BACKENDS)
        for name, allowed in choices.items():
            check_choice(name, getattr(self, name), allowed)

    def _check_numbers(self) -> None:
        counts = ("min_length", "max_length", "batch_size", "token_budget", "accumulation", "max_steps")
        for name in (*counts, "eval_every", "save_every", "keep", "patience"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("threads", self.threads, 1, max(MOST, 4 * (os.cpu_count() or 1)), whole=True)
        check_number("devices", self.devices, 1, MOST, whole=True)
        check_number("seed", self.seed, 0, 2**32 - 1, whole=True)
        check_number("stride", self.stride, 0, whole=True)
        for name in ("epochs", "learning_rate", "eps"):
            check_number(name, getattr(self, name), 0, above=True)
        for name in ("weight_decay", "max_grad_norm"):
            check_number(name, getattr(self, name), 0)
        check_number("mask_smoothing", self.mask_smoothing, 0, 10)
        check_number("warmup", self.warmup, 0, 1)
        check_number("dropout", self.dropout, 0, below=1)
        check_number("mask_probability", self.mask_probability, 0, 1, above=True)
        for name in ("beta_1", "beta_2"):
            check_number(name, getattr(self, name), 0, below=1)

    def _check_use(self) -> None:
        """Refuse what would act on nothing."""
        for field in dataclasses.fields(self):
            name, tasks, needs = field.name, field.metadata.get("tasks", TASKS), field.metadata.get("needs")
            if getattr(self, name) == field.default:
                continue
            if self.task not in tasks:
                raise ValueError(f"{name} is for {' and '.join(tasks)}: leave it out for {self.task}.")
            if needs and not getattr(self, needs):
                raise ValueError(f"{name} needs {needs}, which is not given.")

    @property
    def columns(self) -> Mapping[str, str]:
        """Where the task's fields are found, for those that have another name."""
        return dict(entry.split("=") for entry in self.field)


@dataclass(frozen=True, kw_only=True)
class DistillationArguments(TrainingArguments):
    """Everything that `distill` is told: `model` is the teacher."""

    model: str = dataclasses.field(metadata={"help": "Folder or hub id of the teacher, a BERT or a DistilBERT."})
    student: str | None = option(None, "Folder or hub id of a student to start from; default layers of the teacher.")
    layers: str | None = option(
        None,
        "Layers of the teacher that the student keeps, such as 0,2,4,7,9,11, the default for 12; else every second.",
    )
    student_init: str = option("teacher", "Weights to start from: the teacher's, or random.")
    temperature: float = option(2.0, "At which distributions are compared.")
    alpha_kl: float | None = option(
        None,
        "Weight of the divergence from the teacher; default 5 for masked LM, 0 for numbers and embeddings, else 0.5.",
    )
    alpha_task: float | None = option(
        None, "Weight of the loss against the labels; default 2 for masked LM, 0 for embeddings, else 0.5."
    )
    alpha_cos: float | None = option(
        None,
        "Weight of the cosine loss of hidden states or embeddings; default 1 for masked LM and embeddings, else 0.",
    )
    alpha_mse: float | None = option(
        None, "Weight of the squared error of logits or embeddings; default 0.5 for regression, else 0."
    )
    logit_positions: str = option(
        "masked", "Where masked LM compares distributions: masked tokens, or all.", tasks=("masked-lm",)
    )
    teacher_cache: Path | None = option(None, "Folder that keeps the teacher's outputs for further runs.")
    cache_top_k: int = option(64, "How many logits of a distribution are kept there.", needs="teacher_cache")

    def _make_paths(self) -> None:
        super()._make_paths()
        if self.student is not None:
            object.__setattr__(self, "student", os.fspath(self.student))
        if self.teacher_cache is not None:
            object.__setattr__(self, "teacher_cache", Path(self.teacher_cache))

    def _check_choices(self) -> None:
        super()._check_choices()
        check_choice("logit_positions", self.logit_positions, LOGIT_POSITIONS)
        check_choice("student_init", self.student_init, INITIAL)

    def _check_numbers(self) -> None:
        super()._check_numbers()
        check_number("temperature", self.temperature, 0, above=True)
        check_number("cache_top_k", self.cache_top_k, 1, whole=True)
        for name in ("alpha_kl", "alpha_task", "alpha_cos", "alpha_mse"):
            check_number(name, getattr(self, name), 0)

    def _check_use(self) -> None:
        super()._check_use()
        if self.labels is not None:
            raise ValueError("labels are those of the teacher: leave them out.")
        if self.student is not None and (self.layers is not None or self.student_init != "teacher"):
            raise ValueError("layers and student_init make a student of the teacher: leave them out, or student.")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of `allowed`.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def check_number(
    name: str,
    value: Any,
    least: float,
    most: float = math.inf,
    *,
    above: bool = False,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Refuse a number outside its range; None is no number, and passes.

    Raises:
        ValueError: it is, or it is not a number, or not a whole one.
    """
    if value is None:
        return
    kinds = int if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if fits and least <= value <= most and value < below and not (above and value == least):
        return
    kind = "a whole number" if whole else "a number"
    lower = f"above {least}" if above else f"of at least {least}"
    upper = f" and below {below}" if below < math.inf else f" and at most {most}" if most < math.inf else ""
    raise ValueError(f"{name} must be {kind} {lower}{upper}, got {value!r}.")
