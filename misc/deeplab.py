"""Training of DeepLab-v2: the losses of the multi-scale network and the optimiser (Chen et al., TPAMI 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from misc.distributed import sum_over_processes
from misc.imutils import IGNORE_LABEL, nearest_labels
from misc.torchutils import PolySGD

PYRAMID_SCALES = (0.5, 0.75)
"""Scales of the input beside 1 (section 4.1.2)."""
MOMENTUM = 0.9
ASPP_WEIGHT_RATE, ASPP_BIAS_RATE = 10, 20
"""Learning rates of the ASPP as multiples of the backbone's."""
DECAY_INTERVAL = 10
"""Steps between two updates of the learning rate."""


def largest_logits(scale_logits: Sequence[Tensor]) -> Tensor:
    """Logit maps (B, C, h_s, w_s) of several scales -> their maximum, at the size of the first."""
    first, *others = scale_logits
    size = first.shape[-2:]
    resized = [F.interpolate(logits, size, mode="bilinear", align_corners=False) for logits in others]
    return torch.stack([first, *resized]).amax(dim=0)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that count, of all processes' images; 0 where none does.

    Args:
        logits: (B, C, h, w).
        labels: (B, H, W) uint8 ids, 255 ignored; reduced to h x w as PIL's nearest does.
    """
    reduced = nearest_labels(labels, logits.shape[-2:]).long()
    summed = F.cross_entropy(logits, reduced, ignore_index=IGNORE_LABEL, reduction="sum")
    total, n_pixels = sum_over_processes(torch.stack([summed, (reduced != IGNORE_LABEL).sum().to(summed)]))
    return total / n_pixels.clamp_min(1)


def multiscale_losses(scale_logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """The cross entropies of the logit maps at scale 1, 0.5, 0.75 and of their maximum, each at its own resolution.

    Args:
        scale_logits: (B, C, h_s, w_s) of each scale.
        labels: (B, H, W) uint8 ids, 255 ignored.

    Returns:
        `scale_1`, `scale_0.5`, `scale_0.75`, `max`, and `total`, their sum.
    """
    maps = [*scale_logits, largest_logits(scale_logits)]
    names = [*(f"scale_{scale:g}" for scale in (1, *PYRAMID_SCALES)), "max"]
    losses = {name: segmentation_loss(logits, labels) for name, logits in zip(names, maps, strict=True)}
    return {**losses, "total": sum(losses.values())}


def deeplab_optimizer(
    backbone: list[nn.Parameter],
    aspp_weights: list[nn.Parameter],
    aspp_biases: list[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    max_step: int,
) -> PolySGD:
    """SGD with momentum 0.9; the ASPP's weights learn 10 times, its biases 20 times as fast, these without decay."""
    groups = [
        {"params": backbone, "lr": lr, "weight_decay": weight_decay},
        {"params": aspp_weights, "lr": ASPP_WEIGHT_RATE * lr, "weight_decay": weight_decay},
        {"params": aspp_biases, "lr": ASPP_BIAS_RATE * lr, "weight_decay": 0.0},
    ]
    return PolySGD(groups, lr=lr, momentum=MOMENTUM, max_step=max_step, decay_interval=DECAY_INTERVAL)
