"""The command line: `distilbert convert | inspect | verify | parity | embed | train | distill`.

Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input, 3 the environment (a missing package, disk space, a
permission), 70 a bug of ours, 130 and 143 interrupted. Whatever is wrong is said in one line on standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from distilbert import __version__, cli_training
from distilbert.backends import BACKENDS, NATIVE, check_backends, installed_backends, load_backend
from distilbert.checkpoint import manifest, safely
from distilbert.checkpoint.folder import WRITABLE
from distilbert.checkpoint.loading import some
from distilbert.checkpoint.sharding import parse_size
from distilbert.checkpoint.student import parse_layers
from distilbert.errors import (
    CheckpointError,
    DistilBertError,
    MissingDependencyError,
    StoppedError,
    VerificationError,
    escape,
)
from distilbert.inference import PRECISIONS
from distilbert.parity import ParityReport, compare, read_texts
from distilbert.progress import show_progress
from distilbert.training.arguments import DistillationArguments, TrainingArguments

# Typer's base class of usage errors, which is click's or typer's own copy of it, depending on the version.
_UsageError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="DistilBERT for PyTorch, TensorFlow/Keras 3 and Flax NNX.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        Console().print(__version__, highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Folder of a DistilBERT or BERT checkpoint in any of these formats, or of sentence-transformers.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder to write; nothing is overwritten.")],
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(WRITABLE)}.")],
    dtype: Annotated[str | None, typer.Option(help="Of the new weights; default as stored.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to keep, from 0, such as 0,2,4,7,9,11 of a BERT of 12; default all.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(help="Split weights that take more, such as 500MB, into files with an index.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Write only if every tensor has the source's bits and every installed framework computes it.",
        ),
    ] = False,
) -> None:
    """Write a checkpoint in another format; a BERT becomes a DistilBERT, exactly."""
    from weights_convert.convert import convert as run

    _end_by_exception()
    numbers = None if layers is None else parse_layers(layers)
    size = None if shard_size is None else parse_size(shard_size)
    console = Console()
    with show_progress("Converting") as advance:
        done = run(
            source,
            destination,
            to=to,
            dtype=dtype,
            layers=numbers,
            shard_size=size,
            verify=installed_backends() if verify else (),
            progress=advance,
        )
    print_line(console, f"{done.head}: {done.report}")
    for reason in dict.fromkeys(done.report.skipped.values()):
        names = [name for name, why in done.report.skipped.items() if why == reason]
        print_line(console, f"  not in the new checkpoint: {some(names)} ({reason})")
    if done.parity is not None:
        for result in done.parity.results:
            worst = max(row.difference for row in result.rows)
            name = BACKENDS[result.backend]
            print_line(console, f"verified: {name} computes it, largest difference from the reference {worst:.1e}")
    print_line(console, f"wrote {destination}: {', '.join(done.files)}")


def _end_by_exception() -> None:
    """Let signals end in an exception, so that nothing half-written is left behind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint in any format.")],
    json: Annotated[Path | None, typer.Option(help="Also write what was found to this file.")] = None,
) -> None:
    """Say what is in a checkpoint folder, from its headers: format, class, sizes, tensors, sha256 of its files."""
    from weights_convert.inspection import DIMENSIONS
    from weights_convert.inspection import inspect as run

    if json is not None:
        safely.check_writable(json)
    found = run(folder)
    console = Console()
    kind = found.head or "does not load"
    print_line(console, f"{folder}: {kind}, {found.format} ({found.layout} names), {', '.join(found.dtypes)}")
    if found.problem:
        print_line(console, f"  {found.problem}")
    if found.config is not None:
        print_line(console, "  " + ", ".join(f"{name} {getattr(found.config, name)}" for name in DIMENSIONS))
    print_line(console, f"  {len(found.tensors)} tensors, {found.parameters:,} values")
    for name, entry in found.tensors.items():
        print_line(console, f"  {name}  {entry.dtype} {list(entry.shape)}")
    for name, digest in found.files.items():
        print_line(console, f"  {digest.sha256}  {digest.size:>12,}  {name}")
    print_line(console, f"  manifest: {found.manifest}")
    if json is not None:
        safely.write_json(json, found.to_dict())


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with a MANIFEST.json.")],
    accept: Annotated[
        bool, typer.Option("--accept", help="Write a new manifest of the files as they are, after a change of yours.")
    ] = False,
) -> None:
    """Compare the files of a folder with its manifest: each must have the size and sha256 with which it was written."""
    safely.check_folder(folder)
    console = Console()
    if accept:
        names = manifest.files(folder)
        manifest.write(folder, names)
        print_line(console, f"wrote {folder / manifest.MANIFEST_FILE}: {len(names)} files")
        return
    listed = manifest.read(folder)
    if listed is None:
        detail = "has no MANIFEST.json; write one of the files as they are with --accept"
        raise CheckpointError(folder, "NotFound", detail)
    wrong = manifest.differences(folder, listed)
    for error in wrong:
        print_line(console, f"FAIL: {error}")
    for name in sorted({*manifest.files(folder)} - listed.keys()):
        print_line(console, f"not listed: {name}")
    if wrong:
        raise typer.Exit(1)
    print_line(console, f"PASS: {len(listed)} files are as they were written")


