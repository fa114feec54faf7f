"""Folders, all or nothing: what a save does to the folder it finds, to its neighbours, and when it cannot be done."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from distilbert.checkpoint import hdf5, publishing
from distilbert.checkpoint.folder import WRITABLE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.publishing import exchange, new_folder, updated_folder
from distilbert.errors import CheckpointError
from tests.support import find_strace, run_python

OLD = {"config.json": "old", "weights": "old", "sub/settings": "old"}
NEW = {"config.json": "new", "weights": "new", "sub/settings": "new"}
MINE = {"notes.txt": "mine", "logs/run/1.txt": "mine"}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def save(path, files, stale=()):
    with updated_folder(path, stale) as folder:
        fill(folder, files)


def texts(folder):
    """Every file but the manifest."""
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found.pop(MANIFEST_FILE, None) is not None
    return found


@pytest.fixture
def model(tmp_path):
    """A folder that was saved, with a user's files in it; nothing else lies beside it."""
    place = tmp_path / "place"
    place.mkdir()
    save(place / "model", OLD)
    fill(place / "model", MINE)
    return place / "model"


@pytest.fixture
def moving(monkeypatch):
    """A system that cannot exchange folders."""
    monkeypatch.setattr(publishing, "exchange", lambda *_: False)


def alone(path):
    """Whether nothing lies beside `path`."""
    return list(path.parent.iterdir()) == [path]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a" / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "whole").write_text("x")
    assert texts(tmp_path / "a" / "out") == {"whole": "x"}
    assert alone(tmp_path / "a" / "out")
    with pytest.raises(CheckpointError, match="exists already"), new_folder(tmp_path / "a" / "out"):
        pass


def test_a_new_folder_never_replaces_what_another_made_meanwhile(tmp_path):
    for made in (lambda p: p.write_text("x"), lambda p: fill(p, OLD), lambda p: p.symlink_to("nowhere")):
        with pytest.raises(CheckpointError, match="exists already"), new_folder(tmp_path / "out") as folder:
            fill(folder, NEW)
            made(tmp_path / "out")
        assert alone(tmp_path / "out")
        shutil.rmtree(tmp_path / "out") if (tmp_path / "out").is_dir() else (tmp_path / "out").unlink()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_changes_nothing(model, error):
    before = texts(model)
    with pytest.raises(error), updated_folder(model) as folder:
        fill(folder, NEW)
        raise error
    assert texts(model) == before
    assert alone(model)


@pytest.mark.parametrize("way", ["exchange", "moving"])
def test_a_save_replaces_its_files_and_leaves_the_others(model, way, request):
    if way == "moving":
        request.getfixturevalue("moving")
    number = model.stat().st_ino
    save(model, {"config.json": "new", "weights-1": "new"}, stale=["weights"])
    assert texts(model) == MINE | {"config.json": "new", "weights-1": "new", "sub/settings": "old"}
    assert (model.stat().st_ino == number) == (way == "moving")
    assert alone(model)


def test_a_users_files_stay_the_same_files(model):
    (model / "huge").touch()
    os.truncate(model / "huge", 1 << 36)
    os.mkfifo(model / "fifo")
    (model / "link").symlink_to("notes.txt")
    (model / "dangling").symlink_to("nowhere")
    (model / "folder").symlink_to("logs")
    (model / "private" / "empty").mkdir(parents=True)
    (model / "private").chmod(0o500)
    (model / "notes.txt").chmod(0)
    with socket.socket(socket.AF_UNIX) as listener:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(model)  # a socket's path must be short
            listener.bind("socket")
        before = {p: (p.lstat().st_ino, p.lstat().st_mode, p.lstat().st_mtime_ns) for p in model.rglob("*")}
        save(model, NEW)
        after = {p: (p.lstat().st_ino, p.lstat().st_mode, p.lstat().st_mtime_ns) for p in model.rglob("*")}
    ours = {model / name for name in (*NEW, MANIFEST_FILE)} | {model / "sub"}
    assert before.keys() == after.keys()
    for path in before.keys() - ours:
        folder = stat.S_ISDIR(before[path][1])  # a folder is made anew, with the rights and times of the old one
        assert after[path][folder:] == before[path][folder:], path
    assert alone(model)


