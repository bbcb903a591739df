"""The share of the processor's time that a container has."""

import math
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

import run_sample
from misc.errors import InputError
from misc.run import limits, parallel, quota
from misc.run.config import switches
from misc.run.parallel import usable_cores

ROOT = Path(run_sample.__file__).parent
V1_MOUNT = Path("/sys/fs/cgroup/cpu")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Lays out what Linux tells of a process's groups: their lines, what is mounted, and the groups' files."""

    def lay_out(groups, mounts, files):
        (tmp_path / "cgroup").write_text(groups)
        lines = [
            f"31 23 0:28 {root} {tmp_path / at} rw,relatime - {kind} none {options}\n"
            for root, at, kind, options in mounts
        ]
        told = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n23 22 0:5 / /mnt rw - fuse.own  rw\n" + "".join(
            lines
        )
        (tmp_path / "mountinfo").write_bytes(os.fsencode(told))
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    monkeypatch.setattr(quota, "PROC", tmp_path)
    return lay_out


V2_MOUNT = ("/", "sys", "cgroup2", "rw,nsdelegate")
V1_OF_A_CONTAINER = ("/docker/1f", "cpu", "cgroup", "rw,cpu,cpuacct")
LAYOUTS = {
    "a container of version 2": ("0::/\n", [V2_MOUNT], {"sys/cpu.max": "150000 100000\n"}, 1.5),
    "no limit in version 2": ("0::/\n", [V2_MOUNT], {"sys/cpu.max": "max 100000\n"}, math.inf),
    "the machine itself, whose topmost group has no such file": ("0::/a.slice\n", [V2_MOUNT], {}, math.inf),
    "the lowest of the groups around it": (
        "0::/a.slice/b.scope\n",
        [V2_MOUNT],
        {"sys/a.slice/cpu.max": "200000 100000\n", "sys/a.slice/b.scope/cpu.max": "800000 100000\n"},
        2,
    ),
    "another group's limit": (
        "0::/a.slice\n",
        [V2_MOUNT],
        {"sys/a.slice/cpu.max": "max 100000\n", "sys/b.slice/cpu.max": "100000 100000\n"},
        math.inf,
    ),
    "a container of version 1, which sees its whole path": (
        "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/docker/1f\n",
        [("/docker/1f", "memory", "cgroup", "rw,memory"), V1_OF_A_CONTAINER],
        {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "no limit in version 1": (
        "3:cpu,cpuacct:/docker/1f\n",
        [V1_OF_A_CONTAINER],
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        math.inf,
    ),
    "version 1 beside an empty version 2": (
        "1:cpu:/job\n0::/\n",
        [("/", "cpu", "cgroup", "rw,cpu"), V2_MOUNT],
        {"cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n", "sys/cgroup.procs": ""},
        0.5,
    ),
    "a mount whose name is no text, and one with a line's end of Unicode": (
        "0::/\n",
        [("/", "Donn\udce9es", "ext4", "rw"), ("/", "a\u2028b", "ext4", "rw"), V2_MOUNT],
        {"sys/cpu.max": "200000 100000\n"},
        2,
    ),
    "another group's folder, mounted once more elsewhere": (
        "0::/user.slice\n",
        [V2_MOUNT, ("/lxc/other", "elsewhere", "cgroup2", "rw")],
        {"elsewhere/cpu.max": "200000 100000\n"},
        math.inf,
    ),
    "a group out of sight": ("0::/../other\n", [V2_MOUNT], {"sys/cpu.max": "300000 100000\n"}, 3),
    "files of another form": ("0::/\n", [V2_MOUNT], {"sys/cpu.max": "unlimited\n"}, math.inf),
    "lines of another form": ("groups are not told\n", [V2_MOUNT], {"sys/cpu.max": "100000 100000\n"}, math.inf),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_lowest_limit_counts(system, layout):
    groups, mounts, files, expected = layout
    system(groups, mounts, files)
    assert quota.cpu_quota() == expected


def test_a_system_without_groups_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(quota, "PROC", tmp_path / "nothing")
    assert quota.cpu_quota() == math.inf


@pytest.mark.parametrize(("share", "cores"), [(math.inf, 8), (9.0, 8), (8.0, 8), (2.5, 3), (2.0, 2), (0.5, 1)])
def test_a_container_uses_the_cores_whose_time_it_has(monkeypatch, share, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(parallel, "cpu_quota", lambda: share)
    assert usable_cores() == cores


def test_pytorch_uses_as_many_threads_unless_it_is_told_how_many(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(3)
        for share, threads in ((4, 3), (2, 2), (1, 1)):
            monkeypatch.setattr(limits, "usable_cores", lambda share=share: share)
            limits.keep_to_cores()
            assert torch.get_num_threads() == threads
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        limits.keep_to_cores()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_run_keeps_to_its_cores(toy, monkeypatch):
    kept = []
    monkeypatch.setattr(limits, "keep_to_cores", lambda: kept.append(True))
    with pytest.raises(InputError, match="net.pth is missing"):
        run_sample.run(toy.flags(**switches("make_cam"), cam_weights_name="net.pth"))
    assert kept == [True]


@pytest.fixture
def half_a_core():
    """A group of the kernel's own that gives half a core's time; its file that takes a process's number."""
    group = V1_MOUNT / f"wood_{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip(f"no group of {V1_MOUNT} can be made here")
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        yield group / "cgroup.procs"
    except OSError:  # of a group around it that has less
        pytest.skip(f"no group of {V1_MOUNT} can be given half a core here")
    finally:
        group.rmdir()


def test_the_kernels_own_group_is_found(half_a_core):
    code = "from misc.run import parallel, quota; print(quota.cpu_quota(), parallel.usable_cores())"
    script = f'echo $$ >"{half_a_core}" && exec "{sys.executable}" -c "{code}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "0.5 1\n"
