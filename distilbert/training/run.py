"""One run, from arguments to a trained model: fine-tuning and distillation, on any backend.

out/
  model/          what was trained: the best by evaluation, or without evaluations the last
  checkpoints/    from which the run goes on if it is broken off
  data/           the examples as token ids
  log.jsonl       the numbers of every step and evaluation; tensorboard/ and curves.svg show them
  report.json     what the run did, and how fast
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from distilbert import __version__
from distilbert.backends import first_installed, load_backend
from distilbert.checkpoint import manifest, safely
from distilbert.checkpoint.folder import weight_files
from distilbert.checkpoint.publishing import updated_folder
from distilbert.checkpoint.saving import write_checkpoint
from distilbert.checkpoint.sentence_transformers import module_files
from distilbert.config import CONFIG_FILE
from distilbert.errors import CheckpointError, MissingDependencyError, TrainingError
from distilbert.processors import recommended_threads
from distilbert.progress import show_progress
from distilbert.tokenization.files import TokenizerContent
from distilbert.tokenization.writing import write_files
from distilbert.training import curves, logs
from distilbert.training.arguments import DistillationArguments, TrainingArguments
from distilbert.training.batches import Batch, normalized
from distilbert.training.checkpoints import Checkpoints
from distilbert.training.data import Data, load_data
from distilbert.training.evaluation import check_installed, deciding_metric, evaluate
from distilbert.training.locks import locked
from distilbert.training.logs import Log
from distilbert.training.loop import Loop, Recorder, Schedule
from distilbert.training.metrics import Metrics
from distilbert.training.models import load_model, load_teacher, make_student
from distilbert.training.objective import Objective
from distilbert.training.planning import Plan
from distilbert.training.report import Report, hint
from distilbert.training.resuming import (
    CHECKPOINTS,
    CURVES_FILE,
    MODEL,
    REPORT_FILE,
    Identity,
    changed,
    check_folder,
    count_attempt,
)
from distilbert.training.schedule import learning_rate
from distilbert.training.store import Store
from distilbert.training.tasks import SentenceEmbedding
from distilbert.training.teacher_cache import TaughtTrainer, TeacherCache, check_cacheable
from distilbert.training.trainer import Optimization, Session, Trainer

FORMAT = "safetensors"  # of the model
PACKAGES = {"pt": "torch", "tf": "tensorflow", "flax": "jax"}

# Arguments that change no number of a run, or are told apart by what they hold and not by their names.
NOT_COMPARED = (
    "model", "train_data", "eval_data", "out", "threads", "devices", "save_every", "keep", "allow_changed", "student",
    "teacher_cache",
)  # fmt: skip

# The weights of a distillation's losses, where they are not those of the other tasks: task, kl, cos, mse.
ALPHAS = {
    "masked_lm": (2.0, 5.0, 1.0, 0.0),
    "sentence_embedding": (0.0, 0.0, 1.0, 0.0),
    "regression": (0.5, 0.0, 0.0, 0.5),
}


class Models(NamedTuple):
    """What is trained, for what, and against whom."""

    model: Any
    objective: Objective
    teacher: Any = None


def train(arguments: TrainingArguments) -> Report:
    """Fine-tune a checkpoint on a task, or go on with a run that was broken off.

    Raises:
        DataError: an example cannot be used. CheckpointError, ConfigError, TokenizerError: the checkpoint cannot.
        TrainingError: the loss is not finite, or the folder holds another run. ValueError: an argument is wrong.
    """
    return _run(arguments, _fine_tuning)


def distill(arguments: DistillationArguments) -> Report:
    """Train a student against a teacher, or go on with a run that was broken off.

    Raises:
        as `train`; ValueError also where student and teacher cannot be compared.
    """
    return _run(arguments, _distillation)


def _fine_tuning(arguments: TrainingArguments, backend: str, data: Data) -> Models:
    objective = Objective(data.task.problem)
    return Models(load_model(arguments, backend, objective.head, data.task.config_changes), objective)


def _distillation(arguments: Any, backend: str, data: Data) -> Models:
    problem = data.task.problem
    given = (arguments.alpha_task, arguments.alpha_kl, arguments.alpha_cos, arguments.alpha_mse)
    defaults = ALPHAS.get(problem, (0.5, 0.5, 0.0, 0.0))
    alphas = (default if one is None else one for one, default in zip(given, defaults, strict=True))
    objective = Objective(problem, *alphas, temperature=arguments.temperature)
    if objective.alpha_task and isinstance(data.task, SentenceEmbedding) and not data.task.paired:
        raise ValueError("alpha_task needs pairs, but the first example has no 'positive': leave out alpha_task.")
    teacher = load_teacher(arguments, backend, objective.head)
    student = make_student(arguments, backend, objective, teacher, data)
    return Models(student, objective, teacher if objective.needs_teacher else None)


def _run(arguments: Any, make: Callable[[Any, str, Data], Models]) -> Report:
    backend = arguments.backend or first_installed()
    training = importlib.import_module(f"{load_backend(backend).__name__}.training")
    threads = arguments.threads or recommended_threads()
    with contextlib.ExitStack() as stack:
        session: Session = stack.enter_context(training.session(threads=threads, devices=arguments.devices))
        check_folder(arguments.out)
        if session.rank == 0:
            stack.enter_context(locked(arguments.out / ".lock"))
        data = stack.enter_context(contextlib.closing(load_data(arguments)))
        metric = deciding_metric(data.task, arguments.metric)
        if data.evaluation is not None:
            check_installed(data.task)
        models = make(arguments, backend, data)
        trainer = training.trainer(models.model, models.objective, _optimization(arguments), models.teacher)
        place = {"backend": backend, "threads": threads, "devices": session.devices, "kind": session.kind}
        identity = _identity(arguments, data, models, trainer, place)
        return _Run(arguments, data, models, trainer, session, identity, metric).go()


def _optimization(arguments: TrainingArguments) -> Optimization:
    return Optimization(
        betas=(float(arguments.beta_1), float(arguments.beta_2)),
        eps=arguments.eps,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm or None,
        precision=arguments.precision,
        gradient_checkpointing=arguments.gradient_checkpointing,
        seed=arguments.seed,
    )


def _identity(arguments: Any, data: Data, models: Models, trainer: Trainer, place: Identity) -> dict[str, Any]:
    """Everything that the numbers of a run depend on."""
    given = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in NOT_COMPARED}
    package = PACKAGES[place["backend"]]
    return {
        **given,
        **place,
        "teacher_cache": getattr(arguments, "teacher_cache", None) is not None,  # whose numbers are rounded
        "train_data": data.train.fingerprint,
        "eval_data": None if data.evaluation is None else data.evaluation.fingerprint,
        "config": json.loads(json.dumps(models.model.config.to_dict())),
        "weights": digest(trainer.weights()),
        "teacher": None if models.teacher is None else digest(models.teacher.weights_by_name()),
        "version": __version__.split(".")[0],
        "framework": f"{package} {sys.modules[package].__version__}",
    }


def digest(weights: Mapping[str, NDArray[Any]]) -> str:
    """Of weights by name, as sha256."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + weights[name].tobytes())
    return found.hexdigest()


