"""The report of what `benchmarks.inference` measured: tables in Markdown and a plot.

python -m benchmarks.report RESULTS --markdown docs/performance.md --plot docs/performance.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cold_start, plot
from benchmarks.measuring import mostly_steady, seconds_of
from benchmarks.peers import GROUPS, PEERS
from benchmarks.statistics import paired_ratio
from benchmarks.targets import TARGETS
from benchmarks.workloads import WORKLOADS

BEGIN, END = "<!-- benchmarks begin -->", "<!-- benchmarks end -->"
Results = Mapping[str, Any]
Cell = Mapping[str, Any]
Rows = Sequence[Sequence[str]]


def write(results: Results, *, markdown: Path | None, plot: Path | None) -> None:
    """Print the report; write it between the markers of a page, and the plot, where asked to.

    Raises:
        ValueError: the page has no markers; nothing is written then.
    """
    text = "\n\n".join(sections(results)) + "\n"
    sys.stdout.write(text)
    if markdown:
        markdown.write_text(page(markdown, text), encoding="utf-8")
    if plot:
        draw(results, plot)


def page(file: Path, text: str) -> str:
    """The page with other text between its markers.

    Raises:
        ValueError: they are not there.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file} must have {BEGIN} and after it {END}.")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def draw(results: Results, file: Path) -> None:
    """Write the plot of the headline workloads."""
    file.write_text(plot.svg(list(panels(results))), encoding="utf-8")


def sections(results: Results) -> Iterator[str]:
    """The parts of the report, in order."""
    yield "### Targets\n\n" + table(target_rows(results))
    for group, title in GROUPS.items():
        cells = [cell for cell in results["cells"].values() if cell["group"] == group]
        if cells:
            yield f"### {title}\n\n" + "\n\n".join(map(cell_section, cells))
    if "cold start" in results:
        yield "### First embedding\n\n" + table(cold_start.rows(results["cold start"]))
    yield "### Engines\n\n" + table(engine_rows(results))
    yield "### Machine\n\n" + "\n".join(machine_lines(results))


def target_rows(results: Results) -> Iterator[Sequence[str]]:
    """What was claimed and what came out; medians of ratios with 95 % intervals."""
    yield "", "against", "target", "measured", "met"
    for target in TARGETS:
        goal = f"{'at most' if target.most else 'at least'} {target.goal:g}"
        found = target.measure(results)
        if found is None:
            yield target.title, target.against, goal, "not measured", ""
        else:
            against = target.against if found.against in target.against else f"{target.against} ({found.against})"
            yield target.title, against, goal, found.shown, "yes" if target.met(found) else "no"


def cell_section(cell: Cell) -> str:
    """A workload in a group: how fast each engine is, and how far from the machine's limit."""
    workload = WORKLOADS[cell["workload"]]
    rounds, steady = len(cell["steady"]), sum(cell["steady"])
    shown = f"{steady} steady" if mostly_steady(cell) else f"not steady ({steady} were), all count"
    title = f"{workload.tokens} tokens, {workload.fill:.0%} of padded batches; {rounds} rounds, {shown}"
    return f"**{workload.title}** ({title})\n\n" + table(cell_rows(cell))


def cell_rows(cell: Cell) -> Iterator[Sequence[str]]:
    """The table of a cell. The fastest come first; the first column of ratios is against our first engine."""
    workload = WORKLOADS[cell["workload"]]
    seconds = {name: seconds_of(cell, name) for name in cell["turns"]}
    ours = next((name for name in seconds if PEERS[name].ours), None)
    calls = len(workload.batches()) == 1
    yield "", "tokens/s", "ms" if calls else "ms a batch", "of the probe", "times as fast is ours", "off by"
    for name in sorted(seconds, key=lambda name: statistics.median(seconds[name])):
        median = statistics.median(seconds[name])
        ratio = str(paired_ratio(seconds[ours], seconds[name])) if ours and name != ours else ""
        yield (
            PEERS[name].title, f"{workload.tokens / median:.0f}", f"{1e3 * median / len(workload.batches()):.1f}",
            roofline(cell, name, median), ratio, f"{cell['checks'][name]['relative']:.1e}",
        )  # fmt: skip
    for name, reason in cell["failed"].items():
        yield PEERS[name].title, "failed", "", "", "", reason.replace("|", "/").replace("\n", " ")[:200]