def test_the_folder_keeps_its_rights(model):
    model.chmod(0o2750)
    save(model, NEW)
    assert stat.S_IMODE(model.stat().st_mode) == 0o2750


def test_where_files_cannot_be_linked_they_are_copied(model, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (model / "link").symlink_to("notes.txt")
    number = model.stat().st_ino
    save(model, NEW)
    assert texts(model) == {**NEW, **MINE, "link": "mine"}
    assert (model / "link").is_symlink()
    assert model.stat().st_ino != number


@pytest.mark.parametrize("what", ["another user's file", "another user's pipe", "mounted file", "mounted folder"])
def test_what_cannot_be_carried_over_stays_in_place(model, what, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EXDEV if what == "mounted file" else errno.EPERM, "not yours")

    if what == "another user's pipe":
        os.mkfifo(model / "fifo")
    if what == "another user's file":
        monkeypatch.setattr(shutil, "copy2", refuse)
    if what == "mounted folder":
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "logs")
    else:
        monkeypatch.setattr(os, "link", refuse)
    numbers = {p: p.stat().st_ino for p in (model, model / "notes.txt", model / "logs" / "run")}
    save(model, NEW)
    assert texts(model) == {**NEW, **MINE}
    assert {p: p.stat().st_ino for p in numbers} == numbers
    assert alone(model)


def test_a_mounted_folder_is_filled_in_place(model, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path in (model, empty))
    numbers = [model.stat().st_ino, empty.stat().st_ino]
    save(model, NEW)
    with new_folder(empty / "." / ".." / "empty") as folder:
        assert folder.parent == empty
        fill(folder, NEW)
    assert (texts(model), texts(empty)) == ({**NEW, **MINE}, NEW)
    assert numbers == [model.stat().st_ino, empty.stat().st_ino]


@pytest.mark.parametrize("place", [".", "logs/run"])
def test_a_process_in_the_folder_stays_in_it(model, place, monkeypatch):
    monkeypatch.chdir(model / place)
    save(Path(os.path.relpath(model)), NEW)
    assert texts(model) == {**NEW, **MINE}
    assert Path.cwd() == model / place
    assert Path("../../notes.txt" if place != "." else "notes.txt").exists()


def test_a_process_in_an_empty_folder_sees_it_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(Path()) as folder:
        fill(folder, NEW)
    assert texts(Path()) == NEW


