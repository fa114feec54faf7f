"""What the command line refuses before a run begins: one line that says what is wrong and where."""

import json
import shutil

import pytest

from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.support import run_cli
from tools.tiny_runs import HEADS, SPECIAL, WORDS, make_model, write_examples

GOOD = {"text": "the cat is red .", "label": "animals"}
OTHER = {"text": "the red is a cat .", "label": "colours"}
LONG = json.dumps({"text": "a" * (20 << 20), "label": "animals"})
LINES = {
    "not-json": ("{'text': 1}", "is not JSON: Expecting property name enclosed in double quotes (column 2)."),
    "no-field": ('{"label": "animals"}', "has no value for 'text'; its fields are 'label'."),
    "long-line": (LONG, "is longer than 16 MiB; split it."),
    "nan": ('{"text": "a", "label": NaN}', "is not JSON: NaN is no number of JSON."),
    "empty-text": ('{"text": "a", "label": ""}', "has no value for 'label'; its fields are 'text', 'label'."),
    "other-label": ('{"text": "a", "label": "songs"}', "'label' must be one of 'animals', 'colours', got 'songs'."),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and its data."""
    folder = tmp_path_factory.mktemp("refusals")
    make_model(folder / "model", HEADS["text-classification"], n_layers=1, problem_type="single_label_classification")
    make_model(folder / "teacher", HEADS["masked-lm"], n_layers=2)
    make_model(folder / "narrow", HEADS["masked-lm"], n_layers=1, dim=16)
    make_model(folder / "few-words", HEADS["masked-lm"], n_layers=1, vocab_size=len(WORDS) - 1)
    make_model(folder / "other-words", HEADS["masked-lm"], n_layers=1)
    swapped = [*SPECIAL, *WORDS[6:4:-1], *WORDS[7:]]
    DistilBertTokenizerFast({word: i for i, word in enumerate(swapped)}).save_pretrained(folder / "other-words")
    write_examples(folder / "masked-lm.jsonl", "masked-lm", 20)
    write_lines(folder / "good.jsonl", [GOOD, OTHER] * 6)
    return folder


def write_lines(path, lines):
    path.write_text("".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def train(place, tmp_path, data, *options):
    """With names of labels, so that each label is checked as it is read."""
    names = ("--labels", "animals,colours")
    files = ("--train-data", data, "--out", tmp_path / "run")
    numbers = ("--max-steps", 2, "--batch-size", 4, "--backend", "pt")
    return run_cli("train", place / "model", "--task", "text-classification", *files, *numbers, *names, *options)


def distill(place, tmp_path, *options, teacher="teacher", task="masked-lm", data="masked-lm"):
    files = ("--train-data", place / f"{data}.jsonl", "--out", tmp_path / "run")
    numbers = ("--max-steps", 2, "--batch-size", 4, "--backend", "pt")
    return run_cli("distill", place / teacher, "--task", task, *files, *numbers, *options)


def one_line(result):
    """The message of a run that was refused: its only output."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("fault", LINES)
def test_a_bad_line_is_said_with_file_and_number(place, tmp_path, fault):
    line, message = LINES[fault]
    data = write_lines(tmp_path / "data.jsonl", [GOOD, OTHER, line, GOOD])
    assert one_line(train(place, tmp_path, data)) == f"{data}:3: {message}"
    assert one_line(train(place, tmp_path, place / "good.jsonl", "--eval-data", data)) == f"{data}:3: {message}"


def test_bad_lines_can_be_skipped_and_are_counted(place, tmp_path):
    bad = [line for line, _ in LINES.values()]
    data = write_lines(tmp_path / "data.jsonl", [GOOD, *bad, *[OTHER, GOOD] * 4])
    judged = write_lines(tmp_path / "eval.jsonl", [GOOD, OTHER, LINES["other-label"][0]])
    code, out, err = train(place, tmp_path, data, "--on-error", "skip", "--eval-data", judged)
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert sum(report["skipped_examples"].values()) == len(bad)
    assert "skipped 2 examples: not JSON" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", "", "holds no examples."),
        ("data.jsonl", "\n \n", "holds no examples."),
        ("missing.jsonl", None, "cannot be read: No such file or directory."),
        ("data.xml", "<a/>", "must end in .jsonl"),
    ],
)
def test_a_file_without_examples_is_refused(place, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    for options in ((), ("--on-error", "skip")):
        assert one_line(train(place, tmp_path, tmp_path / name, *options)).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--metric", "beauty", "--eval-data", "good.jsonl"),
            "metric must be one of accuracy, f1_macro, f1_micro, f1_weighted, loss, got 'beauty'.",
        ),
        (("--class-weights", "animals=2,songs=3"), "class_weights must be balanced, or LABEL=NUMBER"),
        (("--class-weights", "animals=heavy"), "class_weights must be balanced, or LABEL=NUMBER"),
        (("--class-weights", "animals=2,colours"), "class_weights must be balanced, or LABEL=NUMBER"),
        (("--class-weights", "animals=nan"), "class_weights must be 'balanced' or a number from 0 to 1e+06"),
        (("--class-weights", "animals=-1"), "class_weights must be 'balanced' or a number from 0 to 1e+06"),
        (("--max-length", 65), "max_length must be at most the model's 64, got 65."),
        (("--patience", 2), "patience needs eval_data, which is not given."),
        (("--metric", "loss"), "metric needs eval_data, which is not given."),
        (("--stride", 4), "stride is for question-answering: leave it out for text-classification."),
        (("--mask-smoothing", 0), "mask_smoothing is for masked-lm: leave it out for text-classification."),
        (("--task", "multiple-choice"), "labels is for text-classification and token-classification: leave it out"),
        (("--threads", 100_000), "threads must be a whole number of at least 1 and at most"),
        (("--devices", 1000), "devices must be a whole number of at least 1 and at most 64, got 1000."),
        (("--dropout", 1), "dropout must be a number of at least 0 and below 1, got 1.0."),
        (("--class-weights", "animals=1e300"), "class_weights must be 'balanced' or a number from 0 to 1e+06"),
        (("--class-weights", "animals=1,animals=2"), "class_weights must be balanced, or LABEL=NUMBER"),
        (("--field", "text=text", "--field", "text=label"), "field must name each field once, got text=text, text"),
        (("--problem-type", "multi_label_classification"), "'label' must be a list of labels, got 'animals'."),
        (("--learning-rate", "nan"), "learning_rate must be a number above 0, got nan."),
        (("--task", "poetry"), "task must be one of text-classification"),
        (("--field", "text"), "field must be FIELD=COLUMN"),
        (("--field", "text=title"), "has no value for 'title'"),
        (("--labels", "animals,animals"), "labels must"),
    ],
    ids=lambda part: "-".join(map(str, part)).strip("-") if isinstance(part, tuple) else "",
)
def test_a_wrong_argument_is_refused_at_the_start(place, tmp_path, options, message):
    options = [place / option if option == "good.jsonl" else option for option in options]
    assert message in one_line(train(place, tmp_path, place / "good.jsonl", *options))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "model"}, "model: a teacher of masked-lm must be a DistilBertForMaskedLM: train it first."),
        (
            {"task": "text-classification"},
            "teacher of text-classification must be a DistilBertForSequenceClassification",
        ),
        (
            {"student": "few-words"},
            f"student and teacher must have one vocabulary, got vocab_size={len(WORDS) - 1} and",
        ),
        ({"student": "narrow"}, "the cosine loss compares hidden states of one width, got dim=16 and 32"),
        (
            {"student": "other-words"},
            "student and teacher must have one vocabulary, but 'cat' has the id 6 in the student's and 5 in the",
        ),
        ({"student": "other-words", "layers": "0"}, "layers and student_init make a student of the teacher"),
        ({"labels": "a,b", "task": "text-classification"}, "labels are those of the teacher: leave them out."),
        ({"cache-top-k": 8}, "cache_top_k needs teacher_cache, which is not given."),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_at_the_start(place, tmp_path, options, message):
    options = dict(options)
    given = {name: options.pop(name) for name in ("teacher", "task") if name in options}
    if "student" in options:
        options["student"] = place / options["student"]
    extra = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert message in one_line(distill(place, tmp_path, *extra, **given))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["model/model.safetensors", "log.jsonl", "report.json"])
