"""`distilbert train | distill`: their options are the fields of the arguments that Python takes."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from distilbert.errors import escape
from distilbert.training.arguments import DistillationArguments, TrainingArguments

# How the command line spells the type of a field that has several values.
SPELLED: dict[Any, Any] = {tuple[Path, ...]: list[Path], tuple[str, ...]: list[str]}
METAVARS = {TrainingArguments: "MODEL", DistillationArguments: "TEACHER"}


def command(kind: type[TrainingArguments], run: Callable[[Any], None]) -> Callable[..., None]:
    """A function for Typer with an option for each field of `kind`, which calls `run` with the arguments."""
    hints = typing.get_type_hints(kind)

    def call(**values: Any) -> None:
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        run(kind(**given))

    parameters = [_parameter(kind, field, hints[field.name]) for field in dataclasses.fields(kind)]
    signature = inspect.Signature(parameters)
    setattr(call, "__signature__", signature)  # noqa: B010 - a function has it, its type does not say so
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = run.__doc__
    return call


def _parameter(kind: type[TrainingArguments], field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    text = field.metadata["help"]
    info = typer.Argument(metavar=METAVARS[kind], help=text) if field.name == "model" else typer.Option(help=text)
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    if hint in SPELLED:
        hint, default = SPELLED[hint], list(default) if isinstance(default, tuple) else default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info]
    )


def train(arguments: TrainingArguments) -> None:
    """Fine-tune a checkpoint, or go on with a run that was broken off: the same numbers in every framework."""
    from distilbert.training.run import train as run

    _tell(run(arguments))


def distill(arguments: DistillationArguments) -> None:
    """Train a student to give what its teacher gives: the masked LM's triple loss, a task, or embeddings."""
    from distilbert.training.run import distill as run

    _tell(run(arguments))


def _tell(report: Any) -> None:
    console = Console()
    for line in report.lines():
        console.print(escape(line), highlight=False, soft_wrap=True, markup=False)
