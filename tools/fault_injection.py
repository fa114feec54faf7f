"""Is a save all or nothing? A fault at every system call, kills at random moments, two writers, readers meanwhile.

Run by `make faults` (long; by hand) and, sampled, by tests/test_publishing.py. strace injects the faults into a forked
child: it kills it before the n-th call of a kind, or lets that call fail with ENOSPC or EIO, once or from then on. The
folder must then be the old one or the new one, byte for byte, the user's files in it included. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from distilbert.checkpoint import publishing
from distilbert.checkpoint.folder import FORMATS, WRITABLE
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError, DistilBertError
from distilbert.initialization import initial_weights
from weights_convert.convert import convert

HEAD = "DistilBertForSentenceEmbedding"  # writes a subfolder too
CONFIG = DistilBertConfig(vocab_size=600, max_position_embeddings=16, n_layers=1, n_heads=2, dim=32, hidden_dim=64)
WEIGHTS = {variant: initial_weights(CONFIG, HEAD, seed=variant) for variant in (0, 1, 2)}
SHARD = 40_000  # bytes: three shards
NAME = "model"  # of the folder that is saved to
USERS = {"notes.txt": "mine", "vocab.txt": "[PAD]\n", "logs/run/1.txt": "loss 2.5"}

CHANGING = (
    *("openat", "write", "pwrite64", "pwritev", "ftruncate", "fallocate", "copy_file_range", "sendfile", "close"),
    *("fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink"),
    *("unlinkat", "rmdir", "mkdir", "mkdirat", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat"),
    *("utimensat", "flock", "setxattr"),
)
LOOKING = ("getdents64", "read", "pread64", "stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat2")
CALLS = CHANGING + LOOKING
CLEANING = ("unlink", "unlinkat", "rmdir", "getdents64", "openat", "newfstatat", "lstat", "close", "fstat", "statx")
KILL = "signal=KILL"
FAULTS = (KILL, "error=ENOSPC", "error=EIO", "error=EIO+")  # with +, every call from the n-th on
LOOKING_FAULTS = ("error=EIO",)  # of calls that change nothing

State = dict[str, object]  # of a folder: by path, what a file holds, where a link leads
Act = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A save: `before` makes the folder that `act` finds. `loose`: it may leave one that loading refuses."""

    name: str
    before: Act
    act: Act
    loose: bool = False


def save(folder: Path, variant: int, format: str = WRITABLE[0], shard_size: int | None = None) -> None:  # noqa: A002
    """Save one of three models, whose config.json says which it is."""
    config = CONFIG.replace(extra={"variant": variant})
    save_checkpoint(folder, format, HEAD, config, WEIGHTS[variant], PoolingConfig(), shard_size=shard_size)


def save_moving(folder: Path, variant: int, shard_size: int | None = None) -> None:
    """The same where folders cannot be exchanged."""
    with mock.patch.object(publishing, "exchange", return_value=False):
        save(folder, variant, shard_size=shard_size)


def old(folder: Path, format: str = WRITABLE[0], shard_size: int | None = None) -> None:  # noqa: A002
    """The folder of a user, who keeps other things in it."""
    save(folder, 0, format, shard_size)
    for name, text in USERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir(mode=0o700)
    (folder / "link").symlink_to("notes.txt")


def nothing(_: Path) -> None:
    """There is no folder yet."""


def cases(source: Path) -> Iterator[Case]:
    """Every format, whole and in shards, saved and converted, by exchange and file by file."""
    save(source, 1)
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    for name in WRITABLE:
        yield Case(f"save {name}", lambda f, n=name: old(f, n), lambda f, n=name: save(f, 1, n))
        yield Case(f"convert to {name}", nothing, lambda f, n=name: convert(source, f, to=n))
        if is_sharded(name):
            yield Case(f"save {name} in shards", lambda f, n=name: old(f, n), lambda f, n=name: save(f, 1, n, SHARD))
    yield Case("save whole over shards", lambda f: old(f, shard_size=SHARD), lambda f: save(f, 1))
    yield Case("move", old, lambda f: save_moving(f, 1), loose=True)
    yield Case("move shards over whole", old, lambda f: save_moving(f, 1, SHARD), loose=True)
    yield Case("move whole over shards", lambda f: old(f, shard_size=SHARD), lambda f: save_moving(f, 1), loose=True)