def test_what_no_run_has_written_is_not_written_over(place, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    found = one_line(train(place, tmp_path, place / "good.jsonl"))
    assert found == f"{tmp_path / 'run'}: holds {name.split('/')[0]}, and not from a run; choose another folder."
    assert path.read_text() == "precious"


def test_a_run_that_is_done_misses_its_model(place, tmp_path):
    assert train(place, tmp_path, place / "good.jsonl")[::2] == (0, "")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    data = weights.read_bytes()
    for damage in (
        lambda: weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
        lambda: shutil.rmtree(weights.parent),
    ):
        damage()
        message = one_line(train(place, tmp_path, place / "good.jsonl"))
        assert message.startswith(
            f"{weights.parent}: the run is done, but its model is gone or damaged; remove checkpoints beside it to"
        )
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert train(place, tmp_path, place / "good.jsonl")[::2] == (0, "")
    assert weights.read_bytes() == data


def test_classes_can_be_weighed(place, tmp_path):
    for number, weights in enumerate(("animals=2,colours=0.5", "balanced")):
        options = ("--class-weights", weights)
        assert train(place, tmp_path / str(number), place / "good.jsonl", *options)[::2] == (0, "")


def test_a_student_of_another_width_needs_no_cosine(place, tmp_path):
    assert distill(place, tmp_path, "--student", place / "narrow", "--alpha-cos", 0)[::2] == (0, "")
