"""The conformance suite on every backend, and the suite itself: does it notice what it must?"""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from conformance import __main__ as program
from conformance import cases, comparison, signatures, suite, training_mutants
from conformance.mutants import GRADIENTS, HEADS, LOSSES, MUTANTS, Mutant
from conformance.training_mutants import TRAINING_MUTANTS
from distilbert import weight_map
from distilbert.backends import load_backend
from distilbert.cli import main
from distilbert.training.objective import HEAD_OF
from tests.support import BACKENDS, ROOT, run_cli, run_python, to_numpy

TRAINING_GROUPS = (training_mutants.LOSSES, training_mutants.OBJECTIVES, training_mutants.STEPS)


def run_program(*arguments):
    return run_cli(*arguments, main=lambda given: main(given, "python -m conformance", program.app))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the program wrote about each backend, each run in a process that has one framework."""
    folder = tmp_path_factory.mktemp("reports")

    def run(backend):
        file = folder / f"{backend}.json"
        done = run_python("-m", "conformance", "--backend", backend, "--json", str(file), timeout=3000)
        return json.loads(file.read_text())[backend] | {"code": done.returncode, "out": done.stdout}

    return {backend: run(backend) for backend in BACKENDS}


@pytest.fixture
def report(reports, backend):
    """All that one backend was held to."""
    return reports[backend]


def test_every_case_agrees_with_the_specification(report):
    """All heads, masks, options and dtypes: outputs, loss, gradients, one AdamW step."""
    assert [f"{result['name']}: {result['failure']}" for result in report["cases"] if result["failure"]] == []
    combinations = {(result["head"], result["dtype"]) for result in report["cases"]}
    assert len(combinations) == len(weight_map.HEADS) * len(cases.DTYPES)
    names = [result["name"] for result in report["cases"]]
    assert all(any(name.startswith(case.name + " /") for name in names) for case in cases.cases())
    assert None not in [d for result in report["cases"] for d in result["differences"].values()]


def test_training_agrees_with_its_specification(report):
    """Every loss, the objective of every task, and the steps of a trainer."""
    assert [f"{result['name']}: {result['failure']}" for result in report["training"] if result["failure"]] == []
    listed = [case for list_cases in suite.TRAINING.values() for case in list_cases()]
    assert [result["name"] for result in report["training"]] == [case.name for case in listed]
    assert len({case.name for case in listed}) == len(listed)
    assert {case.objective.task for case in suite.TRAINING["objectives"]()} == HEAD_OF.keys()
    assert None not in [d for result in report["training"] for d in result["differences"].values()]


def test_every_golden_agrees_with_the_reference_implementation(report):
    """Twelve models, four file formats, two dtypes."""
    assert [f"{result['name']}: {result['failure']}" for result in report["goldens"] if result["failure"]] == []
    assert len(report["goldens"]) == 12 * 4 * 2
    assert sum("gradients" in result["differences"] for result in report["goldens"]) == 10 * 4 * 2


def test_every_mutant_is_noticed(report):
    assert [name for name, where in report["mutants"].items() if not where] == []
    assert report["mutants"].keys() == set(names := [mutant.name for mutant in (*MUTANTS, *TRAINING_MUTANTS)])
    assert len(set(names)) == len(names)
    assert min(map(len, (HEADS, LOSSES, GRADIENTS, *TRAINING_GROUPS))) >= 5


def test_the_program_says_so_too(report):
    """Signatures included, and a line that counts what was done."""
    assert (report["passed"], report["signatures"], report["failures"], report["code"]) == (True, [], [], 0)
    all_mutants = len(MUTANTS) + len(TRAINING_MUTANTS)
    noticed = f"{all_mutants} of {all_mutants} mutants noticed"
    assert re.match(rf"PASS: \w+: \d+ cases, \d+ of training, 96 goldens, {noticed}, \d+ s\n", report["out"])


def test_another_signature_is_noticed(monkeypatch):
    monkeypatch.setitem(signatures.SPEC["losses"], "cross_entropy", ["logits", "targets"])
    (text,) = signatures.differences("pt")
    assert text == "losses.cross_entropy must be (logits, targets), got (logits, labels)"


def test_a_mutant_that_changes_nothing_passes_unnoticed_and_fails_the_suite(backend, monkeypatch):
    """Otherwise the test of the mutants could not fail."""
    monkeypatch.setattr(suite, "MUTANTS", (Mutant("harmless"),))
    mutants = suite._run_mutants(backend, ("eager",), lambda: None)
    report = suite.Report(backend, (), (), (), mutants, (), 0.0)
    assert report.failures == ["mutant 'harmless' passes unnoticed"]
    assert report.to_dict()["passed"] is False


def altered(part, change):
    case = Mutant("none", head="DistilBertForMaskedLM").case
    wanted, got = comparison.expected(case), comparison.found(case, "pt", "sdpa")
    tolerance = comparison.TOLERANCES[case.dtype]
    assert comparison.first_failure(wanted, got, tolerance) == ""
    change(got[part])
    return comparison.first_failure(wanted, got, tolerance)


def change_one_entry(name, by):
    def change(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] += by

    return change


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("outputs", change_one_entry("logits", 1e-3), "outputs: logits differs by"),
        ("outputs", change_one_entry("attentions.1", np.nan), "outputs: attentions.1 differs by inf"),
        ("outputs", lambda arrays: arrays.pop("hidden_states.2"), "outputs: hidden_states.2, which only one side has,"),
        ("loss", lambda arrays: arrays.update(loss=arrays["loss"] * 1.001), "loss: loss differs by 1.0e-03"),
        ("loss", lambda arrays: arrays.update(loss=arrays["loss"][None]), "loss: loss differs by inf"),
        ("gradients", change_one_entry("vocab_transform.bias", 1e-3), "gradients: vocab_transform.bias differs by"),
        ("step", change_one_entry("vocab_projector.bias", 1e-5), "step: vocab_projector.bias differs by"),
    ],
)
def test_a_wrong_result_is_noticed_and_named(part, change, text):
    assert altered(part, change).startswith(text)


def test_another_dtype_is_refused():
    output = load_backend("pt").DistilBertModel.from_config(cases.CONFIG)(cases.input_ids())
    with pytest.raises(ValueError, match="last_hidden_state must be of the dtype float64, got float32"):
        comparison.output_parts(type(output)(output.last_hidden_state.detach().numpy(), (), ()))


def test_a_backend_that_refuses_a_call_fails_and_does_not_end_the_run(monkeypatch):
    def refuse(*_):
        raise ValueError("no such mask")

    monkeypatch.setattr(comparison, "found", refuse)
    results = list(suite._run_cases("pt", [(Mutant("none").case, ("sdpa",))], lambda: None))
    assert [result.failure for result in results] == ["ValueError: no such mask"]


def test_the_readme_has_a_generated_table_within_the_tolerances():
    text = (ROOT / "README.md").read_text().split(program.MARKS[0])[1].split(program.MARKS[1])[0]
    tables = text.split("float64: PyTorch / TensorFlow / Flax")
    assert len(tables) == 2
    for table, dtype in zip(tables, ("float32", "float64"), strict=True):
        tolerance = dataclasses.astuple(comparison.TOLERANCES[dtype])
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "`" in line]
        assert [row[0].strip("`") for row in rows] == list(weight_map.HEADS)
        for row in rows:
            for cell, allowed in zip(row[1:], tolerance, strict=True):
                assert cell == "-" or [float(x) <= allowed for x in cell.split(" / ")] == [True] * 3


def result(dtype, failure="", **differences):
    return suite.Result("a case", "DistilBertForTokenClassification", dtype, differences, failure)


def test_the_table_holds_the_largest_of_what_was_measured():
    parts = dict.fromkeys(suite.PARTS, 1e-7)
    results = [
        suite.Result("", head, dtype, parts, "") for head in weight_map.HEADS for dtype in ("float32", "float64")
    ]
    worse = (*results, result("float32", gradients=3.4e-6), result("float64", gradients=2e-15))
    table = suite.markdown(
        [suite.Report("pt", worse, (), (), {}, (), 0.0), suite.Report("flax", (), (), worse, {}, (), 0.0)]
    )
    row = "| `DistilBertForTokenClassification` | 1e-07 / 1e-07 | 1e-07 / 1e-07 | 3e-06 / 3e-06 | 1e-07 / 1e-07 |"
    assert row in table.split("float64: PyTorch / Flax")[0]


def test_a_report_is_json_without_nan():
    report = suite.Report("pt", (result("float32", "outputs differ", outputs=math.inf),), (), (), {}, (), 0.0)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["failures"] == ["a case: outputs differ"]
    assert values["cases"][0]["differences"] == {"outputs": None}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--backend", "mxnet"], "backends must be some of pt,tf,flax, got 'mxnet'"),
        (["--backend", ""], "backends must be some of pt,tf,flax, got ''"),
        (["--nonsense"], "No such option: --nonsense"),
        (["nonsense"], "No such command 'nonsense'"),
        (["--markdown", "pyproject.toml"], "must hold the lines <!-- conformance"),
        (["--json", "no/such/folder/report.json"], "no/such/folder"),
        (["vectors"], "Missing argument 'DIR'"),
        (["vectors", "tests"], "exists already"),
    ],
)
def test_wrong_usage_is_one_line_at_once(arguments, text):
    code, out, err = run_program(*arguments)
    assert code in (2, 3)
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert "PASS" not in out


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "vectors"
    code, out, err = run_program("vectors", folder)
    assert (code, err) == (0, "")
    assert "vectors" in out
    return folder


def test_vectors_cover_every_head_mask_and_loss(vectors):
    entries = json.loads((vectors / "index.json").read_text())["vectors"]
    assert len(entries) == sum(case.dtype == "float64" for case in cases.cases())
    assert {entry["class"] for entry in entries} == weight_map.HEADS.keys()
    assert {entry["mask"] for entry in entries} == set(cases.MASKS)
    assert {file.name for file in vectors.rglob("*.safetensors")} >= {"model.safetensors", "4-D-per-head.safetensors"}
    assert all((vectors / entry["file"]).is_file() for entry in entries)


def test_a_port_can_be_tested_with_the_vectors_alone(backend, vectors):
    """Here our own backends stand for it: each model loaded from its folder, each file compared."""
    index = json.loads((vectors / "index.json").read_text())
    for entry in index["vectors"]:
        if entry["option"] not in ("plain", "untied projector", "several labels", "positions outside"):
            continue
        head = getattr(load_backend(backend), entry["class"])
        model, arrays = head.from_pretrained(vectors / entry["model"]), load_file(vectors / entry["file"])
        inputs = {n.removeprefix("inputs."): a for n, a in arrays.items() if n.startswith("inputs.")}
        output = model(**inputs)._asdict()
        assert ("loss" in output) == ("loss" in arrays)
        for name, wanted in arrays.items():
            if (place := name.removeprefix("outputs.")) in output:
                difference = np.abs(to_numpy(output[place]) - wanted).max() / (np.abs(wanted).max() or 1.0)
                assert difference <= index["tolerances"]["float32"]["outputs"], entry["file"]