def is_sharded(name: str) -> bool:
    """Whether a format can be written in shards."""
    try:
        FORMATS[name].check_shard_size(SHARD)
    except ValueError:
        return False
    return True


def state(folder: Path) -> State:
    """All that a user can see of a folder."""
    found: State = {}
    for place, folders, names in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *names)):
            mode = path.lstat().st_mode
            content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(folder))] = (stat.filemode(mode), content)
    return found


class Scene:
    """A place with the old folder of a case, made anew for every trial, and the states that it may be in."""

    def __init__(self, case: Case, work: Path) -> None:
        self.case, self.template, self.place = case, work / "template", work / "place"
        for folder in (self.template, self.place):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        case.before(self.template / NAME)
        self.old = state(self.template)
        self.reset()
        case.act(self.folder)  # also imports what it needs, before anything is counted
        self.new = state(self.place)

    @property
    def folder(self) -> Path:
        """What is saved to."""
        return self.place / NAME

    def reset(self) -> None:
        """Make the old folder again."""
        shutil.rmtree(self.place)
        shutil.copytree(self.template, self.place, symlinks=True)

    def start(self, pipe: int | None = None) -> int:
        """Save in a forked child, once it has read from `pipe`: exit code 3 for an error, as the command line has."""
        if child := os.fork():
            return child
        code = 70
        try:
            ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody
            if pipe is not None:
                os.read(pipe, 1)
            self.case.act(self.folder)
            code = 0
        except (OSError, DistilBertError):
            code = 3
        finally:
            os._exit(code)

    def verdict(self, code: int) -> str:
        """What the folder is after a save that ended with `code`; "bad: ..." for what must not be."""
        found = {path: entry for path, entry in state(self.place).items() if path.split("/")[0] == NAME}
        known = "new" if found == self.new else "old" if found == self.old else "third"
        if known == "third" and self.case.loose and loaded(self.folder) == "refused":
            known = "refused"
        if known == "third" or code not in (0, 3, -signal.SIGKILL) or (code == 0 and known != "new"):
            return f"bad: {known}, exit code {code}"
        return known


def loaded(folder: Path) -> str:
    """What loading the folder gives: the variant, "mixed", or "refused" when it was told that a save is incomplete."""
    try:
        checkpoint = open_checkpoint(folder, HEAD)
        tensors, config = dict(checkpoint), checkpoint.config.extra
    except CheckpointError as error:
        if error.kind not in ("IncompleteSave", "IntegrityMismatch"):
            raise
        return "refused"
    for variant, weights in WEIGHTS.items():
        if config.get("variant", variant) == variant and all((tensors[n] == a).all() for n, a in weights.items()):
            return str(variant)
    return "mixed"


