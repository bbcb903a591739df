"""Peak memory of this process and of the GPU."""

import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement, of the GPU and, where the system allows it (Linux), of the process."""
    if device.type == "cuda":
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
    elif resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems KiB
        peaks["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    if device.type == "cuda":
        peaks["gpu"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peaks
