"""Training data: files to records, and examples on disk."""

import dataclasses
import gzip
import json
import lzma
import sys
import tracemalloc

import numpy as np
import pytest

from distilbert.errors import CheckpointError, DataError
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training import store
from distilbert.training.records import MAX_LINE_BYTES, Faults, Record, read
from distilbert.training.store import prepare
from distilbert.training.tasks import TASKS
from tests.support import run_python
from tests.training_data import GOOD, LETTERS, TOKENIZER, jsonl, stored, task


def values(path, faults=None):
    return [(record.line, record.values) for record in read(path, faults)]


def refused(path, faults=None):
    with pytest.raises(DataError) as caught:
        values(path, faults)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


# Files to records.

ROWS = [{"text": "a\u2028b", "label": 1}, {"text": 'x, "y"\nz', "label": 2}, {"text": "é", "label": 3}]


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_jsonl_csv_and_text_are_read_compressed_or_not(tmp_path, suffix, compress):
    as_json = "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS)
    as_csv = '\ufefftext,label\r\n"a\u2028b",1\r\n\r\n"x, ""y""\nz",2\r\né,3\r\n'
    for name, content in (("x.jsonl", as_json), ("x.csv", as_csv), ("x.txt", "one\r\n \n\ntwo")):
        (tmp_path / f"{name}{suffix}").write_bytes(compress(content.encode()))
    assert values(tmp_path / f"x.jsonl{suffix}") == list(zip((1, 3, 5), ROWS, strict=True))
    as_texts = [{**row, "label": str(row["label"])} for row in ROWS]
    assert values(tmp_path / f"x.csv{suffix}") == list(zip((2, 4, 6), as_texts, strict=True))
    assert values(tmp_path / f"x.txt{suffix}") == [(1, {"text": "one"}), (4, {"text": "two"})]


def test_parquet_is_read_in_parts(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    answers = {"text": ["a"], "answer_start": [0]}
    rows = [{"text": f"t{i}", "label": None if i % 7 == 0 else i, "answers": answers} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=700)
    assert values(tmp_path / "x.parquet") == list(enumerate(rows, 1))
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path / "x.parquet").startswith(":1: cannot be read as Parquet")


