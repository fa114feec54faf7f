"""The benchmarks: what is computed, whom they refuse, what they conclude, what they write."""

import argparse
import contextlib
import json
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from benchmarks import checking, cold_start, exports, inference, int8_accuracy, measuring, peers, plot, report, targets
from benchmarks.engines import ROOT, Engine, EngineError
from benchmarks.statistics import paired_ratio
from benchmarks.workloads import PARAGRAPHS, QUERIES, SENTENCES, WORKLOADS, Workload
from distilbert import reference
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig
from distilbert.initialization import initial_weights

SMALL = Workload("query", "small", (3, 5), 2, headline=True)
ECHO = """
from benchmarks.engines import serve

def run(order):
    print("a library says something")
    if order["fail"]:
        raise ValueError("as it was told")
    return {"order": order}

serve(lambda: ({"versions": {}}, run))
"""


class Fake:
    """An engine without a process: hidden states are the ids, times one is given."""

    def __init__(self, name, seconds=1.0, factor=1.0):
        self.name, self.seconds, self.factor, self.timed = name, seconds, factor, 0

    def run(self, order):
        if not order:
            return {"float32": 200.0, "bfloat16": 400.0, "int8": None}
        if order["do"] == "check":
            with np.load(order["inputs"]) as file:
                np.save(order["outputs"], self.factor * hidden(file["ids0"], file["mask0"]))
            return {}
        self.timed += 1
        return {"seconds": [self.seconds] * order["repeat"]}


def hidden(ids, mask):
    return ids[mask == 1][:, None] * np.ones((1, 4))


@pytest.fixture
def task(tmp_path):
    (batch,) = SMALL.batches()
    return measuring.Task(SMALL, measuring.write_inputs(SMALL, tmp_path), hidden(*batch))


def a_cell(task, **seconds):
    engines = {name.replace("_", "-"): Fake(name.replace("_", "-"), value) for name, value in seconds.items()}
    cell = measuring.measure(task, engines, Fake("probe"), seconds=1.0)
    machine = {"processor": "x", "date": "2026-01-01", "commit": "c"}
    return {**cell, "group": "float32", "machine": machine}


def results(task):
    cell = a_cell(task, pt_float32=1.0, onnx=2.0, ctranslate2_float32=1.5)
    seconds = {name: [1.0, 1.0] for name in cold_start.PROGRAMS} | {"sentence-transformers": [4.0, 4.0]}
    titles = {name: program.title for name, program in cold_start.PROGRAMS.items()}
    engine = {"precision": "float32", "versions": {"torch": "2"}, "memory": 53_089_382, "seconds": 1.0}
    return {
        "cells": {"float32/query": cell},
        "engines": {"pt-int8": engine},
        "cold start": {"seconds": seconds, "titles": titles, "machine": cell["machine"]},
    }


def test_ratios_are_paired():
    slow_machine = np.array([1, 2, 1, 4, 1, 8.0])
    assert paired_ratio(slow_machine, 2 * slow_machine) == (2.0, 2.0, 2.0)
    low, median, high = (paired_ratio([1.0] * 9, [1, 1, 1, 2, 2, 2, 3, 3, 3])[i] for i in (1, 0, 2))
    assert low == 1.0
    assert median == 2.0
    assert high == 3.0


def test_workloads_are_the_same_everywhere():
    assert QUERIES[:8] == (13, 11, 8, 7, 9, 8, 12, 8)
    assert SENTENCES[:8] == (44, 37, 21, 16, 24, 21, 38, 18)
    assert PARAGRAPHS[:8] == (244, 196, 104, 76, 122, 101, 208, 84)
    for lengths, median, longest in ((QUERIES, 9, 20), (SENTENCES, 24, 128), (PARAGRAPHS, 120, 512)):
        assert min(lengths) >= 4
        assert max(lengths) <= longest
        assert abs(np.median(lengths) / median - 1) < 0.25  # of 32 paragraphs


