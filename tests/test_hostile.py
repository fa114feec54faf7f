"""The hostile corpus: every bad folder ends in one named error, quickly, and nothing in it is followed or executed.

All folders are read once in one watched process (`python -m tests.hostile`), under strace where that is installed, and
once each through the command line in this one.
"""

import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer.main

from distilbert.checkpoint.opening import open_checkpoint
from distilbert.errors import MAX_MESSAGE
from tests.hostile import accepted, base, files, hdf5, msgpack, settings, shards, torch_bin
from tests.hostile import safetensors as safetensors_cases
from tests.hostile.__main__ import BEGIN
from tests.support import ROOT, find_strace, run_cli

MODULES = (files, settings, safetensors_cases, torch_bin, hdf5, msgpack, shards)
CASES = {case.name: case for module in MODULES for case in module.CASES}
ACCEPTED = {case.name: case for case in accepted.CASES}

SECONDS = 8.0  # of processor time: 2 on a machine of its own, where the slowest case takes 0.6; a busy one takes triple
MEMORY = 256 << 20  # beside three times the size of the folder
TRACED = "trace=open,openat,execve,execveat,connect,fork,vfork"


class Corpus:
    """The folders of all cases, what the watched process made of them, and its log of system calls."""

    def __init__(self, root):
        self.root, self.good = root, root / "good"
        base.make_good(self.good)
        self.places = {name: root / "cases" / f"{i:04}" for i, name in enumerate(CASES | ACCEPTED)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries say that nobody should write such files
            for name, case in (CASES | ACCEPTED).items():
                base.make(case, self.good, self.places[name])
        self.before = {name: tree(self.places[name]) for name in CASES}
        self.results, self.log = self._read_all()

    def _read_all(self):
        strace, log = find_strace(), self.root / "log"
        watched = [strace, "-f", "--seccomp-bpf", "-e", TRACED, "-s", "4096", "-o", log] if strace else []
        done = subprocess.run(
            [*watched, sys.executable, "-m", "tests.hostile", self.root / "cases", self.good],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
            env=os.environ | {"HDF5_PLUGIN_PATH": str(self.root / "plugins")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout), log.read_text("utf-8", "replace") if strace else ""


def tree(folder):
    """What lies in a folder, to the byte (to the time of change for what is large)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        entry = path.lstat()
        if path.is_symlink():
            found[path] = path.readlink()
        elif path.is_file():
            found[path] = path.read_bytes() if entry.st_size < 1 << 20 else (entry.st_size, entry.st_mtime_ns)
        else:
            found[path] = entry.st_mode
    return found


@pytest.fixture(scope="module", autouse=True)
def one_command():
    """The command line's parser, built once instead of at every call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    yield Corpus(root)
    shutil.rmtree(root)


def test_the_corpus_is_large():
    formats = collections.Counter(case.format for case in CASES.values())
    assert len(CASES) > 600
    assert min(formats.values()) > 40
    assert len(CASES) == sum(len(module.CASES) for module in MODULES), "two cases of one name"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_folder_is_refused(name, corpus):
    found, place = corpus.results[corpus.places[name].name], corpus.places[name]
    message = found["message"]
    assert (found["kind"] or found["error"]) in CASES[name].kinds, found
    assert len(message) <= MAX_MESSAGE
    assert message.isprintable()
    size = sum(path.stat().st_size for path in (place / "in").rglob("*") if path.is_file() and not path.is_symlink())
    assert found["seconds"] < SECONDS
    assert found["memory"] <= 3 * size + MEMORY
    assert found["modules"] == []
    assert found["events"] == []
    assert not [path for path in found["opened"] if not is_allowed(path, corpus.root)]
    code, out, err = run_cli("convert", place / "in", place / "out", "--to", "flax-msgpack")
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"
    assert tree(place) == corpus.before[name]


def is_allowed(path, root):
    """Whether reading a case may open this: what belongs to the case, to Python, or to the watch itself."""
    path = os.path.normpath(path)
    if path.startswith(f"{root}/cases/"):
        return base.OUTSIDE not in Path(path).parts
    return path.startswith(("/proc/self/status", "/proc/self/clear_refs"))


def test_nothing_else_is_opened_executed_or_reached(corpus):
    """The log of system calls, from the first case on; Python's audit events say so where there is no strace."""
    calls = corpus.log.partition(BEGIN)[2].splitlines()[1:]
    opened = [re.search(r'open(?:at)?\((AT_FDCWD|\d+)?,? ?"(.*?)"', call) for call in calls]
    assert not [call for call, match in zip(calls, opened, strict=True) if match is None and "+++ exited" not in call]
    paths = [match[2] for match in opened if match and not match[1].isdecimal()]  # else: below an open folder
    assert not [path for path in paths if not is_allowed(path, corpus.root)]
    if corpus.log:
        assert len(paths) > len(CASES)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_folder_that_only_looks_hostile_loads_the_same_bits(name, corpus):
    found, place = corpus.results[corpus.places[name].name], corpus.places[name]
    assert found["error"] == "", found
    assert (found["modules"], found["events"]) == ([], [])
    assert not [path for path in found["opened"] if not is_allowed(path, corpus.root)]
    loaded = dict(open_checkpoint(place / "out", base.HEAD))
    assert loaded.keys() == base.WEIGHTS.keys()
    assert all(loaded[tensor].tobytes() == array.tobytes() for tensor, array in base.WEIGHTS.items())
    copied = {path.name for path in (place / "out").iterdir()} & {path.name for path in (place / "in").iterdir()}
    assert copied <= {"config.json", "model.safetensors", "vocab.txt", "modules.json", "1_Pooling"}
    config = json.loads((place / "out" / "config.json").read_text())
    assert not config.keys() & {"auto_map", "trust_remote_code", "_attn_implementation"}