BAD_LINES = {
    b'{"text": ': ("not JSON", "is not JSON: Expecting value (column 10)."),
    b"[1]": ("not JSON", "must be a JSON object, got list."),
    b'{"label": NaN}': ("not JSON", "is not JSON: NaN is no number of JSON."),
    b'{"label": -Infinity}': ("not JSON", "is not JSON: -Infinity is no number of JSON."),
    b'{"label": 1e999}': ("not JSON", "is not JSON: 1e999 is no number of JSON."),
    b'{"n": ' + b"1" * 5000 + b"}": ("not JSON", "is not JSON: a number of thousands of digits."),
    b"[" * 100_000: ("not JSON", "is not JSON: it is nested too deeply."),
    b'{"text": "\xff"}': ("not UTF-8", "is not UTF-8 text (byte 10); convert it to UTF-8."),
    b'{"text": "' + b"x" * MAX_LINE_BYTES + b'"}': ("line too long", "is longer than 16 MiB; split it."),
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_stops_or_is_skipped_and_counted(tmp_path, line):
    path, (reason, message) = tmp_path / "x.jsonl", BAD_LINES[line]
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n' + line)
    assert refused(path) == f":2: {message}"
    faults = Faults("skip")
    assert values(path, faults) == [(1, {"a": 1}), (3, {"a": 2})]
    assert faults.counts == {reason: 2}
    assert faults.first == [f"{path}:2: {message}", f"{path}:4: {message}"]


BAD_ROWS = {
    b"a,b,c": ("ragged row", "must have 2 values, as the header has, got 3."),
    b"a": ("ragged row", "must have 2 values, as the header has, got 1."),
    b'"a"b,c': ("not CSV", "is not CSV: ',' expected after '\"'."),
    b"\xff,b": ("not UTF-8", "is not UTF-8 text; convert it to UTF-8."),
    b"x" * (MAX_LINE_BYTES + 1): ("line too long", "is longer than 16 MiB; split it."),
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_of_csv_stops_or_is_skipped_and_counted(tmp_path, row):
    path, (reason, message) = tmp_path / "x.csv", BAD_ROWS[row]
    path.write_bytes(b"t,u\n1,2\n" + row + b"\n3," + b"4" * 200_000 + b"\n")
    assert refused(path) == f":3: {message}"
    faults = Faults("skip")
    assert [found["t"] for _, found in values(path, faults)] == ["1", "3"]
    assert faults.counts == {reason: 1}


def test_a_quote_that_never_ends_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b't,u\n1,"' + b"many words\n" * 2_000_000)
    assert refused(path) == ":2: is not CSV: field larger than field limit (16777216)."


def test_a_long_line_is_never_held(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * (5 * MAX_LINE_BYTES) + b'\n{"a": 2}')
    tracemalloc.start()
    assert len(values(path, Faults("skip"))) == 2
    assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_LINE_BYTES
    tracemalloc.stop()


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_a_damaged_compressed_file_is_said_with_its_line(tmp_path, suffix, compress):
    path = tmp_path / f"x.jsonl.{suffix}"
    whole = compress(b'{"a": 1}\n' * 100)
    damaged = ": the compressed file is damaged or ends too early; copy or download it again."
    for content in (whole[:-9], whole[: len(whole) // 2], b"no archive at all"):
        path.write_bytes(content)
        found = refused(path)
        assert found.endswith(damaged)
        assert 1 <= int(found.split(":")[1]) <= 101
        faults = Faults("skip")
        assert len(values(path, faults)) <= 100
        assert faults.counts == {"damaged file": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", ": holds no examples."),
        ("x.jsonl", b"\n \n", ": holds no examples."),
        ("x.csv", b"text,label\n", ": holds no examples."),
        ("x.csv", b"text,text\n", ":1: the header names the column 'text' twice."),
        ("x.json", b"{}", ": must end in .jsonl, .csv, .txt (each also with .gz or .xz) or .parquet to be read."),
        ("x.gz", b"{}", ": must end in .jsonl, .csv, .txt (each also with .gz or .xz) or .parquet to be read."),
    ],
)
def test_files_without_examples_and_of_other_kinds_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == message
    assert refused(tmp_path / name, Faults("skip")) == message


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refused(tmp_path / "no.jsonl") == ": cannot be read: No such file or directory."
    (tmp_path / "folder.jsonl").mkdir()
    assert refused(tmp_path / "folder.jsonl") == ": cannot be read: Is a directory."


# Examples on disk.


def test_any_example_is_read_at_random(tmp_path):
    rows = [{"text": " ".join(LETTERS[: 1 + i % 20]), "label": i % 3} for i in range(2500)]
    found = stored(tmp_path, "text-classification", rows)
    assert len(found) == found.records == 2500
    order = np.random.RandomState(0).permutation(2500)[:300]
    for i, example in zip(order, found.examples(order), strict=True):
        expected = found.task.features(Record("x", 1, rows[i]))[0]
        assert example.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(example[name], array)
            assert example[name].dtype == array.dtype
        assert found.lengths[i] == len(expected["input_ids"])
    with pytest.raises(IndexError, match="the store has 2500 examples, got the number 2500"):
        found.examples([2500])
    found.close()


def test_a_store_that_fits_is_used_again_and_another_is_refused(tmp_path, monkeypatch):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    first = stored(tmp_path, "text-classification", rows)
    monkeypatch.setattr(store, "_build", None)  # nothing is built
    again = stored(tmp_path, "text-classification", rows)
    assert again.fingerprint == first.fingerprint
    assert again.task.settings() == first.task.settings()
    assert again.task.counts.tolist() == [1, 1]
    weighted = stored(tmp_path, "text-classification", rows, class_weights="balanced")  # no example depends on it
    assert weighted.fingerprint == first.fingerprint
    other = DistilBertTokenizerFast(TOKENIZER.vocabulary, model_max_length=64, do_lower_case=False)
    changes = [
        lambda: stored(tmp_path, "text-classification", [*rows, rows[0]]),
        lambda: stored(tmp_path, "text-classification", rows, max_length=32),
        lambda: stored(tmp_path, "text-classification", rows, on_error="skip"),
        lambda: prepare(tmp_path / "store", [tmp_path / "data.jsonl"], TASKS["text-classification"](tokenizer=other)),
    ]
    for change in changes:
        with pytest.raises(DataError, match="was made from other data or settings"):
            change()
    with pytest.raises(
        DataError, match="must be a store of masked-lm in format 1, got text-classification in format 1"
    ):
        stored(tmp_path, "masked-lm", rows)


def test_of_two_that_prepare_the_same_store_the_slower_takes_the_others(tmp_path, monkeypatch):
    rows, build = [{"text": "a", "label": "x"}], store._build

    def build_twice(folder, *arguments, **options):
        monkeypatch.setattr(store, "_build", build)
        prepare(folder, *arguments[:2])
        build(folder, *arguments, **options)

    monkeypatch.setattr(store, "_build", build_twice)
    found = stored(tmp_path, "text-classification", rows)
    assert (len(found), found.task.labels) == (1, ("x",))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists already"):
        prepare(tmp_path / "mine", [tmp_path / "data.jsonl"], task("text-classification"))


def test_a_store_is_rebuilt_where_that_is_asked_for(tmp_path):
    stored(tmp_path, "text-classification", [{"text": "a", "label": "x"}])
    path = jsonl(tmp_path / "data.jsonl", [GOOD["masked-lm"]] * 2)
    (tmp_path / "store" / "notes.txt").write_text("mine")
    found = prepare(tmp_path / "store", [path], task("masked-lm"), rebuild=True)
    assert len(found) == 2
    files = {"counts.bin", "input_ids.bin", "input_ids.offsets", "lengths.bin", "store.json", "MANIFEST.json"}
    assert {file.name for file in (tmp_path / "store").iterdir()} == {*files, "notes.txt"}


def test_a_damaged_store_is_refused_or_rebuilt(tmp_path):
    rows = [{"text": "a", "label": "x"}]
    stored(tmp_path, "text-classification", rows)
    file = tmp_path / "store" / "input_ids.bin"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(CheckpointError, match="is not what was written; remove it and prepare the data again"):
        stored(tmp_path, "text-classification", rows)
    path = tmp_path / "data.jsonl"
    assert len(prepare(tmp_path / "store", [path], task("text-classification"), rebuild=True)) == 1


def test_an_evaluation_has_the_labels_and_counts_of_the_training_data(tmp_path):
    training = stored(tmp_path / "a", "text-classification", [{"text": "a", "label": y} for y in "xyy"])
    path = jsonl(tmp_path / "b.jsonl", [{"text": "b", "label": "y"}])
    evaluated = dataclasses.replace(training.task, evaluation=True)
    found = prepare(tmp_path / "b", [path], evaluated)
    assert (found.task.labels, found.task.counts.tolist()) == (("x", "y"), [1, 2])
    jsonl(path, [{"text": "b", "label": "z"}])
    with pytest.raises(DataError, match=r"b.jsonl:1: 'label' must be one of 'x', 'y', got 'z'"):
        prepare(tmp_path / "c", [path], evaluated)
    alone = prepare(tmp_path / "d", [path], task("text-classification", evaluation=True))
    assert alone.task.labels == ("z",)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_grow_with_the_lines():
    code = """
import re, tempfile
from pathlib import Path
from tests.training_data import jsonl, prepare, task
def peak(lines):
    with tempfile.TemporaryDirectory() as place:
        path = jsonl(Path(place, "x.jsonl"), ({"text": "the cat sat. " * 5, "label": i % 3} for i in range(lines)))
        prepare(Path(place, "store"), [path], task("text-classification")).close()
    return int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1])
print(peak(2000), peak(30_000))
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 3000  # KiB: 236 measured; the examples alone would take 15 000


def test_several_files_are_one_store_and_all_bad_ones_none(tmp_path):
    paths = [jsonl(tmp_path / f"{i}.jsonl", [{"text": "a", "label": i}]) for i in range(3)]
    assert len(prepare(tmp_path / "store", paths, task("text-classification"))) == 3
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n[\n")
    with pytest.raises(
        DataError, match=r"bad.jsonl: no example is left \(not JSON: 2\); the first fault: .*bad.jsonl:1:"
    ):
        prepare(tmp_path / "none", [path], task("text-classification"), on_error="skip")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("masked-lm", {"fields": {"label": "x"}}, "masked-lm has the fields text, got 'label'"),
        ("masked-lm", {"max_length": 65}, "max_length must be at most the tokenizer's 64, got 65"),
        ("masked-lm", {"logit_positions": "some"}, "logit_positions must be one of"),
        ("text-classification", {"problem_type": "guess"}, "problem_type must be one of"),
        ("text-classification", {"labels": ("x", "x")}, "labels must be names that differ"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        task(name, **options)
