"""Reads every folder of a corpus once, in one process that is watched; prints what became of each as JSON.

`python -m tests.hostile ROOT`: each folder ROOT/*/in is converted to ROOT/*/out. A first argument `warm-up` names good
folders, so that what a conversion imports is there before the watch begins.
"""

import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

from distilbert.errors import DistilBertError
from weights_convert.convert import convert

BEGIN = "/begin-of-the-corpus"  # there is no such file: its name marks the place in a log of system calls
FORBIDDEN = ("compile", "exec", "import", "ctypes.dlopen", "marshal.loads", "pickle.find_class", "os.exec", "os.fork",
             "os.forkpty", "os.posix_spawn", "os.system", "socket.connect", "subprocess.Popen")  # fmt: skip


class Watch:
    """Collects from Python's own audit events what was opened, and what else must not happen."""

    def __init__(self):
        self.opened, self.events, self.removing = [], [], False
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            if Path(path).is_absolute() or not self.removing:  # shutil.rmtree opens folders below an open folder
                self.opened.append(path)
        elif event == "shutil.rmtree":
            self.removing = True
        elif event in FORBIDDEN:
            self.events.append(f"{event} {str(arguments)[:80]}")

    def take(self):
        """What was seen since the last time."""
        seen = {"opened": self.opened, "events": self.events}
        self.opened, self.events, self.removing = [], [], False
        return seen


def peak():
    """The largest resident memory since the last call of this function, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return highest


def attempt(folder):
    """Convert a folder and say how that ended: error class, kind, message, seconds, bytes of memory."""
    peak()
    before, start, modules = peak(), time.process_time(), set(sys.modules)
    try:
        convert(folder, folder.parent / "out", to="safetensors")
        result = {"error": "", "kind": "", "message": ""}
    except DistilBertError as error:
        result = {"error": type(error).__name__, "kind": getattr(error, "kind", ""), "message": str(error)}
    except Exception as error:  # noqa: BLE001 - what the corpus is there to find
        result = {"error": f"outside the family: {type(error).__name__}", "kind": "", "message": str(error)}
    seconds = time.process_time() - start
    return result | {"seconds": seconds, "memory": peak() - before, "modules": sorted(set(sys.modules) - modules)}


def main(root, warm_up):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for folder in sorted(warm_up.iterdir()):
        convert(folder, root / f"warm-{folder.name}", to="safetensors")
    "\x1b".encode("unicode_escape")  # codecs are modules that are imported at their first use: in messages,
    "".encode("cp437")  # and in the names of a zip archive
    warnings.simplefilter("ignore")  # to show one, Python opens the source of who gave it
    places = sorted(root.glob("*/in"))
    watch, results = Watch(), {}
    if Path(BEGIN).exists():
        raise FileExistsError(BEGIN)
    try:
        os.open(BEGIN, os.O_RDONLY)
    except FileNotFoundError:
        watch.take()
    for place in places:
        result = attempt(place)
        results[place.parent.name] = result | watch.take()
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
