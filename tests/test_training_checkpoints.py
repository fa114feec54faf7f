"""Checkpoints of runs: whole or passed over; and what a run must still be, to be gone on with."""

import json

import numpy as np
import pytest

from distilbert.errors import DataError, TrainingError
from distilbert.training.checkpoints import Checkpoints
from distilbert.training.resuming import MAX_ATTEMPTS, changed, count_attempt
from distilbert.training.teacher_cache import TeacherCache

IDENTITY = {"seed": 3}
ARRAYS = {"weight/a": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(7, np.int64)}


def saved(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, keep, IDENTITY)
    for step in steps:
        checkpoints.save(step, {**ARRAYS, "count": np.array(step, np.int64)}, {"tokens": step})
    return checkpoints


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    found = saved(tmp_path, 5, 10, 15).newest()
    assert found.step == 15
    assert (found.progress, found.identity) == ({"tokens": 15}, IDENTITY)
    assert {name: array.dtype for name, array in found.arrays.items()} == {"weight/a": np.float32, "count": np.int64}
    assert found.arrays["weight/a"].tobytes() == ARRAYS["weight/a"].tobytes()
    assert found.arrays["count"] == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


def test_a_step_may_be_saved_again(tmp_path):
    assert saved(tmp_path, 5, 5).newest().step == 5


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none", 2, IDENTITY).newest() is None


def damage(path, how):
    file = path / "state.safetensors"
    if how == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif how == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (path / how).unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "MANIFEST.json", "state.json", "state.safetensors"])
def test_a_damaged_one_is_passed_over_and_named(tmp_path, how):
    checkpoints = saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010", how)
    with pytest.warns(UserWarning, match="step-00000010.*taking the checkpoint before it"):
        assert checkpoints.newest().step == 5
    checkpoints.save(10, ARRAYS, {})  # reached again
    assert checkpoints.newest().step == 10


def test_what_a_killed_process_left_is_removed(tmp_path):
    saved(tmp_path, 5)
    for name in (".step-00000004.removed", f".step-00000006.tmp-{'0' * 32}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{")
    assert Checkpoints(tmp_path, 2, IDENTITY).newest().step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_changed_run_is_refused_by_name():
    former = {"threads": 1, "data": "aa", "betas": [0.9, 0.98]}
    assert changed(former, {"threads": 1, "data": "aa", "betas": (0.9, 0.98)}, ()) == []
    with pytest.raises(TrainingError, match="data was 'aa' and is 'bb'; threads was 1 and is 2"):
        changed(former, {**former, "threads": 2, "data": "bb"}, ())
    with pytest.raises(TrainingError, match="data was"):
        changed(former, {**former, "threads": 2, "data": "bb"}, ("threads",))
    assert changed(former, {**former, "threads": 2}, ("threads",)) == ["threads was 1 and is 2"]
    with pytest.raises(TrainingError, match=r"another one \(config\)\. .*\. config\.dim was 3 and is 4\.$"):
        changed({"config": {"dim": 3, "n": 1}}, {"config": {"dim": 4, "n": 1}}, ())
    with pytest.raises(ValueError, match="allow_changed has weather, and must name some of betas, data, threads"):
        changed(former, former, ("weather",))


def test_a_run_that_never_gets_further_is_given_up(tmp_path):
    for _ in range(MAX_ATTEMPTS):
        count_attempt(tmp_path, 100)
    with pytest.raises(TrainingError, match="begun 5 times at step 100"):
        count_attempt(tmp_path, 100)
    count_attempt(tmp_path, 200)
    assert json.loads((tmp_path / "attempts.json").read_text()) == {"step": 200, "count": 1}


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def test_a_teachers_outputs_are_kept(tmp_path):
    random = np.random.RandomState(0)
    logits, hidden = random.normal(size=(5, 3000)) * 3, random.normal(size=(2, 3, 4))
    cache = TeacherCache(tmp_path, {"teacher": "a"}, top_k=64, temperature=2.0)
    assert cache.get(3, 1) is None
    cache.put(3, 1, {"logits": logits, "hidden": hidden})
    found = TeacherCache(tmp_path, {"teacher": "a"}, top_k=64, temperature=2.0).get(3, 1)
    assert np.allclose(found["hidden"], hidden, atol=2e-3)
    kept = np.argsort(-logits)[:, :64]
    wanted, got = softmax(logits / 2), softmax(found["logits"] / 2)
    assert np.allclose(np.take_along_axis(got, kept, 1), np.take_along_axis(wanted, kept, 1), rtol=3e-3)
    np.put_along_axis(got, kept, 0.0, 1)  # what is left is spread evenly
    assert np.allclose(got.sum(1), 1 - np.take_along_axis(wanted, kept, 1).sum(1), rtol=3e-3)
    assert len({round(x, 9) for x in got[0][got[0] > 0]}) == 1


def test_few_classes_are_kept_whole(tmp_path):
    cache = TeacherCache(tmp_path, {}, top_k=2, temperature=1.0)
    cache.put(1, 0, {"logits": np.arange(12.0).reshape(3, 4)})
    assert (cache.get(1, 0)["logits"] == np.arange(12.0).reshape(3, 4)).all()


def test_another_teachers_cache_is_refused(tmp_path):
    TeacherCache(tmp_path, {"teacher": "a", "seed": 0}, top_k=2, temperature=1.0)
    with pytest.raises(DataError, match=r"another teacher or for other batches \(teacher, temperature\)"):
        TeacherCache(tmp_path, {"teacher": "b", "seed": 0}, top_k=2, temperature=2.0)
