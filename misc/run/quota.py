"""The share of the machine's processor time that a container has: cgroups of Linux, in both of their versions.

Docker (`--cpus 4`) and Kubernetes (`limits: cpu: 4`) show a container every core of the machine and stop it, tens of
times a second, when it has used its share: a process or a thread for each core is then slower, and takes memory.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc/self")
"""Where Linux tells a process of itself."""
V1, V2 = "cgroup", "cgroup2"
"""The versions, as they are mounted."""


def cpu_quota() -> float:
    """Cores whose time this process may use, together with all of its container; infinity without a limit.

    The limit of each group counts, from the process's own one up to the highest that can be seen.
    """
    return min(map(_quota_of, _groups()), default=math.inf)


def _groups() -> Iterator[Path]:
    """The folders of the groups that may limit this process's time."""
    with suppress(OSError, ValueError):  # other systems, and those that hide it, have no groups
        own = {}
        for line in (PROC / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path)
        for line in (PROC / "mountinfo").read_text().splitlines():
            of_mount, of_system = line.split(" - ", 1)
            (root, mount), (kind, *_, options) = of_mount.split()[3:5], of_system.split()
            controller = {V1: "cpu", V2: ""}.get(kind)
            if controller in own and (kind == V2 or controller in options.split(",")):
                yield from _up_to(Path(mount), root, own[controller])


def _up_to(mount: Path, root: str, path: str) -> Iterator[Path]:
    """The folder of the group `path`, and those of the groups around it, where the group `root` is mounted."""
    inner = Path(path)
    # A container may see the whole path of its group, and only what is within it
    inner = inner.relative_to(root) if inner.is_relative_to(root) else Path()
    if ".." in inner.parts:  # its group is none of those that are mounted
        inner = Path()
    yield from (mount / each for each in (inner, *inner.parents))


def _quota_of(group: Path) -> float:
    """Cores that a group may use; infinity where it says none."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = float(quota.replace("max", "inf")) / float(period)
        if cores > 0:  # version 1 says -1 where there is no limit
            return cores
    return math.inf
