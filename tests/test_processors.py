"""How many processors are ours: on trees of files as the kernel shows them in machines and containers."""

import os
import subprocess
import sys

import pytest

from distilbert.processors import cpu_limit, recommended_threads
from tests.support import ROOT

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V2_IN_A_GROUP = "30 23 0:26 /pod /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
HYBRID = V1.format(top="/") + "38 31 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
EIGHT = range(8)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def limit(root, mountinfo, cgroup, files):
    write(root, {"proc/self/mountinfo": mountinfo, "proc/self/cgroup": cgroup, **files})
    return cpu_limit(root=root, cpus=EIGHT)


def test_without_any_file_of_the_kernel_the_processors_count(tmp_path):
    assert cpu_limit(root=tmp_path, cpus=EIGHT) == recommended_threads(root=tmp_path, cpus=EIGHT) == 8
    assert cpu_limit(root=tmp_path, cpus=[]) == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1), ("140000 100000", 1), ("150000 100000", 2),
        ("25000 10000", 3), ("9900000 100000", 8), ("1 100000", 1), ("100000 0", 8), ("", 8), ("rubbish", 8), ("-1 5", 8),
    ],
)  # fmt: skip
def test_version_2(tmp_path, quota, expected):
    assert limit(tmp_path, V2, "0::/\n", {"sys/fs/cgroup/cpu.max": f"{quota}\n"}) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("200000", 2), ("160000", 2), ("1000", 1), ("x", 8)])
def test_version_1(tmp_path, quota, expected):
    files = {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": "100000\n"}
    cgroup = "5:memory:/\n4:cpu,cpuacct:/\n0::/\n"
    files = {f"sys/fs/cgroup/cpu,cpuacct/{name}": text for name, text in files.items()}
    assert limit(tmp_path, V1.format(top="/"), cgroup, files) == expected


@pytest.mark.parametrize(
    ("own", "outer", "expected"), [("max", "300000", 3), ("200000", "300000", 2), ("500000", "max", 5)]
)
def test_the_tightest_group_on_the_way_up_counts(tmp_path, own, outer, expected):
    files = {
        "sys/fs/cgroup/a/b/c/cpu.max": f"{own} 100000\n",
        "sys/fs/cgroup/a/cpu.max": f"{outer} 100000\n",
        "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
    }
    assert limit(tmp_path, V2, "0::/a/b/c\n", files) == expected


@pytest.mark.parametrize("group", ["/pod", "/pod/", "/elsewhere", "/podium", "/../../x"])
def test_a_mount_that_shows_the_container_s_own_group_as_its_top(tmp_path, group):
    assert limit(tmp_path, V2_IN_A_GROUP, f"0::{group}\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}) == 2


def test_every_mount_of_a_hierarchy_counts(tmp_path):
    host = V2.replace("/sys/fs/cgroup", "/host/sys/fs/cgroup")
    for mounts in (V2 + host, host + V2):
        assert limit(tmp_path, mounts, "0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}) == 2


def test_a_group_below_the_top_of_its_mount(tmp_path):
    files = {"sys/fs/cgroup/job/cpu.max": "200000 100000\n"}
    assert limit(tmp_path, V2_IN_A_GROUP, "0::/pod/job\n", files) == 2


def test_version_1_in_a_container_without_its_own_names(tmp_path):
    """As older engines mount it: the path is the host's, the folder is the container's."""
    place = "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_"
    files = {f"{place}quota_us": "400000\n", f"{place}period_us": "100000\n"}
    assert limit(tmp_path, V1.format(top="/docker/abc"), "4:cpu,cpuacct:/docker/abc\n", files) == 4


def test_both_versions_at_once(tmp_path):
    """The quota is version 1's; version 2 is mounted beside it, and empty."""
    place = "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_"
    files = {f"{place}quota_us": "300000\n", f"{place}period_us": "100000\n", "sys/fs/cgroup/unified/x": ""}
    assert limit(tmp_path, HYBRID, "1:cpu,cpuacct:/x\n0::/x\n", files) == 3


@pytest.mark.parametrize("text", ["\n", "nonsense", "1:2\n", "::\n", "\0\xff"])
def test_files_that_say_nothing(tmp_path, text):
    assert limit(tmp_path, text, text, {}) == 8


def test_threads_of_a_core_count_once(tmp_path):
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7"}
    files = {f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{siblings[n % 4]}\n" for n in EIGHT}
    write(tmp_path, files)
    assert recommended_threads(root=tmp_path, cpus=EIGHT) == 4
    assert recommended_threads(root=tmp_path, cpus=[0, 4]) == 1
    assert recommended_threads(root=tmp_path, cpus=[0, 1, 5]) == 2
    assert cpu_limit(root=tmp_path, cpus=EIGHT) == 8
    write(tmp_path, {"sys/fs/cgroup/cpu.max": "300000 100000", "proc/self/mountinfo": V2, "proc/self/cgroup": "0::/"})
    assert recommended_threads(root=tmp_path, cpus=EIGHT) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind processes to processors")
def test_the_processors_that_a_process_is_bound_to():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nfrom distilbert import processors as p"
    code += "\nprint(p.cpu_limit(), p.recommended_threads())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\n"


def test_this_machine():
    assert 1 <= recommended_threads() <= cpu_limit() <= (os.cpu_count() or 1)
