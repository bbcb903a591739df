"""Is torch.compile worth its time? `python benchmarks/bench_compile.py [--device cpu|cuda] [--crop S] [--batch B]`.

The W-OoD training step (adversarial step, forward and backward pass) of ResNet-50, as it is and with its backbone
compiled: seconds a step, seconds of compiling, and after how many steps that time is won back. make_cam and make_advcam
see a new image size every few images, and would compile anew for each.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Threads that spin while they wait slow each other down where cores are few; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import machine_name, synchronize
from misc.ood import wood_losses
from misc.run.device import one_size, resolve_device, set_precision
from misc.run.memory import keep_freed_memory
from net.resnet50_cam import Net

LOSS = {"ood_coeff": 0.25, "distance_lambda": 0.007, "topk": 0.2, "step": 0.07, "ignore_class": None}
CPU_SIZE, GPU_SIZE = (192, 2), (512, 16)
"""Side of the crops, images a batch."""


def seconds_of(step: Callable[[], object], device: torch.device, *, repeats: int) -> tuple[float, float]:
    """The first call, and the fastest of those after it."""
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds[1:])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--crop", type=int, help="default: 192 on the CPU, 512 on CUDA")
    parser.add_argument("--batch", type=int, help="default: 2 on the CPU, 16 on CUDA")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = resolve_device(options.device)
    set_precision("auto", device)
    if device.type == "cpu":
        keep_freed_memory()
    side, batch = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    side, batch = options.crop or side, options.batch or batch
    torch.manual_seed(0)
    model = Net().to(device).train()
    images, ood_images = torch.randn(2, batch, 3, side, side, device=device)
    n_classes, n_features = model.classifier.weight.shape[:2]
    labels = torch.randint(0, 2, (batch, n_classes), device=device).float()
    prototypes = torch.randn(n_classes + batch, n_features, device=device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        wood_losses(model, images, labels, ood_images=ood_images, prototypes=prototypes, **LOSS)["total"].backward()

    with one_size():
        _, eager = seconds_of(step, device, repeats=options.repeats)
        model.backbone.compile()
        first, compiled = seconds_of(step, device, repeats=options.repeats)
    saved = eager - compiled
    break_even = f"{(first - compiled) / saved:,.0f}" if saved > 0 else "never"
    print(f"{machine_name(device)}; {batch} + {batch} crops of {side}\n")
    print("| as it is, s a step | compiled, s a step | compiling, s | won back after steps |")
    print("| --- | --- | --- | --- |")
    print(f"| {eager:.3f} | {compiled:.3f} | {first - compiled:.0f} | {break_even} |")


if __name__ == "__main__":
    main()
