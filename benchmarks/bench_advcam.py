"""Time of AdvCAM an iteration: `python benchmarks/bench_advcam.py [--device cpu|cuda] [--size 188 250]`.

The plain way takes the Grad-CAM weights from a backward pass and climbs along a second one, both with gradients of all
weights. Ours has one backward pass, to the pixels. Both are run in turn, so that a change of the machine's speed hits
both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from misc.advcam import EPSILON, climb
from misc.record import device_name
from net.resnet50_cam import CAM

SETTINGS = {"coefficient": 7.0, "step": 0.08, "score_threshold": 0.5}
N_ITER, RUNS = 9, 3


def plain_climb(
    model: nn.Module,
    pair: Tensor,
    class_index: int,
    n_iter: int,
    *,
    coefficient: float,
    step: float,
    score_threshold: float,
) -> Tensor:
    """`misc.advcam.climb` of one pair (2, 3, H, W), by two full backward passes an iteration."""
    model.requires_grad_(True)
    total, first, pixels = 0, None, pair
    for _ in range(n_iter):
        pixels = pixels.detach().requires_grad_(True)
        features = model.backbone(pixels)[-1]
        features.retain_grad()
        maps = F.relu(model.classifier(features))
        maps[:, class_index].sum().backward(retain_graph=True)
        slope = features.grad
        weights = slope.sum(dim=(2, 3), keepdim=True) / ((slope > 0).sum() + EPSILON)
        model.zero_grad()
        pixels.grad = None
        activation = F.relu((weights * features).sum(dim=1))
        region = activation[0] + activation[1].flip(-1)
        total = total + region.detach()
        first = region.detach() if first is None else first
        strong = (region / region.max()).detach() > score_threshold
        scores = maps.mean(dim=(2, 3))
        loss = 2 * scores[:, class_index].sum() - scores.sum() - coefficient * (region - first).abs()[strong].sum()
        loss.backward()
        model.zero_grad()
        with torch.no_grad():
            moved = pixels + step * pixels.grad / (pixels.grad.abs().max() + EPSILON)
            pixels = moved.clamp(pixels.min(), pixels.max())
    return total


def seconds_of(function: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, nargs=2, default=(188, 250), help="height and width of the image")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    height, width = arguments.size
    generator = torch.Generator().manual_seed(0)
    plain_model, model = (CAM().to(device).eval() for _ in range(2))
    model.load_state_dict(plain_model.state_dict())
    model.requires_grad_(False)
    pair = torch.randn(2, 3, height, width, generator=generator).to(device)
    classes = torch.zeros(1, dtype=torch.long, device=device)
    ways = {
        "two full backward passes": lambda: plain_climb(plain_model, pair, 0, N_ITER, **SETTINGS),
        "ours": lambda: climb(model, pair[None], classes, N_ITER, **SETTINGS),
    }
    for function in ways.values():
        function()
    seconds = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, function in ways.items():
            seconds[way].append(seconds_of(function, device) / N_ITER)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    print(f"{device_name(device)}, torch {torch.__version__}; ResNet-50, {width} x {height}, {N_ITER} iterations\n")
    print("| way | seconds an iteration (median) | times faster |\n| --- | --- | --- |")
    for way, median in medians.items():
        print(f"| {way} | {median:.3f} | {medians['two full backward passes'] / median:.1f} |")


if __name__ == "__main__":
    main()