def test_links_are_followed(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    save(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert texts(model) == {**NEW, **MINE}
    (tmp_path / "dangling").symlink_to("elsewhere")
    save(tmp_path / "dangling", NEW)
    assert texts(tmp_path / "elsewhere") == NEW
    assert (tmp_path / "dangling").is_symlink()


def test_a_path_up_from_a_link_is_where_the_system_says(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    with new_folder(tmp_path / "link" / ".." / "out") as folder:
        fill(folder, NEW)
    assert texts(tmp_path / "far" / "out") == NEW


@pytest.mark.parametrize("what", ["a file", "a link to a file", "a link to itself", "a pipe"])
def test_what_is_not_a_folder_is_refused_at_once(tmp_path, what):
    out = tmp_path / "out"
    match what:
        case "a file":
            out.write_text("x")
        case "a link to a file":
            (tmp_path / "file").write_text("x")
            out.symlink_to("file")
        case "a link to itself":
            out.symlink_to("out")
        case "a pipe":
            os.mkfifo(out)
    before = sorted(tmp_path.iterdir())
    for way in (updated_folder, new_folder):
        with pytest.raises(CheckpointError) as caught, way(out):
            pytest.fail("must be refused before anything is written")
        assert caught.value.kind == "DestinationExists"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("way", [updated_folder, new_folder])
def test_a_file_among_the_parents_is_named_by_what_was_asked_for(tmp_path, way):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="out") as caught, way(tmp_path / "file" / "out"):
        pytest.fail("must be refused before anything is written")
    assert "tmp-" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_users_folder_or_file_in_the_way_of_ours_refuses_the_save(model):
    before = texts(model)
    for files in ({"logs": "a file"}, {"notes.txt/x": "a folder"}):
        with pytest.raises(OSError, match="exists"):
            save(model, files)
        assert texts(model) == before
        assert alone(model)


def test_a_folder_that_is_deleted_meanwhile_is_made_anew(model):
    with updated_folder(model) as folder:
        fill(folder, NEW)
        shutil.rmtree(model)
    assert texts(model) == NEW


def test_a_temporary_folder_that_is_deleted_meanwhile_is_an_error(model):
    before = texts(model)
    with pytest.raises(FileNotFoundError) as caught, updated_folder(model) as folder:
        fill(folder, NEW)
        shutil.rmtree(folder)
    assert caught.value.filename == str(model)
    assert texts(model) == before
    assert alone(model)


def test_what_another_process_puts_into_the_folder_meanwhile_stays(model, monkeypatch):
    """Other ranks of a training run write their own files into the folder while the first saves the model."""

    def late(first, second):
        fill(model, {"rng_state_1.pth": "theirs", "logs/run/2.txt": "theirs"})
        return exchange(first, second)

    monkeypatch.setattr(publishing, "exchange", late)
    save(model, NEW)
    assert texts(model) == {**NEW, **MINE, "rng_state_1.pth": "theirs", "logs/run/2.txt": "theirs"}


def test_files_of_another_save_do_not_count_as_put_there_meanwhile(model, monkeypatch):
    """A save that did not wait for ours, on a file system without locks."""

    def late(first, second):
        monkeypatch.setattr(publishing, "exchange", exchange)
        monkeypatch.setattr(publishing, "_PATIENCE", 0)
        save(model, {"weights-in-another-form": "other"})
        return exchange(first, second)

    monkeypatch.setattr(publishing, "exchange", late)
    save(model, NEW)
    assert texts(model) == {**NEW, **MINE}


def test_one_publishes_at_a_time(model, monkeypatch):
    def locked(first, second):
        descriptor = os.open(model.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        return exchange(first, second)

    monkeypatch.setattr(publishing, "exchange", locked)
    save(model, NEW)
    assert texts(model) == {**NEW, **MINE}


@pytest.mark.parametrize("way", ["exchange", "moving"])
def test_the_later_of_two_saves_wins_whole(model, way, request):
    """What it found was without the files of the other: those must not stay beside its own."""
    if way == "moving":
        request.getfixturevalue("moving")
    with updated_folder(model) as folder:
        fill(folder, NEW)
        save(model, {"config.json": "other", "weights-in-another-form": "other", "sub/more": "other"})
    assert texts(model) == {**NEW, **MINE}


def test_the_later_of_two_first_saves_wins_whole(tmp_path):
    with updated_folder(tmp_path / "model") as folder:
        fill(folder, NEW)
        save(tmp_path / "model", {"weights-in-another-form": "other"})
        fill(tmp_path / "model", MINE)
    assert texts(tmp_path / "model") == {**NEW, **MINE}


def test_orphans_are_cleared_away_and_nothing_else(model, monkeypatch):
    number = "0123456789abcdef" * 2
    beside = {name: model.with_name(f".model.tmp-{name}") for name in ("backup", number, number[::-1])}
    for path in beside.values():
        fill(path, OLD)
    for path in (beside["backup"], beside[number]):
        os.utime(path, (0, 0))
    linked = model.with_name(f".model.tmp-{'a' * 32}")
    linked.symlink_to(model)
    os.utime(linked, (0, 0), follow_symlinks=False)
    with updated_folder(model) as live:
        fill(live, NEW)
        os.utime(live, (0, 0))
        save(model, OLD)
        assert live.exists()
    assert sorted(model.parent.iterdir()) == sorted([model, beside["backup"], beside[number[::-1]], linked])
    assert texts(model) == {**NEW, **MINE}
    monkeypatch.setattr(publishing, "_MIN_ORPHAN_AGE", -1)
    save(model, NEW)
    assert sorted(model.parent.iterdir()) == sorted([model, beside["backup"], linked])


def test_a_lock_that_others_hold_is_not_waited_for_without_end(model, monkeypatch):
    monkeypatch.setattr(publishing, "_PATIENCE", 0.05)
    descriptor = os.open(model.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    save(model, NEW)
    os.close(descriptor)
    assert texts(model) == {**NEW, **MINE}


def test_a_file_system_without_locks_is_enough(model, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    orphan = model.with_name(f".model.tmp-{'a' * 32}")
    orphan.mkdir()
    os.utime(orphan, (0, 0))
    save(model, NEW)
    assert texts(model) == {**NEW, **MINE}
    assert orphan.exists()  # it could be a live writer's


def test_folders_exchange_their_names(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    fill(one, OLD)
    fill(other, NEW)
    assert exchange(one, other)
    assert (one / "weights").read_text() == "new"
    assert (other / "weights").read_text() == "old"
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "missing")


def test_a_disk_error_in_the_exchange_is_not_taken_for_a_system_without_it(model, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "broken", str(model))

    before = texts(model)
    monkeypatch.setattr(publishing, "exchange", broken)
    with pytest.raises(OSError, match="broken"):
        save(model, NEW)
    assert texts(model) == before
    assert alone(model)


@pytest.mark.usefixtures("moving")
@pytest.mark.parametrize("before", ["with a manifest", "without"])
def test_a_half_done_move_is_refused(tmp_path, before, monkeypatch):
    """Stopped before each of its steps: loading takes the old folder or the new one, or refuses."""
    from tools import fault_injection

    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut here
    original, outcomes = Path.replace, set()
    for shard_sizes in ((None, fault_injection.SHARD), (fault_injection.SHARD, None)):
        for step in range(14):
            folder = tmp_path / f"{shard_sizes[0]}-{step}"
            fault_injection.save(folder, 0, shard_size=shard_sizes[0])
            if before == "without":
                (folder / MANIFEST_FILE).unlink()
            done = []

            def stop(path, target, folder=folder, step=step, done=done):
                if path.parent.parent != folder and Path(target).is_relative_to(folder):
                    done.append(target)
                    if len(done) > step:
                        raise OSError(errno.EIO, "stop")
                return original(path, target)

            monkeypatch.setattr(Path, "replace", stop)
            with contextlib.suppress(OSError):
                fault_injection.save(folder, 1, shard_size=shard_sizes[1])
            monkeypatch.setattr(Path, "replace", original)
            outcomes.add(fault_injection.loaded(folder))
    assert outcomes == {"0", "1", "refused"}


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from distilbert.checkpoint import manifest
from distilbert.checkpoint.publishing import new_folder, updated_folder
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
os.chdir(sys.argv[1])

def trial(way, path):
    try:
        with way(Path(path)) as folder:
            (folder / "weights").write_text("new")
        print(path, "saved")
    except OSError as error:
        print(path, type(error).__name__, error.filename)

for place in ("writable", "readonly"):
    os.mkdir(place)
    os.mkdir(f"{place}/model")
    for name in ("notes.txt", "weights"):
        Path(f"{place}/model/{name}").write_text("old")
os.mkdir("readonly/empty")
os.mkdir("writable/model/closed")
Path("writable/model/closed/mine").write_text("mine")
os.chmod("writable/model/closed", 0)
os.chmod("writable/model", 0o555)
trial(updated_folder, "writable/model")
os.chmod("writable/model", 0o755)
number = os.stat("writable/model").st_ino
trial(updated_folder, "writable/model")
print(number == os.stat("writable/model").st_ino)
os.chmod("writable/model/closed", 0o755)
print(Path("writable/model/closed/mine").read_text(), *sorted(os.listdir("writable")))
os.mkdir("writable/model/fixed")
Path("writable/model/fixed/mine").write_text("mine")
os.symlink("/", "writable/model/fixed/link")
os.chmod("writable/model/fixed", 0o555)
trial(updated_folder, "writable/model")
print(number == os.stat("writable/model").st_ino, os.access("writable/model/fixed", os.W_OK), *os.listdir("writable"))
os.chmod("writable/model/fixed", 0o755)
os.chmod("readonly", 0o555)
trial(updated_folder, "readonly/model")
trial(new_folder, "readonly/empty")
trial(new_folder, "readonly/new")
trial(updated_folder, "readonly/new")
print(*sorted(os.listdir("readonly")), *sorted(os.listdir("readonly/model")), *sorted(os.listdir("readonly/empty")))
os.chmod("readonly", 0o755)
"""


def test_rights_are_respected():
    """As a user whom they bind: a closed folder stays what it is, whatever else is in the folder stays there."""
    with tempfile.TemporaryDirectory() as scratch:  # pytest's folders are closed to other users
        Path(scratch).chmod(0o777)
        result = run_python("-c", UNPRIVILEGED, scratch)
        new = os.path.realpath(f"{scratch}/readonly/new")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "writable/model PermissionError writable/model",
        "writable/model saved",
        "True",
        "mine model",
        "writable/model saved",
        "False False model",
        "readonly/model saved",
        "readonly/empty saved",
        f"readonly/new PermissionError {new}",
        f"readonly/new PermissionError {new}",
        "empty model MANIFEST.json notes.txt weights MANIFEST.json weights",
    ]


FULL = """
import os, resource, signal, sys
from pathlib import Path
from distilbert.__main__ import main
from tools import fault_injection as faults
folder, name = Path(sys.argv[1]), sys.argv[2]
faults.save(folder, 0, name)
size = max(path.stat().st_size for path in folder.iterdir())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in range(0, size, size // 80):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        faults.save(folder, 1, name)
        print(limit, "saved")
    except OSError as error:
        if error.strerror != "File too large" or "tmp-" in str(error):
            print(limit, error)
    if faults.loaded(folder) != "0" or os.listdir(folder.parent) != [folder.name]:
        print(limit, os.listdir(folder.parent))
main(["convert", str(folder), str(folder.with_name("out")), "--to", name])
"""


@pytest.mark.parametrize("name", WRITABLE)
def test_a_disk_that_is_full_anywhere_is_one_line_and_changes_nothing(name, tmp_path):
    (tmp_path / "place").mkdir()
    result = run_python("-c", FULL, str(tmp_path / "place" / "model"), name)
    assert result.stdout == ""
    assert result.returncode == 3, result.stderr
    assert result.stderr.startswith(f"error: {tmp_path / 'place' / 'out'}")
    assert result.stderr.endswith(": File too large.\n")
    assert result.stderr.count("\n") == 1
    assert alone(tmp_path / "place" / "model")


def test_hdf5_does_not_hear_of_a_full_disk():
    """It would end the process, or raise anything, when it cannot write what it still holds."""
    with hdf5._PatientFile("/dev/full", "r+") as file:
        assert file.write(b"text") == 4
        assert file.truncate(8) == 8
        assert file.error.errno == errno.ENOSPC


def trials(*options):
    """tools/fault_injection.py with few trials; its table, which must hold no bad state."""
    memory = Path("/dev/shm")  # noqa: S108 - what is synced a thousand times needs no disk
    place = ["--place", str(memory)] if os.access(memory, os.W_OK) else []
    result = run_python("-m", "tools.fault_injection", *map(str, options), *place)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.skipif(find_strace() is None, reason="strace, a system tool, is missing or may not trace here")
def test_a_fault_at_a_system_call_leaves_the_old_folder_or_the_new():
    """A sample; `make faults` tries them all."""
    table = trials("--sample", 3, "--kills", 0, "--races", 0, "--seconds", 0)
    assert all(f"{name}: faults" in table for name in ("save safetensors", "convert to tf-h5", "move"))


def test_kills_races_and_reads_meanwhile_find_the_old_folder_or_the_new():
    table = trials("--sample", 0, "--kills", 3, "--races", 3, "--seconds", 3)
    assert "whole" in table