@pytest.mark.parametrize("name", WORKLOADS)
def test_batches_hold_every_text_once(name):
    workload = WORKLOADS[name]
    batches = workload.batches()
    found = [int(length) for _, mask in batches for length in mask.sum(1)]
    assert found == (sorted(workload.lengths, reverse=True) if workload.by_length else list(workload.lengths))
    for ids, mask in batches:
        assert ids.shape[1] == mask.sum(1).max()
        assert (ids[mask == 1] >= 1000).all()
        assert not ids[mask == 0].any()
    again = workload.batches()
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(batches, again, strict=True))


def test_no_workload_gets_what_is_expected_of_another():
    assert len({measuring.fingerprint(workload) for workload in WORKLOADS.values()}) == len(WORKLOADS)


def test_operations_of_a_token():
    """6 layers of 4 * 768**2 + 2 * 768 * 3072 weights, two operations each; a text of 1 attends to one key."""
    assert Workload("", "", (1,), 1).operations == 2 * 6 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 6 * 2 * 768


@pytest.mark.parametrize(
    ("precision", "factor", "passes"),
    [
        ("float32", 1 + 5e-6, True),
        ("float32", 1 + 2e-5, False),
        ("bfloat16", 1.005, True),
        ("bfloat16", 1.02, False),
        ("float32", np.nan, False),
        ("int8", np.nan, False),
    ],
)
def test_results_are_held_to_their_precision(precision, factor, passes):
    exact = np.random.default_rng(0).standard_normal((5, 8))
    assert checking.check(exact * factor, exact).passes(precision) == passes


def test_int8_is_held_to_a_cosine():
    exact, noise = np.random.default_rng(0).standard_normal((2, 50, 64))
    assert checking.check(exact + 0.05 * noise, exact).passes("int8")
    assert not checking.check(exact + 0.5 * noise, exact).passes("int8")
    with pytest.raises(ValueError, match=r"shape \(50, 64\), got \(49, 64\)"):
        checking.check(exact[1:], exact)


def test_an_engine_with_wrong_results_is_not_timed(task):
    engines = {"pt-plain": Fake("pt-plain"), "onnx": Fake("onnx", factor=1.1)}
    cell = measuring.measure(task, engines, Fake("probe"), seconds=1.0)
    assert list(cell["turns"]) == ["pt-plain"]
    assert engines["onnx"].timed == 0
    assert "results are wrong for float32" in cell["failed"]["onnx"]
    assert "| ONNX Runtime, as exported, float32 | failed |" in report.cell_section(cell)


@pytest.mark.parametrize("after", [0, 3])
def test_an_engine_that_fails_while_it_is_timed_is_dropped(task, after):
    class Failing(Fake):
        def run(self, order):
            if order.get("do") == "time" and self.timed == after:
                raise EngineError("gone")
            return super().run(order)

    engines = {"pt-plain": Fake("pt-plain"), "onnx": Failing("onnx")}
    cell = measuring.measure(task, engines, Fake("probe"), seconds=1.0)
    assert list(cell["turns"]) == ["pt-plain"]
    assert len(cell["turns"]["pt-plain"]) == len(cell["steady"]) >= measuring.ROUNDS[0]
    assert cell["failed"] == {"onnx": "gone"}


def test_results_of_another_shape_are_a_failure(task):
    cell = measuring.measure(
        task._replace(expected=task.expected[1:]), {"onnx": Fake("onnx")}, Fake("probe"), seconds=1
    )
    assert "must have the shape" in cell["failed"]["onnx"]


def test_peers_that_cannot_start_are_missing(task, monkeypatch):
    def write(name, _):
        if name == "openvino-int8":
            raise subprocess.CalledProcessError(1, "export")

    def spawn(peer, **_):
        if peer.name == "onnx-int8":
            raise FileNotFoundError(2, "No such file", "python")
        return contextlib.nullcontext(Known(peer.name))

    class Known(Fake):
        hello: ClassVar = {"versions": {}}

    monkeypatch.setattr(inference, "ensure", write)
    monkeypatch.setattr(inference, "spawn", spawn)
    monkeypatch.setattr(inference, "await_quiet", lambda **_: None)
    members = [peers.PEERS[name] for name in ("pt-int8", "onnx-int8", "openvino-int8")]
    known = {"onnx-int8": {}, "openvino-int8": {}}
    options = argparse.Namespace(trim=False, busy=True, seconds=1.0)
    (cell,) = inference.measure_group(members, [task], options, known, inference.export(members))
    assert list(cell["turns"]) == list(known) == ["pt-int8"]
    assert list(cell["failed"]) == ["openvino-int8", "onnx-int8"]


