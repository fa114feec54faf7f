"""The command line: `distilbert convert | parity`.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 3 the environment (a missing package, disk space, a
permission), 130 interrupted. Whatever is wrong is said in one line on standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from distilbert import __version__
from distilbert.backends import BACKENDS, check_backends
from distilbert.checkpoint import safely
from distilbert.checkpoint.folder import WRITABLE
from distilbert.errors import DistilBertError, MissingDependencyError, escape
from distilbert.parity import ParityReport, compare, read_texts

# Typer's base class of usage errors, which is click's or typer's own copy of it, depending on the version.
_UsageError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="DistilBERT for PyTorch, TensorFlow/Keras 3 and Flax NNX.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:  # pyright: ignore[reportUnusedFunction]
    if version:
        Console().print(__version__, highlight=False)
        raise typer.Exit


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder of a DistilBERT or BERT checkpoint, any format.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder to write; nothing is overwritten.")],
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(WRITABLE)}.")],
    dtype: Annotated[str | None, typer.Option(help="Of the new weights; default as stored.")] = None,
) -> None:
    """Write a checkpoint in another format; a BERT encoder becomes a DistilBERT, exactly."""
    from weights_convert.convert import convert as run

    console = Console()
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("Converting", total=None)
        done = run(
            source,
            destination,
            to=to,
            dtype=dtype,
            progress=lambda n, total: bar.update(task, completed=n, total=total),
        )
    console.print(f"{done.head}: {done.report}", highlight=False, soft_wrap=True, markup=False)
    for name, reason in done.report.skipped.items():
        console.print(f"  not in the new checkpoint: {escape(name, 100)} ({reason})", highlight=False, markup=False)
    console.print(f"wrote {destination}: {', '.join(done.files)}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def parity(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="A checkpoint; further folders hold it in other formats."),
    ],
    backends: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(BACKENDS),
    texts: Annotated[Path | None, typer.Option(help="UTF-8 file, one text per line, to run on.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    json: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
) -> None:
    """Compare every backend with the float64 reference: every layer, every attention map, the outputs."""
    names = check_backends(name for name in backends.split(",") if name)
    for folder in folders:
        safely.check_folder(folder)
    lines = None if texts is None else read_texts(texts)
    with Console(stderr=True).status("Comparing ..."):
        report = compare(folders, names, texts=lines, dtype=dtype)
    _print_parity(Console(), report)
    if json is not None:
        safely.write_json(json, report.to_dict())
    if not report.passed:
        raise typer.Exit(1)


def _print_parity(console: Console, report: ParityReport) -> None:
    """A table of the largest difference per place and backend for each folder, then a verdict per backend."""
    batch, seq = report.shape
    for folder in dict.fromkeys(result.folder for result in report.results):
        results = [result for result in report.results if result.folder == folder]
        title = f"{escape(folder)}: largest difference from the reference, {report.dtype}, {batch} x {seq} tokens"
        console.print(title, highlight=False, soft_wrap=True, markup=False)
        table = Table()
        table.add_column("place", no_wrap=True)
        for result in results:
            table.add_column(BACKENDS[result.backend], justify="right")
        table.add_column("allowed", justify="right")
        for rows in zip(*(result.rows for result in results), strict=True):
            cells = [f"{row.difference:.1e}" if row.passed else f"[red]{row.difference:.1e}[/]" for row in rows]
            table.add_row(rows[0].place, *cells, f"{rows[0].tolerance:.0e}")
        console.print(table)
    for result in report.results:
        verdict = f"FAIL: {result.first_failure}" if result.first_failure else "PASS"
        place = f"{BACKENDS[result.backend]}, {escape(result.folder)}"
        console.print(f"{verdict}  ({place}, {result.seconds:.1f} s)", highlight=False, soft_wrap=True, markup=False)


def main(arguments: Sequence[str] | None = None, program: str = "distilbert") -> None:
    """Run the command line and exit; every error is one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notices of the build are not ours to print
    try:
        code = typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name=program, standalone_mode=False
        )
    except _UsageError as error:
        code = _fail(2, f"{error.format_message()} Try '{program} --help'.")
    except (typer.Abort, KeyboardInterrupt):
        code = _fail(130, "interrupted.")
    except (DistilBertError, ValueError) as error:
        code = _fail(2, str(error))
    except MissingDependencyError as error:
        code = _fail(3, str(error))
    except (OSError, ImportError, MemoryError) as error:
        code = _fail(3, str(error) or type(error).__name__)
    sys.exit(code)


def _fail(code: int, message: str) -> int:
    sys.stderr.write(f"error: {escape(message)}\n")
    return code


if __name__ == "__main__":
    main()