class _Run:
    """A run whose parts are all there."""

    def __init__(
        self,
        arguments: Any,
        data: Data,
        models: Models,
        trainer: Trainer,
        session: Session,
        identity: dict[str, Any],
        metric: str,
    ) -> None:
        self.arguments, self.data, self.models, self.session, self.metric = arguments, data, models, session, metric
        self.identity, self.out = identity, Path(arguments.out)
        self.writes = session.rank == 0
        self.trainer = self._taught(trainer)
        self.plan = Plan(
            data.train.lengths, seed=arguments.seed, batch_size=arguments.batch_size, epochs=arguments.epochs,
            max_steps=arguments.max_steps, token_budget=arguments.token_budget, accumulation=arguments.accumulation,
            group_by_length=arguments.group_by_length,
        )  # fmt: skip

    def go(self) -> Report:
        """Go on from where the run stands to its end."""
        checkpoints = Checkpoints(self.out / CHECKPOINTS, self.arguments.keep, self.identity)
        saved = checkpoints.newest()
        start, progress, allowed = 0, None, list[str]()
        if saved is not None:
            allowed = changed(saved.identity, self.identity, self.arguments.allow_changed)
            self.trainer.restore(saved.arrays)
            start, progress = saved.step, saved.progress
            if progress["done"] and not allowed and (self.out / REPORT_FILE).exists():
                return self._former_report()
            progress = {**progress, "done": progress["done"] and not allowed}  # it may end later now
        if self.writes:
            count_attempt(self.out, start)
        began = time.monotonic()
        with self._log(start, allowed) as log, show_progress("Training") as advance:
            loop = Loop(
                self.trainer,
                self._batches,
                self._schedule(),
                log,
                checkpoints=checkpoints if self.writes else None,
                evaluate=None
                if self.data.evaluation is None
                else functools.partial(self._evaluate, self.data.evaluation),
                publish=self._publish,
                advance=advance,
            )
            step = loop.run(start, progress)
        return self._finish(
            loop, step, loop.progress.tokens - (progress or {}).get("tokens", 0), time.monotonic() - began
        )

    def _former_report(self) -> Report:
        """What a run that is done has reported."""
        model = self.out / MODEL
        try:
            manifest.read_whole(model, functools.partial(safely.read_json, model / CONFIG_FILE))
        except (CheckpointError, OSError) as error:
            raise TrainingError(
                f"{model}: the run is done, but its model is gone or damaged; remove {CHECKPOINTS} beside it to "
                f"train it again: {error}"
            ) from None
        return Report(**safely.read_json(self.out / REPORT_FILE))

    def _log(self, start: int, allowed: list[str]) -> Any:
        if not self.writes:
            return contextlib.nullcontext(Silent())
        log = Log(self.out, resume_from_step=start or None)
        for line in allowed:
            log.event(start, {"changed": line})
        return log

    def _schedule(self) -> Schedule:
        given, total = self.arguments, self.plan.total_steps
        ends = {*self.plan.epoch_ends}
        every = given.eval_every
        return Schedule(
            total_steps=total,
            learning_rate=lambda step: learning_rate(
                step, peak=given.learning_rate, warmup_steps=round(given.warmup * total), total_steps=total,
                schedule=given.schedule,
            ),
            save_every=given.save_every,
            evaluate_after=lambda step: step == total or (step in ends if every is None else step % every == 0),
            metric=self.metric,
            patience=given.patience,
            skip_nonfinite=given.skip_nonfinite,
        )  # fmt: skip

    def _batches(self, step: int) -> list[Batch]:
        store, multiple = self.data.train, self.trainer.length_multiple
        batches = (
            store.task.collate(store.examples(indices), step=step, micro=micro, length_multiple=multiple)
            for micro, indices in enumerate(self.plan.batches(step))
        )
        return normalized([dataclasses.replace(batch, full=self.plan.full) for batch in batches])

    def _evaluate(self, store: Store) -> Metrics:
        size, budget = self.arguments.batch_size, self.arguments.token_budget
        return evaluate(self.trainer, store, batch_size=size, token_budget=budget)

    def _taught(self, trainer: Trainer) -> Trainer:
        """The trainer, which takes its teacher's outputs from a cache if the user wants one."""
        folder = getattr(self.arguments, "teacher_cache", None)
        if folder is None or self.models.teacher is None:
            return trainer
        names = ("teacher", "train_data", "seed", "batch_size", "token_budget", "accumulation", "group_by_length",
                 "mask_probability", "mask_smoothing", "logit_positions", "precision")  # fmt: skip
        objective = self.models.objective
        check_cacheable(objective, self.models.model.config.vocab_size, self.arguments.cache_top_k)
        identity = {
            **{name: self.identity[name] for name in names},
            "logits": bool(objective.alpha_kl or objective.alpha_mse),
            "hidden": bool(objective.alpha_cos),
            "length_multiple": trainer.length_multiple,
        }
        cache = TeacherCache(
            folder, identity, top_k=self.arguments.cache_top_k, temperature=self.models.objective.temperature
        )
        return cast("Trainer", TaughtTrainer(trainer, cache, writes=self.writes))

    def _publish(self) -> None:
        """Put the model as it is, with its tokenizer, into the folder `model`."""
        weights = self.trainer.weights()  # on every process: they may have to work together
        if not self.writes:
            return
        folder, model, tokenizer = self.out / MODEL, self.models.model, self.data.tokenizer
        pooling = getattr(getattr(model, "pooling", None), "config", None)
        with updated_folder(folder, weight_files(folder, FORMAT) | module_files(folder)) as place:
            write_checkpoint(place, FORMAT, type(model).__name__, model.config, weights, pooling)
            write_files(TokenizerContent(tokenizer.vocabulary, tokenizer.added_tokens, tokenizer.options), place)

    def _finish(self, loop: Loop, step: int, tokens: int, seconds: float) -> Report:
        lines = logs.read(self.out / logs.NAME) if self.writes else []
        stores = (self.data.train, self.data.evaluation)
        skipped, first = zip(
            *(({}, []) if one is None else (one.skipped, one.first_faults) for one in stores), strict=True
        )
        judged = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
        report = Report(
            folder=str(self.out / MODEL),
            head=type(self.models.model).__name__,
            backend=self.identity["backend"],
            steps=step,
            tokens=tokens,
            seconds=round(seconds, 3),
            best_step=loop.progress.best_step,
            metrics=judged.get(loop.progress.best_step, {}),
            skipped_examples=skipped[0],
            skipped_evaluation=skipped[1],
            first_faults=[fault for faults in first for fault in faults],
            skipped_steps=loop.progress.skipped_steps,
            rank=self.session.rank,
            hint=hint([line["loss"] for line in lines if "loss" in line]),
        )
        if self.writes:
            safely.write_json(self.out / REPORT_FILE, report.to_dict())
            self._draw()
        return report

    def _draw(self) -> None:
        try:
            curves.plot({self.out.resolve().name: self.out / logs.NAME}, self.out / CURVES_FILE)
        except MissingDependencyError as error:
            warnings.warn(f"There is no {CURVES_FILE}: {error}", stacklevel=2)


class Silent(Recorder):
    """Takes down nothing, on a process that writes no files."""

    def step(self, step: int, values: Mapping[str, float], *, tokens_per_second: float | None = None) -> None:  # noqa: D102
        pass

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        pass

    def sync(self) -> None:  # noqa: D102
        pass
