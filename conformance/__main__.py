"""`python -m conformance`: hold backends to the specification; its command `vectors` writes golden vectors.

Exit codes and errors are those of `distilbert` (see `distilbert.cli`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: threads would only wait for each other
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import typer
from rich.console import Console

from distilbert.backends import BACKENDS, check_backends
from distilbert.checkpoint import safely
from distilbert.cli import main, print_line, show_progress
from distilbert.errors import DataError

MARKS = ("<!-- conformance: written by make conformance -->", "<!-- end -->")
SHOWN = 20  # failures that are printed; the JSON report has all

app = typer.Typer(
    help="Hold the backends to the specification, to the reference implementation and to their signatures.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    backend: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(BACKENDS),
    every: Annotated[
        bool, typer.Option("--every", help="All masks, options and kernels together: several times as long.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the reports to this file, by backend.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the tables into this file, between the marks that it has for them.")
    ] = None,
) -> None:
    """Compare outputs, loss, gradients and one AdamW step; plant every mutant; compare signatures."""
    if context.invoked_subcommand is not None:
        return
    from conformance import suite

    names = check_backends(name.strip() for name in backend.split(",") if name.strip())
    for path in (json, markdown):
        if path is not None:
            safely.check_writable(path)
    text = None if markdown is None else _read_marked(markdown)
    console, reports = Console(), list[suite.Report]()
    for name in names:
        with show_progress(f"Comparing {BACKENDS[name]}") as advance:
            reports.append(suite.run(name, every=every, progress=advance))
        failures = reports[-1].failures
        verdict = "FAIL" if failures else "PASS"
        print_line(console, f"{verdict}: {BACKENDS[name]}: {reports[-1].summary}, {reports[-1].seconds:.0f} s")
        for line in failures[:SHOWN]:
            print_line(console, f"  {line}")
        if len(failures) > SHOWN:
            print_line(console, f"  and {len(failures) - SHOWN} more")
    table = suite.markdown(reports)
    console.print(table, highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        safely.write_json(json, {report.backend: report.to_dict() for report in reports})
    if any(report.failures for report in reports):
        raise typer.Exit(1)
    if markdown is not None and text is not None:
        before, after = text
        safely.write_text(markdown, f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


@app.command()
def vectors(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder to write; nothing is overwritten.")],
) -> None:
    """Write inputs and expected results of every class, mask and loss, for ports in other languages."""
    from conformance.vectors import write

    with show_progress("Writing") as advance:
        count = write(folder, advance)
    print_line(Console(), f"wrote {folder}: {count} vectors")


def _read_marked(path: Path) -> tuple[str, str]:
    """What stands before and after the place for the tables.

    Raises:
        DataError: the file has no such place, or several.
    """
    text = safely.read_bytes(path, 1 << 20).decode()
    if any(text.count(mark) != 1 for mark in MARKS) or text.index(MARKS[0]) > text.index(MARKS[1]):
        raise DataError(f"{path}: must hold the lines {MARKS[0]} and {MARKS[1]} once, in this order.")
    return text.split(MARKS[0])[0], text.split(MARKS[1])[1]


if __name__ == "__main__":
    main(program="python -m conformance", commands=app)
