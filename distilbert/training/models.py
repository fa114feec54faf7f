"""The models of a run: one to train, and its teacher, if it has one. Their initial weights are equal in every backend.

Source of the student's layers: Sanh et al. 2019, arXiv 1910.01108, section 3; which of twelve: their released models.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilbert.backends import load_backend
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.opening import open_checkpoint, read_config
from distilbert.checkpoint.sentence_transformers import read_pooling
from distilbert.checkpoint.student import Student, parse_layers
from distilbert.checkpoint.wanted import encoder_files
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError
from distilbert.initialization import initial_weights
from distilbert.tokenization.checks import shown
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.tokenization.files import TOKENIZER_FILE, VOCABULARY_FILE
from distilbert.training.arguments import DistillationArguments, TrainingArguments
from distilbert.training.data import Data
from distilbert.training.objective import Objective

OF_TWELVE = (0, 2, 4, 7, 9, 11)
LABEL_TENSORS = ("classifier.weight", "classifier.bias")  # a row for each label, in
HEADS_OF_LABELS = ("DistilBertForSequenceClassification", "DistilBertForTokenClassification")
DROPOUTS = ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")


def load_model(arguments: TrainingArguments, backend: str, head: str, settings: Mapping[str, Any]) -> Any:
    """The model that `arguments.model` names, with a new head where it has none that fits.

    settings: config fields that the task sets, such as `id2label`.
    """
    return _load_head(arguments, backend, head, arguments.model, settings)


def load_teacher(arguments: DistillationArguments, backend: str, head: str) -> Any:
    """The teacher.

    Raises:
        ValueError: it does not have the head that is distilled.
    """
    try:
        return _load(backend, head, arguments.model, {}, new_head=False)
    except CheckpointError as error:
        if error.kind != "MissingTensor":
            raise
        raise ValueError(
            f"{arguments.model}: a teacher of {arguments.task} must be a {head}: train it first."
        ) from error


def make_student(arguments: DistillationArguments, backend: str, objective: Objective, teacher: Any, data: Data) -> Any:
    """The student: a checkpoint of its own, or layers of the teacher, with its weights or random ones.

    Raises:
        ValueError: it has another vocabulary than the teacher, or another width while hidden states are compared, or
            fewer positions than rows may have tokens.
    """
    if arguments.student is not None:
        settings = {"id2label": teacher.config.id2label}
        student = _load_head(arguments, backend, objective.head, arguments.student, settings)
    else:
        student = _cut(arguments, backend, objective.head, teacher)
    check_fit(student.config, teacher.config, objective)
    check_length(student.config, data.task.limit)
    if arguments.student is not None:
        check_vocabulary(find_folder(arguments.student, encoder_files), data.tokenizer)
    return student


def _cut(arguments: DistillationArguments, backend: str, head: str, teacher: Any) -> Any:
    layers = _layers(arguments.layers, teacher.config.n_layers)
    source = open_checkpoint(arguments.model, head)
    weights = Student(source, layers)
    kind = getattr(load_backend(backend), head)
    student = kind.from_config(weights.config.replace(**_dropouts(arguments)), seed=arguments.seed, **source.settings)
    if arguments.student_init == "teacher":
        student.assign(dict(weights))
    return student


def _layers(text: str | None, n_layers: int) -> Sequence[int]:
    """Those that the user named; by default the paper's six of twelve, and else every second."""
    if text is not None:
        return parse_layers(text)
    return OF_TWELVE if n_layers == 12 else range(0, n_layers, 2)


def check_fit(student: DistilBertConfig, teacher: DistilBertConfig, objective: Objective) -> None:
    """Refuse a student whose outputs cannot be compared with its teacher's.

    Raises:
        ValueError: vocabulary, labels, or width differ.
    """
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"student and teacher must have one vocabulary, got vocab_size={student.vocab_size} and "
            f"{teacher.vocab_size}."
        )
    if objective.alpha_cos and student.dim != teacher.dim:
        raise ValueError(
            f"the cosine loss compares hidden states of one width, got dim={student.dim} and {teacher.dim}: "
            "choose a student as wide as its teacher, or alpha_cos=0."
        )
    if objective.alpha_mse and objective.task == "sentence_embedding" and student.dim != teacher.dim:
        raise ValueError(
            f"the squared error compares embeddings of one width, got dim={student.dim} and {teacher.dim}: "
            "choose a student as wide as its teacher."
        )
    if student.num_labels != teacher.num_labels:
        raise ValueError(
            f"student and teacher must have the same labels, got {student.num_labels} and {teacher.num_labels}."
        )


def check_vocabulary(student: Path, tokenizer: DistilBertTokenizerFast) -> None:
    """Refuse a student whose tokens have other ids than its teacher's; without a tokenizer it has none.

    Raises:
        ValueError: a token has another id. TokenizerError: the tokenizer cannot be read.
    """
    if not any((student / name).exists() for name in (TOKENIZER_FILE, VOCABULARY_FILE)):
        return
    theirs, ours = DistilBertTokenizerFast.from_pretrained(student).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        token = min({*theirs.items()} ^ {*ours.items()}, key=lambda entry: entry[::-1])[0]
        raise ValueError(
            f"student and teacher must have one vocabulary, but {shown(token)} has the id {theirs.get(token, 'none')} "
            f"in the student's and {ours.get(token, 'none')} in the teacher's."
        )


def check_length(student: DistilBertConfig, longest: int) -> None:
    """Refuse a student that cannot read the longest rows.

    Raises:
        ValueError: it has fewer positions.
    """
    if student.max_position_embeddings < longest:
        raise ValueError(
            f"max_length must be at most the student's {student.max_position_embeddings} positions, got {longest}."
        )


def _load_head(arguments: TrainingArguments, backend: str, head: str, source: str, settings: Mapping[str, Any]) -> Any:
    """The model with a head for the labels in `settings`: each keeps the row that it had under its name."""
    model = _load(backend, head, source, {**settings, **_dropouts(arguments)}, new_head=True)
    if head not in HEADS_OF_LABELS or LABEL_TENSORS[0] in model.load_report.new:
        return model
    former = read_config(read_pooling(find_folder(source, encoder_files)).encoder).id2label
    named = former != DistilBertConfig(num_labels=len(former)).id2label
    if named and former != model.config.id2label:
        _relabel(model, head, {name: row for row, name in former.items()}, arguments.seed)
    return model


def _relabel(model: Any, head: str, rows: Mapping[str, int], seed: int) -> None:
    """Give the model's labels the rows that they had, or new ones. rows: by the names in the checkpoint."""
    weights, new = model.weights_by_name(), initial_weights(model.config, head, seed=seed)
    for name in LABEL_TENSORS:
        for number, label in model.config.id2label.items():
            if label in rows:
                new[name][number] = weights[name][rows[label]]
    model.assign(weights | {name: new[name] for name in LABEL_TENSORS})


def _load(backend: str, head: str, source: str, settings: Mapping[str, Any], *, new_head: bool) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new, with initial weights")  # which are about to be trained
        return getattr(load_backend(backend), head).from_pretrained(source, new_head=new_head, **settings)


def _dropouts(arguments: TrainingArguments) -> dict[str, float]:
    return {} if arguments.dropout is None else dict.fromkeys(DROPOUTS, arguments.dropout)
