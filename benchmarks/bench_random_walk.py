"""Time and peak memory of the random walk: `python benchmarks/bench_random_walk.py [--device cpu|cuda]`.

The original's way, eight squarings of the dense matrix, is run on a small map only: its work grows with the cube of
the number of pixels.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from misc.indexing import _transition_operator, propagate_to_edge
from misc.memory import peak_memory_mib, reset_peak_memory
from misc.record import device_name

SIZES = ((186, 246), (375, 500), (1500, 2000))
DENSE_SIZE = (186, 246)
N_CLASSES, RUNS, STRIDE = 2, 5, 4


def dense_walk(cam: Tensor, edge: Tensor) -> Tensor:
    """The same product by squaring the dense matrix, as the original does."""
    matrix = _transition_operator(edge[0], radius=5, beta=10).to_dense().T
    for _ in range(8):
        matrix = matrix @ matrix
    return ((cam * (1 - edge)).flatten(1) @ matrix).reshape(cam.shape)


def measure(function: Callable[[], Tensor], device: torch.device, runs: int) -> tuple[float, float, str]:
    """Median seconds after a warm-up, and the peak memory in MiB above what was held before, and where."""
    function()
    reset_peak_memory(device)
    where = "gpu" if device.type == "cuda" else "process"
    before = peak_memory_mib(device)[where]
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), peak_memory_mib(device)[where] - before, where


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    print(f"{device_name(device)}, torch {torch.__version__}; {N_CLASSES} classes, radius 5, 2^8 steps\n")
    print("| image | way | seconds (median) | MiB |\n| --- | --- | --- | --- |")
    for height, width in SIZES:
        generator = torch.Generator().manual_seed(0)
        h, w = -(-height // STRIDE), -(-width // STRIDE)
        cam = torch.rand(N_CLASSES, h, w, generator=generator).to(device)
        edge = torch.rand(1, h, w, generator=generator).pow(3).to(device)
        ways = {"sparse": (lambda c=cam, e=edge: propagate_to_edge(c, e), RUNS)}
        if (height, width) == DENSE_SIZE:
            ways["dense squarings"] = (lambda c=cam, e=edge: dense_walk(c, e), 3)
        for way, (function, runs) in ways.items():
            seconds, mib, _ = measure(function, device, runs)
            print(f"| {width} x {height} | {way} | {seconds:.3f} | {mib:.0f} |", flush=True)


if __name__ == "__main__":
    main()