def test_a_target_is_not_met_by_a_failure(task):
    found = results(task)
    cell = found["cells"]["float32/query"]
    cell["failed"] = {"pt-float32": "gone"}
    for target in targets.TARGETS:
        if target.title in {"float32, one query", "largest difference, float32"}:
            measured = target.measure(found)
            assert measured.shown == "failed"
            assert not target.met(measured)


def test_a_page_without_markers_is_refused(task, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{report.END}\n{report.BEGIN}\n")
    with pytest.raises(ValueError, match="must have"):
        report.write(results(task), markdown=page, plot=tmp_path / "plot.svg")
    assert page.read_text() == f"{report.END}\n{report.BEGIN}\n"
    assert not (tmp_path / "plot.svg").exists()


def test_a_cell_says_that_it_is_not_steady(task):
    cell = a_cell(task, pt_float32=1.0)
    assert "not steady" not in report.cell_section(cell)
    cell["steady"] = [False] * len(cell["steady"])
    assert "not steady (0 were), all count" in report.cell_section(cell)


def test_a_cell_without_engines_is_a_cell(task):
    cell = measuring.measure(task, {"onnx": Fake("onnx", factor=0.0)}, Fake("probe"), seconds=1.0)
    assert cell["turns"] == {}
    assert "failed" in report.cell_section(cell)


def test_every_engine_gets_the_same_number_of_turns(task):
    cell = a_cell(task, pt_float32=1.0, onnx=2.0)
    rounds = len(cell["steady"])
    assert measuring.ROUNDS[0] <= rounds <= measuring.ROUNDS[1]
    assert {len(turns) for turns in cell["turns"].values()} == {rounds}
    assert len(cell["probes"]) == rounds + 1


def test_unsteady_rounds_do_not_count():
    speeds = [{"float32": speed} for speed in (200, 200, 150, 200, 200, 201, 200)]
    assert measuring.steady(speeds) == [True, False, False, True, True, True]
    cell = {"steady": [True, True, False], "turns": {"a": [[1.0, 9.0, 2.0], [3.0], [50.0]]}}
    assert measuring.seconds_of(cell, "a") == [2.0, 3.0]
    assert measuring.seconds_of({**cell, "steady": [True, False, False]}, "a") == [2.0, 3.0, 50.0]


def test_targets_take_the_best_peer(task):
    found = {target.title: (target, target.measure(results(task))) for target in targets.TARGETS}
    target, measured = found["float32, one query"]
    assert measured.shown == "1.50 [1.50, 1.50]"
    assert measured.against.startswith("CTranslate2, float32; without ")
    assert "OpenVINO, float32" in measured.against
    assert target.met(measured)
    assert not target.met(measured._replace(value=1.04))
    target, measured = found["memory, PyTorch int8"]
    assert measured.shown == "0.20"
    assert target.met(measured)
    assert not target.met(measured._replace(value=0.41))
    assert found["float32, 4 x 128"][1] is None


def test_targets_name_engines_that_exist(task):
    """Cells with every engine of a group leave no target of speed without a number."""
    everything = results(task)
    for group in peers.GROUPS:
        members = {name.replace("-", "_"): 1.0 for name, peer in peers.PEERS.items() if peer.group == group}
        for workload in ("fixed-4", "sentences-32", "query"):
            everything["cells"][f"{group}/{workload}"] = a_cell(task, **members)
    missing = [target.title for target in targets.TARGETS if target.measure(everything) is None]
    assert all("int8 on real texts" in title for title in missing)


def test_report(task, tmp_path):
    page, picture = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write(json.loads(json.dumps(results(task))), markdown=page, plot=picture)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| float32, one query | best peer (CTranslate2, float32; without ONNX Runtime, fused, float32, " in text
    assert "torch, compiled, float32) | at least 1.05 | 1.50 [1.50, 1.50] | yes |" in text
    assert "| sentence-transformers 6.2 | 4.00 | 4.00 [4.00, 4.00] |" in text
    assert picture.read_text().count("<rect class=") == 4


def test_bars_are_as_long_as_their_values():
    text = plot.svg([plot.Panel("a < b", [plot.Bar("x", 20.0, True), plot.Bar("y", 10.0, False)])])
    assert "a &lt; b" in text
    assert f'width="{plot.WIDTH - plot.LABELS - plot.NUMBERS:.1f}"' in text
    assert f'width="{(plot.WIDTH - plot.LABELS - plot.NUMBERS) / 2:.1f}"' in text


def test_only_restricts_its_kind():
    groups, workloads, engines = inference.chosen([], quick=False)
    assert (groups, len(workloads), len(engines)) == (list(peers.GROUPS), len(WORKLOADS), len(peers.PEERS))
    groups, workloads, engines = inference.chosen(["int8", "query"], quick=False)
    assert groups == ["int8"]
    assert [workload.name for workload in workloads] == ["query"]
    assert {peer.group for peer in engines} == {"int8"}
    groups, _, engines = inference.chosen(["onnx", "pt-int8"], quick=False)
    assert groups == ["float32", "int8"]
    assert [peer.name for peer in engines] == ["onnx", "pt-int8"]
    assert inference.chosen([inference.COLD], quick=False)[2] == []
    groups, workloads, engines = inference.chosen([], quick=True)
    assert groups == ["float32", "bfloat16", "int8"]
    assert all(peer.everywhere for peer in engines)


def test_peers_read_formats_that_can_be_written():
    assert {peer.model for peer in peers.PEERS.values()} <= set(exports.FORMATS)


def test_processes_answer_and_say_what_failed(tmp_path):
    log = tmp_path / "log"
    with Engine("echo", [sys.executable, "-c", ECHO], {}, log=log) as engine:
        assert engine.run({"fail": False}) == {"order": {"fail": False}}
        with pytest.raises(EngineError, match="echo: ValueError: as it was told"):
            engine.run({"fail": True})
        assert engine.run({"fail": False}) == {"order": {"fail": False}}
    assert "a library says something" in log.read_text()
    with Engine("none", [sys.executable, "-c", "pass"], {}) as engine, pytest.raises(EngineError, match="ended with 0"):
        _ = engine.hello


def test_a_real_engine_is_checked(tmp_path, monkeypatch):
    """Our model in float32 passes against the specification, at a size that is quick; against others it does not."""
    config = DistilBertConfig(dim=32, hidden_dim=64, n_heads=2, n_layers=2)
    weights = initial_weights(config, "DistilBertModel", seed=0)
    save_checkpoint(tmp_path / "base", "safetensors", "DistilBertModel", config, weights)
    ((ids, mask),) = SMALL.batches()
    expected = reference.model(config, weights, ids, attention_mask=mask).last_hidden_state[mask == 1]
    task = measuring.Task(SMALL, measuring.write_inputs(SMALL, tmp_path), expected)
    monkeypatch.setattr(inference, "MODELS", tmp_path)
    with inference.spawn(peers.PEERS["pt-plain"]) as engine:
        assert measuring.checked(task, engine, "float32")["largest"] < 5e-6
        assert len(engine.run({"do": "time", "inputs": str(task.inputs), "repeat": 2})["seconds"]) == 2
        with pytest.raises(EngineError, match="results are wrong"):
            measuring.checked(task._replace(expected=task.expected + 0.1), engine, "float32")


def test_losses_of_int8():
    exact = np.eye(4, dtype=np.float32)
    rounded = exact[[1, 0, 2, 3]]
    found = int8_accuracy.compare((exact, exact), (exact, rounded))
    assert (found["recall, float32"], found["recall"], found["recall lost"]) == (1.0, 0.5, 0.5)
    assert found["least cosine"] == 0.0


def test_pages_have_the_markers():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END)