@app.command()
def parity(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="A checkpoint; further folders hold it in other formats."),
    ],
    backends: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(BACKENDS),
    texts: Annotated[
        Path | None,
        typer.Option(help="UTF-8 file, a text per line, to run on, beside an empty text and one of maximum length."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    json: Annotated[
        Path | None, typer.Option(help="Also write the report to this file; an older one is replaced.")
    ] = None,
) -> None:
    """Compare every backend with the float64 reference: every layer, every attention map, the outputs."""
    names = check_backends(name.strip() for name in backends.split(",") if name.strip())
    for folder in folders:
        safely.check_folder(folder)
    if json is not None:
        safely.check_writable(json)
    lines = None if texts is None else read_texts(texts)
    try:
        for name in names:
            load_backend(name)
    except MissingDependencyError as error:
        raise ImportError(f"{error} Or choose what to compare: --backends {','.join(BACKENDS)}.") from None
    with show_progress("Comparing") as advance:
        report = compare(folders, names, texts=lines, dtype=dtype, progress=advance)
    _print_parity(Console(), report)
    if json is not None:
        safely.write_json(json, report.to_dict())
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def embed(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint, of sentence-transformers or alone.")],
    source: Annotated[str, typer.Option("--in", help="UTF-8 file, a text per line; - for standard input.")],
    destination: Annotated[
        Path, typer.Option("--out", help="File of NumPy (.npy) to write; an older one is replaced.")
    ],
    field: Annotated[str | None, typer.Option(help="Lines are JSON; take the string of this name.")] = None,
    backend: Annotated[
        str | None, typer.Option(help=f"One of {NATIVE}, {', '.join(BACKENDS)}; default the first that is there.")
    ] = None,
    precision: Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")] = PRECISIONS[0],
    token_budget: Annotated[int | None, typer.Option(help="The most tokens of a batch.")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale vectors to length 1.")] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Show how far it is, on a terminal.")] = False,
) -> None:
    """Write a vector per line of text, row i for line i, in the memory of a few thousand lines."""
    from distilbert.tasks.embedding import SentenceEncoder
    from distilbert.tasks.files import open_texts, write_vectors
    from distilbert.tokenization.checks import check_count

    _end_by_exception()
    _check_places(source, destination)
    if token_budget is not None:
        check_count("token_budget", token_budget, 1)
    safely.check_writable(destination)
    with open_texts(source, field) as texts, contextlib.ExitStack() as stack:
        encoder = SentenceEncoder.from_pretrained(folder, backend=backend, precision=precision)
        advance = stack.enter_context(show_progress("Embedding")) if progress else None
        tell = None if advance is None else lambda done: advance(done, None)
        parts = encoder.encode_iter(texts, token_budget=token_budget, normalize=normalize, progress=tell)
        rows = write_vectors(destination, stack.enter_context(contextlib.closing(parts)), encoder.width)
    print_line(Console(), f"wrote {destination}: {rows} vectors of {encoder.width} numbers")


app.command("train")(cli_training.command(TrainingArguments, cli_training.train))
app.command("distill")(cli_training.command(DistillationArguments, cli_training.distill))


def _check_places(source: str, destination: Path) -> None:
    if str(destination) == "-":
        raise ValueError("--out must be a file, got '-'.")
    if source != "-" and Path(source).exists() and destination.exists() and destination.samefile(source):
        raise ValueError(f"--out must be another file than --in, got {destination} for both.")


def _print_parity(console: Console, report: ParityReport) -> None:
    """A table of the largest difference per place and backend, then a verdict per backend and folder."""
    batch, seq = report.shape
    compared = "every position" if report.dtype == "float64" else "every kept position"
    run = [result for result in report.results if result.rows]
    title = (
        f"{run[0].folder}: largest difference from the reference at {compared}, {report.dtype}, {batch} x {seq} tokens"
    )
    print_line(console, title)
    table = Table()
    table.add_column("place", no_wrap=True)
    for result in run:
        table.add_column(BACKENDS[result.backend], justify="right")
    table.add_column("allowed", justify="right")
    for rows in zip(*(result.rows for result in run), strict=True):
        cells = [f"{row.difference:.1e}" if row.passed else f"[red]{row.difference:.1e}[/]" for row in rows]
        table.add_row(rows[0].place, *cells, f"{rows[0].tolerance:.0e}")
    console.print(table)
    if report.not_compared:
        print_line(console, f"not compared, since the encoder does not use them: {', '.join(report.not_compared)}")
    for result in report.results:
        proof = "within tolerance" if result.rows else f"the same bits as from {run[0].folder}"
        verdict = f"FAIL: {result.first_failure}" if result.first_failure else f"PASS: {proof}"
        print_line(console, f"{verdict}  ({BACKENDS[result.backend]}, {result.folder}, {result.seconds:.1f} s)")


def print_line(console: Console, text: str) -> None:
    """Print one line, whatever `text` holds."""
    console.print(escape(text), highlight=False, soft_wrap=True, markup=False)


def main(arguments: Sequence[str] | None = None, program: str = "distilbert", commands: typer.Typer = app) -> None:
    """Run a command line and exit; every error is one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notices of the build are not ours to print
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {escape(str(message))}", file=sys.stderr)  # noqa: T201
    try:
        code = typer.main.get_command(commands).main(
            args=None if arguments is None else list(arguments), prog_name=program, standalone_mode=False
        )
    except _UsageError as error:
        code = _fail(2, f"{error.format_message()} Try '{program} --help'.")
    except (typer.Abort, KeyboardInterrupt):
        code = _fail(130, "interrupted.")
    except StoppedError as error:
        code = _fail(128 + error.number, str(error))
    except VerificationError as error:
        code = _fail(1, str(error))
    except (DistilBertError, ValueError) as error:
        code = _fail(2, str(error))
    except OSError as error:
        code = _fail(3, f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except (ImportError, MemoryError) as error:
        code = _fail(3, str(error) or "out of memory.")
    except Exception as error:  # noqa: BLE001 - the last resort: never a traceback, never mistaken for a failed check
        code = _fail(70, f"internal error, please report it: {type(error).__name__}: {error}")
    sys.exit(code)


def _fail(code: int, message: str) -> int:
    sys.stderr.write(f"error: {escape(message)}\n")
    return code
