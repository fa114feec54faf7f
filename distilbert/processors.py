"""How many processors this process may use, which is often fewer than the machine has.

A container is held to a quota of CPU time, or to some of the processors. A framework that starts a thread for each
processor of the machine then waits for threads that do not run. Two threads of one core share its arithmetic units, so
that products of matrices are no faster with both.

Sources: the Linux kernel's admin-guide/cgroup-v2, scheduler/sched-bwc (the quota of version 1) and proc(5).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


def cpu_limit(*, root: Path = ROOT, cpus: Collection[int] | None = None) -> int:
    """How many processors this process may use, at least 1: those that it may run on, and its quota of CPU time.

    A quota is rounded to the nearest whole number: a thread that is often held back delays all others.

    Args:
        root: where `proc` and `sys` are.
        cpus: the processors that it may run on; default what the system says.
    """
    return _limited(len(_allowed(cpus)), root)


def recommended_threads(*, root: Path = ROOT, cpus: Collection[int] | None = None) -> int:
    """As `cpu_limit`, but cores where the system tells them: threads of one core count once."""
    return _limited(_count_cores(_allowed(cpus), root), root)


def _limited(count: int, root: Path) -> int:
    quota = min(_quotas(root), default=math.inf)
    return max(1, math.floor(min(count, quota) + 0.5))


def _allowed(cpus: Collection[int] | None) -> Collection[int]:
    if cpus is not None:
        return cpus
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _count_cores(cpus: Collection[int], root: Path) -> int:
    """Cores of the processors; a processor of which nothing is known counts as one."""
    devices = root / "sys/devices/system/cpu"
    return len({_read(devices / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


class _Mount(NamedTuple):
    """Where a hierarchy of groups is: the group `top` of it appears as the folder `place`."""

    place: Path
    top: str
    version: int


def _quotas(root: Path) -> Iterator[float]:
    """The quota, in processors, of each group that this process is in, from its own up to the top."""
    mounts = list(_mounts(root))  # one hierarchy may be mounted several times, as where a container sees the host's
    for version, group in _groups(root):
        folders = (folder for mount in mounts if mount.version == version for folder in _folders(mount, group))
        for folder in folders:
            quota = _quota_of(folder, version)
            if quota is not None:
                yield quota


def _groups(root: Path) -> Iterator[tuple[int, str]]:
    """Version of the hierarchy, and path of this process's group in it, where time is limited."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            yield 2, path
        elif "cpu" in controllers.split(","):
            yield 1, path


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = (part.split() for part in line.partition(" - "))
        if len(before) < 5 or len(after) < 3:
            continue
        kind, place = after[0], root / before[4].lstrip("/")
        if kind == "cgroup2":
            yield _Mount(place, before[3], 2)
        elif kind == "cgroup" and "cpu" in after[2].split(","):
            yield _Mount(place, before[3], 1)


def _folders(mount: _Mount, group: str) -> list[Path]:
    """The folders of a group and of those around it; a group that the mount does not show is taken for its top."""
    top = mount.top.rstrip("/")
    below = group[len(top) :].strip("/") if f"{group}/".startswith(f"{top}/") else ""
    inside = Path(below) if ".." not in Path(below).parts else Path()
    return [mount.place / part for part in (inside, *inside.parents)]


def _quota_of(folder: Path, version: int) -> float | None:
    """Processors' worth of time; None for no limit, or where nothing can be read."""
    if version == 2:
        parts = _read(folder / "cpu.max").split()
    else:
        parts = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or int(parts[1]) == 0:
        return None  # "max", or -1
    return int(parts[0]) / int(parts[1])


def _read(path: Path) -> str:
    """A small file of the system; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
