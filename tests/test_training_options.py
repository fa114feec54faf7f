"""Options of training and distillation: each acts, or is refused at the start by name."""

from pathlib import Path

import numpy as np
import pytest

from distilbert.config import DistilBertConfig
from distilbert.training.arguments import DistillationArguments, TrainingArguments
from distilbert.training.checkpoints import Checkpoints
from distilbert.training.data import load_data
from distilbert.training.models import check_fit, check_length, load_model
from distilbert.training.objective import Objective
from distilbert.training.teacher_cache import TeacherCache, check_cacheable
from tools.tiny_runs import HEADS, make_model, write_examples


def arguments(folder, task, kind=TrainingArguments, **more):
    model = make_model(folder / "model", HEADS[task])
    data = write_examples(folder / "train.jsonl", task, 12)
    return kind(**{"model": str(model), "task": task, "train_data": (data,), "out": folder / "out", **more})


def test_classes_are_weighed_by_their_names(tmp_path):
    data = load_data(arguments(tmp_path, "text-classification", class_weights="animals=2, numbers=0.5"))
    weights = dict(zip(data.task.config_changes["id2label"].values(), data.task.class_weights, strict=True))
    assert weights == {"animals": 2.0, "colours": 1.0, "numbers": 0.5}


@pytest.mark.parametrize("text", ["animals=2,colours", "cats=2", "animals=much"])
def test_class_weights_that_cannot_be_read_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="class_weights must be balanced, or LABEL=NUMBER"):
        load_data(arguments(tmp_path, "text-classification", class_weights=text))


def test_a_bad_first_line_is_skipped_where_bad_lines_are(tmp_path):
    given = arguments(tmp_path, "sentence-embedding", on_error="skip")
    path = given.train_data[0]
    path.write_text("no JSON\n" + path.read_text())
    data = load_data(given)
    assert (len(data.train), data.train.skipped) == (12, {"not JSON": 1})


def test_paths_may_be_texts():
    given = DistillationArguments(
        model="m", task="masked-lm", train_data="a.jsonl", eval_data=["b.jsonl"], out="o", teacher_cache="c"
    )
    assert (given.train_data, given.eval_data) == ((Path("a.jsonl"),), (Path("b.jsonl"),))
    assert (given.out, given.teacher_cache) == (Path("o"), Path("c"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", ["a", "b"], r"labels must be a text, got \['a', 'b'\]"),
        ("layers", (0,), r"layers must be a text, got \(0,\)"),
        ("learning_rate", None, "learning_rate must be given, got None"),
        ("gradient_checkpointing", 1, "gradient_checkpointing must be True or False, got 1"),
    ],
)
def test_values_that_the_command_line_cannot_give_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(model="m", task="text-classification", train_data="a.jsonl", out="o", **{name: value})


def test_labels_keep_the_rows_that_they_had_under_their_names(tmp_path):
    former = {0: "animals", 1: "colours", 2: "numbers"}
    model = make_model(tmp_path / "model", HEADS["text-classification"], id2label=former)
    data = write_examples(tmp_path / "train.jsonl", "text-classification", 12)
    given = TrainingArguments(model=model, task="text-classification", train_data=data, out=tmp_path / "out")
    rows = {}
    for names in (("animals", "colours", "numbers"), ("numbers", "animals", "songs"), ("LABEL_0", "LABEL_1")):
        loaded = load_model(given, "pt", HEADS[given.task], {"id2label": dict(enumerate(names))})
        weights = loaded.weights_by_name()
        rows[names] = dict(zip(names, weights["classifier.weight"], strict=True))
    first, second, third = rows.values()
    for name in ("numbers", "animals"):
        np.testing.assert_array_equal(second[name], first[name])
    assert np.abs(second["songs"] - first["colours"]).max() > 0.01
    assert len(third) == 2


def test_lists_in_cells_are_several_labels(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,label\nthe cat,"[""animals"",""colours""]"\nthe dog,[]\n')
    given = arguments(tmp_path, "text-classification", train_data=path)
    task = load_data(given).task
    assert (task.problem, task.labels) == ("multi_label_classification", ("animals", "colours"))


def test_a_mask_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mask_probability must be a number above 0 and at most 1, got 0"):
        TrainingArguments(model="m", task="masked-lm", train_data=(Path("a.jsonl"),), out=Path("o"), mask_probability=0)


def test_embeddings_of_unlike_width_are_not_compared():
    narrow, wide = DistilBertConfig(dim=32, n_heads=4), DistilBertConfig(dim=64, n_heads=4)
    with pytest.raises(ValueError, match="squared error compares embeddings of one width, got dim=32 and 64"):
        check_fit(narrow, wide, Objective("sentence_embedding", 0.0, alpha_mse=1.0))
    check_fit(narrow, wide, Objective("masked_lm", alpha_mse=1.0))


def test_a_student_must_read_the_longest_rows():
    student = DistilBertConfig(max_position_embeddings=16)
    check_length(student, 16)
    with pytest.raises(ValueError, match="at most the student's 16 positions, got 17"):
        check_length(student, 17)


def test_a_cache_of_distributions_does_not_serve_the_squared_error():
    check_cacheable(Objective("masked_lm", alpha_kl=1.0), 30522, 64)
    check_cacheable(Objective("masked_lm", alpha_mse=1.0), 1000, 64)
    for task, vocab_size in (("masked_lm", 30522), ("question_answering", 1000)):
        with pytest.raises(ValueError, match=f"keeps the distributions of {task}"):
            check_cacheable(Objective(task, alpha_mse=1.0), vocab_size, 64)


def test_the_least_logit_is_kept_without_a_warning(tmp_path):
    cache = TeacherCache(tmp_path, {}, top_k=2, temperature=1.0)
    lowest = np.finfo(np.float32).min
    found = cache.put(1, 0, {"logits": np.array([[1.0, lowest]], np.float32)})
    assert found["logits"].tolist() == [[1.0, -np.inf]]


def test_checkpoints_after_a_damaged_one_stay(tmp_path):
    arrays = {"weight/a": np.ones(3, np.float32)}
    Checkpoints(tmp_path, 1, {}).save(1000, arrays, {})
    (tmp_path / "step-00001000" / "state.safetensors").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, 1, {})
    checkpoints.save(100, arrays, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000100"]
    assert checkpoints.newest().step == 100


def test_a_whole_checkpoint_is_not_written_again(tmp_path):
    arrays = {"weight/a": np.ones(3, np.float32)}
    checkpoints = Checkpoints(tmp_path, 1, {})
    checkpoints.save(5, arrays, {"tokens": 1})
    before = (tmp_path / "step-00000005").stat().st_ino
    checkpoints.save(5, arrays, {"tokens": 1})
    assert (tmp_path / "step-00000005").stat().st_ino == before
