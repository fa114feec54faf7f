"""Command lines run one after the other in this process, which imports its framework once: JSON in, JSON out.

Threads and devices of a framework can be chosen only before it computes, so that tests of whole runs need a process.
"""

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

from tests.support import ROOT, run_cli

QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


class Result(NamedTuple):
    """How a command ended, and in how many seconds."""

    code: int
    out: str
    err: str
    seconds: float


def start(commands):
    """A process that runs the commands."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.run_commands"],
        cwd=ROOT,
        env=os.environ | QUICK,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps([[str(argument) for argument in command] for command in commands]) + "\n")
    process.stdin.close()
    process.stdin = None
    return process


def finish(process):
    """Its results, in order."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return [Result(*result) for result in json.loads(out.splitlines()[-1])]


def run_all(commands):
    """Start and finish."""
    return finish(start(commands))


def main():
    """Run what standard input names."""
    results = []
    for command in json.loads(sys.stdin.readline()):
        began = time.monotonic()
        results.append((*run_cli(*command), round(time.monotonic() - began, 3)))
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
