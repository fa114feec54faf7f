"""The machine that measures: what it is, and whether anything else is running on it. Linux."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.engines import ROOT

FLAGS = ("fma", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
QUIET = 0.1  # processors that others may use


def pin(count: int) -> list[int]:
    """Keep this process, and all that it starts, on the first `count` of the processors that it has."""
    chosen = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, chosen)
    return chosen


def processors_in_use(seconds: float = 2.0) -> float:
    """How many processors all processes together keep busy at present."""
    begin, idle = time.perf_counter(), _idle()
    time.sleep(seconds)
    ticks = os.sysconf("SC_CLK_TCK") * (time.perf_counter() - begin)
    return max(0.0, (os.cpu_count() or 1) - (_idle() - idle) / ticks)


def _idle() -> int:
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return int(fields[4]) + int(fields[5])  # idle and waiting for disks


def description() -> dict[str, Any]:
    """Processor, its flags, governor, kernel, and the commit that is measured."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "processor": fields.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in fields.get("flags", "").split()],
        "governor": governor.read_text(encoding="ascii").strip() if governor.exists() else "not readable",
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
    }


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return found.stdout.strip()