def roofline(cell: Cell, name: str, seconds: float) -> str:
    """Which part of the probe's speed an engine reaches, counting operations on real tokens alone."""
    speeds = [probe[PEERS[name].precision] for probe in cell["probes"]]
    if None in speeds:
        return ""
    return f"{WORKLOADS[cell['workload']].operations / seconds / 1e9 / statistics.median(speeds):.0%}"


def engine_rows(results: Results) -> Iterator[Sequence[str]]:
    """What engines say of themselves."""
    yield "", "precision, read back", "memory after loading, MB", "loaded in, s", "versions"
    for name, found in results["engines"].items():
        versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
        precision = found["precision"].replace("\n", "; ").replace("|", "/")
        yield PEERS[name].title, precision, f"{found['memory'] / 1e6:.0f}", f"{found['seconds']:.1f}", versions


def machine_lines(results: Results) -> Iterator[str]:
    """Where and when it was measured, a line for each different answer."""
    parts = [*results["cells"].values(), *(results[name] for name in ("cold start",) if name in results)]
    for key in ("processor", "flags", "governor", "kernel", "libc", "commit", "trim"):
        found = dict.fromkeys(str(part["machine"][key]) for part in parts if key in part["machine"])
        yield f"- {key}: {'; '.join(found)}"
    dates = sorted(part["machine"]["date"] for part in parts)
    yield f"- date: {dates[0]} to {dates[-1]}" if dates else "- nothing was measured"
    probes = [probe for cell in results["cells"].values() for probe in cell["probes"]]
    for precision in ("float32", "bfloat16", "int8"):
        speeds = [probe[precision] for probe in probes if probe[precision] is not None]
        if speeds:
            low, high = np.percentile(speeds, [5, 95])
            yield f"- probe, {precision}: {statistics.median(speeds):.0f} GFLOP/s (90 %: {low:.0f} to {high:.0f})"


def panels(results: Results) -> Iterator[plot.Panel]:
    """Of each headline workload, the speed of all engines in tokens/s."""
    for workload in WORKLOADS.values():
        bars = [
            plot.Bar(PEERS[name].title, workload.tokens / statistics.median(seconds_of(cell, name)), PEERS[name].ours)
            for cell in results["cells"].values()
            if cell["workload"] == workload.name and workload.headline
            for name in cell["turns"]
        ]
        if bars:
            yield plot.Panel(f"{workload.title}, tokens/s", sorted(bars, key=lambda bar: -bar.value))


def line(group: str, cell: Cell) -> str:
    """A cell in one line, while the rest is measured."""
    medians = {name: 1e3 * statistics.median(seconds_of(cell, name)) for name in cell["turns"]}
    found = ", ".join(f"{name} {value:.1f}" for name, value in sorted(medians.items(), key=lambda item: item[1]))
    failed = "".join(f"\n  {name} failed: {reason}" for name, reason in cell["failed"].items())
    return f"{group}/{cell['workload']}, {len(cell['steady'])} rounds, ms: {found}{failed}"


def table(rows: Iterator[Sequence[str]] | Rows) -> str:
    """Rows in Markdown, the first as the head."""
    head, *rest = list(rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))


def main() -> None:
    """Report on a file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page with the report's markers")
    parser.add_argument("--plot", type=Path, help="where the plot is written, as SVG")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    write(results, markdown=arguments.markdown, plot=arguments.plot)


if __name__ == "__main__":
    main()
