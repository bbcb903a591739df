"""Memory of this process and of the GPU: its peak, and keeping what is freed."""

import ctypes
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
# Of mallopt (glibc's malloc.h)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEPT_BYTES, _GROWTH_BYTES = 2**31 - 1, 2**26


def keep_freed_memory() -> None:
    """Let the C library keep the memory that freed tensors leave, for the next ones (glibc; elsewhere: nothing).

    It would give large blocks back to the system, which clears every page of the next tensor anew. On the CPU that
    takes a sixth of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TOP_PAD, _GROWTH_BYTES)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement, of the GPU and, where the system allows it (Linux), of the process."""
    if device.type == "cuda":
        torch.cuda.init()  # the reset is refused before anything has been on the GPU
        torch.cuda.reset_peak_memory_stats(device)
    if _CLEAR_REFS.exists():
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:  # some containers forbid it: the peak then counts from the start of the process
            return


def peak_memory_mib(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB since the last reset (or, where there is none, since the start): `process`, `gpu`.

    Worker processes are not counted; what they share with this process is.
    """
    peaks = {}
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        peaks["process"] = int(fields["VmHWM"].split()[0]) / 1024
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems KiB
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    if device.type == "cuda":
        peaks["gpu"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peaks
