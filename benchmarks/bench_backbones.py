"""Training steps of classifiers on several backbones, in turn in one process.

`python benchmarks/bench_backbones.py net.efficientnet_lite0_cam net.timm_cam:tf_efficientnet_lite0`

Seconds are those of the CPU that the process used, which other work on the machine hardly changes; on CUDA, those of
the wall. Each round makes one step of each network, and ratios are of the steps of one round.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.measure import machine_name, synchronize
from misc.classifier import classification_losses
from misc.run.device import one_size, resolve_device, set_precision
from misc.torchutils import two_rate_optimizer
from net.build import build_network
from net.classifier import N_VOC_CLASSES


def training_step(
    network: str, device: torch.device, *, batch_size: int, crop_size: int, max_step: int
) -> Callable[[], None]:
    """A function that makes one step of train_classifier on random images, from random weights."""
    model = build_network(network, "Net", n_classes=N_VOC_CLASSES).to(device).train()
    optimizer = two_rate_optimizer(*model.trainable_parameters(), lr=1e-4, weight_decay=1e-4, max_step=max_step)
    images = torch.randn(batch_size, 3, crop_size, crop_size, device=device)
    labels = torch.randint(2, (batch_size, N_VOC_CLASSES), device=device).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        classification_losses(model, images, labels).mean().backward()
        optimizer.step()

    return step


def main() -> None:
    """Print the medians of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "networks", nargs="+", help="modules as --cam_network takes them; the first is what is compared to"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--crop_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = resolve_device(args.device)
    set_precision("auto", device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    options = {"batch_size": args.batch_size, "crop_size": args.crop_size, "max_step": args.rounds + 1}
    steps = {network: training_step(network, device, **options) for network in args.networks}
    seconds: dict[str, list[float]] = {network: [] for network in steps}
    with one_size():
        for _ in range(args.rounds + 1):
            for network, step in steps.items():
                synchronize(device)
                start = clock()
                step()
                synchronize(device)
                seconds[network].append(clock() - start)
    print(f"{machine_name(device)}, {args.batch_size} crops of {args.crop_size}")
    first = seconds[args.networks[0]][1:]  # the first round warms up
    for network, taken in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(taken[1:], first, strict=True)]
        print(
            f"{network}: {statistics.median(taken[1:]):.3f} s a step, {statistics.median(ratios):.2f} times the "
            f"first's ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
