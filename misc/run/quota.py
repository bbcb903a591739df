"""The share of the machine's processor time that a container has: cgroups of Linux, in both of their versions.

Docker (`--cpus 4`) and Kubernetes (`limits: cpu: 4`) show a container every core of the machine and stop it, tens of
times a second, when it has used its share: a process or a thread for each core is then slower, and takes memory.
"""

import math
import os
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
    """The folders of the groups that may limit this process's time: each version's own one, and those around it."""
    own = {}
    for _, controllers, path in _fields("cgroup", ":", 3):
        own |= dict.fromkeys(controllers.split(","), path)
    inside: dict[str, list[Path]] = {V1: [], V2: []}
    tops: dict[str, list[Path]] = {V1: [], V2: []}
    for of_mount, of_system in _fields("mountinfo", " - ", 2):
        _, _, _, root, mount, *_ = of_mount.split(" ")
        kind, *_, options = of_system.split(" ")
        controller = {V1: "cpu", V2: ""}.get(kind)
        if controller not in own or (kind == V1 and controller not in options.split(",")):
            continue
        path = Path(own[controller])
        if path.is_relative_to(root) and ".." not in path.parts:
            inner = path.relative_to(root)
            inside[kind] += [Path(mount, each) for each in (inner, *inner.parents)]
        else:  # a container may be told of its group's place outside, and sees what is within it
            tops[kind].append(Path(mount))
    for kind in (V1, V2):
        yield from inside[kind] or tops[kind]


def _fields(name: str, separator: str, n: int) -> Iterator[list[str]]:
    """The `n` parts of each line of what Linux tells of this process; none on other systems."""
    with suppress(OSError):
        for line in os.fsdecode((PROC / name).read_bytes()).split("\n"):
            fields = line.split(separator, n - 1)
            if len(fields) == n:
                yield fields


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