def traced(scene: Scene, log: Path, *options: str) -> int:
    """Save under strace; the exit code, or minus the signal's number."""
    reader, writer = os.pipe()
    child = scene.start(reader)
    names = ",".join(f"?{name}" for name in CALLS)
    command = ["strace", "-f", "-y", "-o", str(log), "-p", str(child), "-e", f"trace={names}", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:  # noqa: S603 - our own command
        line = tracer.stderr.readline() if tracer.stderr else ""
        if "attached" not in line:
            os.kill(child, signal.SIGKILL)
            sys.exit(f"strace cannot trace a child of this process here: {line}")
        os.write(writer, b"x")
        code = exit_code(child)
    os.close(reader)
    os.close(writer)
    return code


def calls(log: Path) -> list[tuple[str, str, str]]:
    """Name, arguments and result of every call of a trace."""
    matches = (re.match(r"\d+ +(\w+)\((.*)\) += (.*)", line) for line in log.read_text(errors="replace").splitlines())
    return [(match[1], match[2], match[3]) for match in matches if match]


def points(log: Path) -> list[tuple[str, int]]:
    """Every call of a trace, as its name and its number among those of that name."""
    counts: collections.Counter[str] = collections.Counter()
    found: list[tuple[str, int]] = []
    for name, _, _ in calls(log):
        counts[name] += 1
        found.append((name, counts[name]))
    return found


def sweep(scene: Scene, log: Path, sample: int | None) -> collections.Counter[str]:
    """Every fault at every call, or a sample of them; how often the folder was what."""
    scene.reset()
    traced(scene, log)
    trials = [(fault, name, n) for name, n in points(log) for fault in (FAULTS if name in CHANGING else LOOKING_FAULTS)]
    if sample is not None:
        trials = random.sample(trials, min(len(trials), sample))
    found: collections.Counter[str] = collections.Counter(trials=len(trials))
    for fault, name, n in trials:
        scene.reset()
        kind, everafter = fault.rstrip("+"), "+" if fault.endswith("+") else ""
        code = traced(scene, log, "-e", f"inject={name}:{kind}:when={n}{everafter}")
        verdict = scene.verdict(code)
        left = [entry.name for entry in scene.place.iterdir() if entry.name != NAME]
        if left and fault != KILL and name not in CLEANING:
            verdict = f"bad: {left} left behind"
        found[verdict] += 1
        if verdict.startswith("bad"):
            say(f"  {fault} at {name} {n}: {verdict}")
    return found


def kills(scene: Scene, count: int) -> collections.Counter[str]:
    """SIGKILL at random moments, then a save that clears away what they left."""
    scene.reset()
    started = time.monotonic()
    os.waitpid(scene.start(), 0)
    duration = time.monotonic() - started
    found: collections.Counter[str] = collections.Counter(trials=count)
    for _ in range(count):
        shutil.rmtree(scene.folder, ignore_errors=True)
        shutil.copytree(scene.template, scene.place, symlinks=True, dirs_exist_ok=True)
        child = scene.start()
        time.sleep(random.uniform(0, duration))  # noqa: S311 - a test
        os.kill(child, signal.SIGKILL)
        found[scene.verdict(exit_code(child))] += 1
    for entry in scene.place.iterdir():
        os.utime(entry, (0, 0))  # long ago
    shutil.rmtree(scene.folder, ignore_errors=True)
    if exit_code(scene.start()) or [entry.name for entry in scene.place.iterdir()] != [NAME]:
        found["bad: orphans stay"] += 1
    return found


def order(scene: Scene, log: Path) -> list[str]:
    """Where a save breaks the rules that make it survive a power cut, from a trace of its calls.

    What is written is synced before it gets its name, and so is a folder; nothing under its final name is opened to be
    written; the folder in which names changed is synced before the end.
    """
    scene.reset()
    traced(scene, log)
    broken: list[str] = []
    dirty: set[Path] = set()
    for name, arguments, result in calls(log):
        paths = [Path(path) for path in re.findall(r'"([^"]*)"', arguments)]
        handle = re.match(r"\d+<([^>]*)>", arguments)
        if result.startswith("-1"):
            continue
        if name in ("write", "pwrite64", "pwritev", "ftruncate", "fallocate", "sendfile") and handle:
            dirty.add(Path(handle[1]))
        elif name in ("fsync", "fdatasync") and handle:
            dirty.discard(Path(handle[1]))
        elif name == "openat" and re.search("O_WRONLY|O_RDWR|O_TRUNC|O_CREAT", arguments):
            dirty |= {paths[0], paths[0].parent}
            if paths[0].is_relative_to(scene.folder):
                broken.append(f"opens {paths[0]} for writing")
        elif name.startswith("rename"):
            broken += [f"renames {path}, which is not synced" for path in dirty if path.is_relative_to(paths[0])]
            dirty |= {path.parent for path in paths}
        elif name.startswith(("link", "mkdir", "symlink")):
            dirty.add(paths[-1].parent)
    broken += [f"ends before {path} is synced" for path in dirty if path.is_relative_to(scene.folder)]
    return broken + [f"ends before {path} is synced" for path in dirty if path == scene.place]


def races(work: Path, count: int) -> collections.Counter[str]:
    """Two writers at once: the folder is what one of them would have left alone, or what the other would have."""
    rivals = {
        "whole": (old, lambda f: save(f, 2)),
        "shards": (old, lambda f: save(f, 2, shard_size=SHARD)),
        "another format": (nothing, lambda f: save(f, 2, WRITABLE[-1])),
    }
    found: collections.Counter[str] = collections.Counter()
    for rival, (before, act) in rivals.items():
        one = Scene(Case("one", before, lambda f: save(f, 1)), work / "one")
        other = Scene(Case("other", before, act), work / "other")
        other.place = one.place
        for _ in range(count):
            one.reset()
            reader, writer = os.pipe()
            children = [scene.start(reader) for scene in (one, other)]
            os.write(writer, b"xx")
            codes = [exit_code(child) for child in children]
            verdicts = [scene.verdict(code) for scene, code in zip((one, other), codes, strict=True)]
            good = "new" in verdicts and (codes == [0, 0] or (rival == "another format" and 0 in codes))
            found[f"race with {rival}: " + ("one of two" if good else f"bad: {verdicts} {codes}")] += 1
            os.close(reader)
            os.close(writer)
    return found


def readers(work: Path, seconds: float) -> collections.Counter[str]:
    """Four readers beside a writer that saves one model and another, whole and in shards, without a pause."""
    folder = work / NAME
    old(folder)
    stop = time.monotonic() + seconds
    found: collections.Counter[str] = collections.Counter()
    reader, writer = os.pipe()
    writers = [fork(lambda: save_alternately(folder, stop))]
    children = writers + [fork(lambda: os.write(writer, read_again_and_again(folder, stop))) for _ in range(4)]
    found["bad: exit codes"] = sum(map(bool, map(exit_code, children)))
    os.close(writer)
    for line in os.fdopen(reader):
        found[line.strip()] += 1
    return found


def fork(act: Callable[[], object]) -> int:
    """Run `act` in a child."""
    if child := os.fork():
        return child
    code = 70
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    """The exit code of a child, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_alternately(folder: Path, stop: float) -> None:
    """Replace one model by another until the time has come."""
    while time.monotonic() < stop:
        save(folder, 1)
        save(folder, 2, shard_size=SHARD)


def read_again_and_again(folder: Path, stop: float) -> bytes:
    """A line for every load."""
    lines: list[str] = []
    while time.monotonic() < stop:
        found = loaded(folder)
        lines.append("whole" if found in ("0", "1", "2") else f"bad: {found}")
    return "".join(f"{line}\n" for line in lines).encode()


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report(name: str, found: collections.Counter[str]) -> int:
    """Print a row; how many were bad."""
    trials = found.pop("trials", found.total())
    say(f"{name:32} {trials:6}  " + ", ".join(f"{count} {what}" for what, count in sorted(found.items()) if count))
    return sum(count for what, count in found.items() if "bad" in what)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every trial and end with 1 if any was bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    parser.add_argument("--sample", type=int, help="faults per case; default all, and without strace 0")
    parser.add_argument("--kills", type=int, default=200, help="per case")
    parser.add_argument("--races", type=int, default=50, help="per pair of writers")
    parser.add_argument("--seconds", type=float, default=60, help="of reading beside a writer")
    parser.add_argument("--place", help="folder to work in; default the system's for temporary files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    bad = 0
    with tempfile.TemporaryDirectory(dir=options.place) as scratch:
        work = Path(os.path.realpath(scratch))
        for case in cases(work / "source"):
            if options.only in case.name:
                scene = Scene(case, work)
                if options.sample != 0:
                    broken = order(scene, work / "log")
                    bad += report(f"{case.name}: order", collections.Counter(f"bad: {one}" for one in broken))
                    bad += report(f"{case.name}: faults", sweep(scene, work / "log", options.sample))
                bad += report(f"{case.name}: kills", kills(scene, options.kills))
        bad += report("races", races(work, options.races))
        bad += report("reads", readers(work, options.seconds))
    sys.exit(f"{bad} bad states" if bad else 0)


if __name__ == "__main__":
    main()
